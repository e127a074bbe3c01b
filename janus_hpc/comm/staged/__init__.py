"""The exchange by way of memory that a group of ranks shares, and of links between groups."""
