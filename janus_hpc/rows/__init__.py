"""The input file: index, parsing and checks of rows. Knows nothing of the engine or of MPI."""
