"""The training step compiled ahead of time, for chips that are not there: does it fit, and what does it cost."""
