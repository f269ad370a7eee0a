"""Class names: tokens, prompts, and a vocabulary's classifier."""
