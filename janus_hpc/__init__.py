"""Janus-HPC: batch inference for Mixture-of-Experts models as one SPMD program over MPI.

Importing the package does no work; the doors are `janus_hpc.cli` and the `janus-hpc` command.
"""

__version__ = "0.1.0"
