"""Reading checkpoints by slices, so that a rank reads only what its role needs."""
