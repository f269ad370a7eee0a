"""Masks on the host: run lengths, and from logits to pixels."""
