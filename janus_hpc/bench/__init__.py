"""Benchmarks as sub-commands of the package."""
