"""Plans of an exchange: who sends what to whom, in which order. Pure: no MPI, no tensors."""
