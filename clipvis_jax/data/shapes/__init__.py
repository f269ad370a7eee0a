"""The Shapes world: procedurally drawn videos with full ground truth, a pure function of their seeds."""
