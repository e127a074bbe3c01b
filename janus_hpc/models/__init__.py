"""Model families: names and shapes over shared layers, and the parts each role runs."""
