"""`janus-hpc doctor`: what on these machines would make a run fail or crawl, said before the run."""
