"""A results file as one page for a person: figures, plots and provenance in self-contained HTML."""
