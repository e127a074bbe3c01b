"""Compute kernels, one operation a file, each with a plain torch twin. Installed as janus_hpc.kernels."""
