"""Frames to tracks."""
