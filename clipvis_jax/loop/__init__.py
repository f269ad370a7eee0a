"""The training loop, for whatever is trained."""
