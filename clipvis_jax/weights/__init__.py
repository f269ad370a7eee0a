"""Model folders, and other formats of weights."""
