"""Measures this machine for a model: what `janus-hpc profile` writes and runs plan by."""
