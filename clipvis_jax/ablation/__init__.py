"""The paper's ablations, replayed from cached predictions."""
