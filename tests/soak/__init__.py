"""A long run whose memory must stay flat: `python -m tests.soak --minutes 30`."""
