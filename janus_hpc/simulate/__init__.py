"""Policies played against a demand that changes over hours. One process; needs neither torch nor MPI."""
