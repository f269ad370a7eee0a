"""Pretraining of CLIP itself: its step, its task for the loop of training, and how well it names objects."""
