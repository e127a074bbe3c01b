"""`janus-hpc plan`: which ranks take which role, in words, as JSON and as a batch script. No MPI, no torch."""
