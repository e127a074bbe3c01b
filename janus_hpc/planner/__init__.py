"""How many ranks take which role. Pure: imports neither MPI nor torch."""
