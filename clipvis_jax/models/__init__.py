"""Flax modules: the frozen CLIP encoders and the trained decoders."""
