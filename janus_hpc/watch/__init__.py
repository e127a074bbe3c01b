"""What ranks tell of themselves while they run, and what can be read from it. No MPI, no torch."""
