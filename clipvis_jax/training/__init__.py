"""Training: targets and losses, the step for any number of devices, the loop around it, and CLIP-VIS as its task."""
