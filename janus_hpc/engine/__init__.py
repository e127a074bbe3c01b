"""The life of a run: roles, loops, progress. The one place that branches on role."""
