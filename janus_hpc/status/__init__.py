"""`janus-hpc status`: how runs are getting on, from the files they leave. No MPI, no torch."""
