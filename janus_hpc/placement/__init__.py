"""Which expert lies in which slot of which expert rank: pure decisions, the same on every rank."""
