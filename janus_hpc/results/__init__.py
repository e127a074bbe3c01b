"""Journals, the HDF5 results file, export and verification; knows no engine, torch or MPI."""
