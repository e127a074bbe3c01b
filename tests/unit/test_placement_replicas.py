"""Replica counts against the rule as a plain loop, and against every possible choice."""

from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_hpc.placement.replicas import by_load, replica_counts, replica_loads

COUNTS = st.lists(
    st.one_of(st.integers(0, 12), st.integers(0, 2**62)), min_size=1, max_size=12
).filter(any)


def plain_counts(counts: list[int], num_slots_total: int, max_per_expert: int) -> list[int]:
    replicas = [1] * len(counts)
    for _ in range(num_slots_total - len(counts)):
        able = [e for e in range(len(counts)) if replicas[e] < max_per_expert]
        if not able:
            break
        replicas[max(able, key=lambda e: (Fraction(counts[e], replicas[e]), -e))] += 1
    return replicas


@settings(deadline=None)
@given(COUNTS, st.integers(0, 40), st.integers(1, 9))
def test_counts_follow_the_rule(counts: list[int], num_spare: int, max_per_expert: int) -> None:
    num_slots = len(counts) + num_spare
    found = replica_counts(np.array(counts), num_slots, max_per_expert)
    assert found.tolist() == plain_counts(counts, num_slots, max_per_expert)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=4).filter(any),
    st.integers(0, 5),
    st.integers(1, 4),
)
def test_no_choice_has_a_smaller_largest_load(
    counts: list[int], num_spare: int, max_per_expert: int
) -> None:
    num_slots = min(len(counts) + num_spare, len(counts) * max_per_expert)
    best = min(
        max(Fraction(count, num) for count, num in zip(counts, replicas, strict=True))
        for replicas in product(range(1, max_per_expert + 1), repeat=len(counts))
        if sum(replicas) == num_slots
    )
    found = replica_counts(np.array(counts), num_slots, max_per_expert).tolist()
    assert sum(found) == num_slots
    assert max(Fraction(c, num) for c, num in zip(counts, found, strict=True)) == best


def test_a_difference_below_float_precision_decides() -> None:
    # 2**60 + 1 and 2**60 are the same float64.
    assert replica_counts(np.array([2**60, 2**60 + 1]), 3, 2).tolist() == [1, 2]
    # 0.1 * 3 is above 0.3 as floats are; equal floats go to the lower id.
    assert replica_counts(np.array([0.3, 0.1 * 3]), 3, 2).tolist() == [1, 2]
    assert replica_counts(np.array([0.3, 0.3]), 3, 2).tolist() == [2, 1]


@given(st.integers(1, 30), st.integers(1, 9), st.data())
def test_nothing_known_spreads_evenly(
    num_experts: int, max_per_expert: int, data: st.DataObject
) -> None:
    num_slots = data.draw(st.integers(num_experts, num_experts * max_per_expert))
    found = replica_counts(np.zeros(num_experts), num_slots, max_per_expert)
    assert found.sum() == num_slots
    assert found.max() - found.min() <= 1
    more = np.flatnonzero(found > found.min()).tolist()
    gaps = np.diff([*more, more[0] + num_experts]) if more else np.zeros(1)
    assert gaps.max() - gaps.min() <= 1, f"{found=}"


@given(COUNTS, st.integers(0, 20), st.integers(1, 9))
def test_loads_and_order_of_the_replicas(
    counts: list[int], num_spare: int, max_per_expert: int
) -> None:
    replicas_E = replica_counts(np.array(counts), len(counts) + num_spare, max_per_expert)
    replicas = replicas_E.tolist()
    wanted = [Fraction(count, num) for count, num in zip(counts, replicas, strict=True)]
    loads = replica_loads(np.array(counts), replicas_E)
    busiest = counts.index(max(counts))
    assert all(
        load * wanted[busiest] == loads[busiest] * want
        for load, want in zip(loads, wanted, strict=True)
    )
    all_replicas = [(-wanted[e], e, i) for e in range(len(counts)) for i in range(replicas[e])]
    assert by_load(loads, replicas_E) == [e for _, e, _ in sorted(all_replicas)]


def test_wrong_counts_are_refused() -> None:
    with pytest.raises(AssertionError, match="negative"):
        replica_counts(np.array([3, -1]), 3, 2)
    with pytest.raises(AssertionError, match="num_slots_total"):
        replica_counts(np.array([3, 1]), 1, 2)
