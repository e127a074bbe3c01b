"""Sharing pending rows: compared with a plain one-at-a-time loop, and every row given out exactly once."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from janus_hpc.engine.claims import ClaimQueue, share_rows

WANTS = st.lists(st.integers(0, 40), min_size=1, max_size=6)


def one_at_a_time(wants: list[int], num_available: int) -> list[int]:
    counts = [0] * len(wants)
    while num_available and any(c < w for c, w in zip(counts, wants, strict=True)):
        for index, want in enumerate(wants):
            if num_available and counts[index] < want:
                counts[index] += 1
                num_available -= 1
    return counts


@given(WANTS, st.integers(0, 150))
def test_share_equals_the_plain_loop(wants: list[int], num_available: int) -> None:
    assert share_rows(wants, num_available) == one_at_a_time(wants, num_available)


@given(st.lists(WANTS.filter(lambda w: len(w) >= 3).map(lambda w: w[:3]), max_size=12))
def test_every_row_is_claimed_once_and_in_order(rounds: list[list[int]]) -> None:
    rows = np.arange(10, 110, 3)
    queues = [ClaimQueue(rows, role_rank) for role_rank in range(3)]
    claimed: list[int] = []
    for wants in rounds:
        for queue in queues:
            claimed += queue.claim(wants)
    assert sorted(claimed) == rows[: len(claimed)].tolist()
    assert {queue.num_left for queue in queues} == {len(rows) - len(claimed)}
