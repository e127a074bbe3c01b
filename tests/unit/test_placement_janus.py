"""Algorithm 3 against a plain transcription of the paper's pseudo-code, and the swaps after it."""

from collections import Counter
from fractions import Fraction
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_hpc.placement.janus import algorithm_3, pair_weights, place_layer
from janus_hpc.placement.make import make_placement
from janus_hpc.placement.refine import coactivation_within, refine

Pairs = list[list[int]]


def within(experts: list[int], pairs: Pairs) -> int:
    """I(g): co-activation over the pairs of experts on a rank."""
    return sum(pairs[i][j] for i, j in combinations(experts, 2))


def replicas_in_order(
    counts: list[int], num_slots_total: int, num_ranks: int
) -> list[tuple[Fraction, int]]:
    """(load, expert) of each replica by decreasing load; counts not all zero."""
    replicas = [1] * len(counts)
    for _ in range(num_slots_total - len(counts)):
        able = [e for e in range(len(counts)) if replicas[e] < num_ranks]
        replicas[max(able, key=lambda e: (Fraction(counts[e], replicas[e]), -e))] += 1
    each = [
        (Fraction(counts[e], replicas[e]), e)
        for e in range(len(counts))
        for _ in range(replicas[e])
    ]
    return sorted(each, key=lambda pair: (-pair[0], pair[1]))


def plain_algorithm_3(
    counts: list[int], pairs: Pairs, num_ranks: int, num_slots: int
) -> tuple[list[list[int]], int]:
    """The pseudo-code with every sum written out; the number of swaps beside the ranks."""
    ranks: list[list[int]] = [[] for _ in range(num_ranks)]
    loads: dict[int, Fraction] = {}
    num_swaps = 0
    for load, expert in replicas_in_order(counts, num_ranks * num_slots, num_ranks):
        loads[expert] = load
        able = [g for g in range(num_ranks) if len(ranks[g]) < num_slots and expert not in ranks[g]]
        if able:
            chosen = min(
                able,
                key=lambda g: (
                    sum(pairs[expert][j] for j in ranks[g]),
                    len(ranks[g]),
                    sum(loads[j] for j in ranks[g]),
                    g,
                ),
            )
            ranks[chosen].append(expert)
            continue
        num_swaps += 1
        _, g, j, h = min(
            (swap_change(ranks, pairs, expert, g, j, h), g, j, h)
            for g, h in permutations(range(num_ranks), 2)
            if expert not in ranks[g] and len(ranks[h]) < num_slots
            for j in ranks[g]
            if j not in ranks[h]
        )
        ranks[g].remove(j)
        ranks[h].append(j)
        ranks[g].append(expert)
    return ranks, num_swaps


def swap_change(ranks: list[list[int]], pairs: Pairs, i: int, g: int, j: int, h: int) -> int:
    """By how much I(g) and I(h) grow together when i comes to g and j goes from g to h."""
    left = [e for e in ranks[g] if e != j]
    before = within(ranks[g], pairs) + within(ranks[h], pairs)
    return within([*left, i], pairs) + within([*ranks[h], j], pairs) - before


@st.composite
def layers(draw: st.DrawFn) -> tuple[list[int], Pairs, int, int]:
    num_experts = draw(st.integers(1, 14))
    num_ranks = draw(st.integers(1, 6))
    num_slots = draw(st.integers(-(-num_experts // num_ranks), num_experts))
    counts = draw(
        st.lists(st.integers(0, 50), min_size=num_experts, max_size=num_experts).filter(any)
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    half_EE = rng.integers(0, draw(st.sampled_from([1, 3, 1000])), (num_experts, num_experts))
    return counts, (half_EE + half_EE.T).tolist(), num_ranks, num_slots


@settings(deadline=None, max_examples=400)
@given(layers())
def test_as_the_pseudo_code_says(layer: tuple[list[int], Pairs, int, int]) -> None:
    counts, pairs, num_ranks, num_slots = layer
    wanted, _ = plain_algorithm_3(counts, pairs, num_ranks, num_slots)
    weights_EE = pair_weights(np.array(pairs))
    assert algorithm_3(np.array(counts), weights_EE, num_ranks, num_slots) == wanted


def test_the_swap_is_reached_and_follows_the_pseudo_code() -> None:
    # Two replicas of nearly all experts, and two experts that no rank wants company for: their ranks
    # have the last free slots, so both replicas of the last expert would have to go there.
    rng = np.random.default_rng(0)
    num_with_swaps = 0
    for _ in range(500):
        num_experts, num_ranks = int(rng.integers(4, 10)), int(rng.integers(3, 6))
        num_slots = min(num_experts, -(-2 * num_experts // num_ranks) + int(rng.integers(0, 2)))
        counts = rng.integers(18, 20, num_experts)
        largest = int(rng.choice([2, 50]))
        half_EE = rng.integers(0, largest, (num_experts, num_experts))
        half_EE[rng.choice(num_experts, 2, replace=False)] *= 100
        pairs_EE = half_EE + half_EE.T
        wanted, num_swaps = plain_algorithm_3(
            counts.tolist(), pairs_EE.tolist(), num_ranks, num_slots
        )
        num_with_swaps += num_swaps > 0
        found = algorithm_3(counts, pair_weights(pairs_EE), num_ranks, num_slots)
        assert found == wanted
        assert all(len(set(experts)) == len(experts) == num_slots for experts in found)
    assert num_with_swaps > 30, num_with_swaps


@settings(deadline=None)
@given(layers())
def test_unknown_coactivation_leaves_numbers_and_loads_to_decide(
    layer: tuple[list[int], Pairs, int, int],
) -> None:
    counts, pairs, num_ranks, num_slots = layer
    uniform = [[0] * len(pairs) for _ in pairs]
    wanted, _ = plain_algorithm_3(counts, uniform, num_ranks, num_slots)
    found = place_layer(np.array(counts), None, num_ranks, num_slots)
    assert found == [sorted(experts) for experts in wanted]


@settings(deadline=None)
@given(layers())
def test_refining_keeps_the_replicas_and_never_raises_the_largest_sum(
    layer: tuple[list[int], Pairs, int, int],
) -> None:
    counts, pairs, num_ranks, num_slots = layer
    weights_EE = pair_weights(np.array(pairs))
    first = algorithm_3(np.array(counts), weights_EE, num_ranks, num_slots)
    better = refine(first, weights_EE)
    assert Counter(e for experts in better for e in experts) == Counter(
        e for experts in first for e in experts
    )
    assert all(len(set(experts)) == len(experts) == num_slots for experts in better)
    largest = max(within(experts, pairs) for experts in better)
    assert largest <= max(within(experts, pairs) for experts in first)
    assert place_layer(np.array(counts), np.array(pairs), num_ranks, num_slots) == better
    assert coactivation_within(better, weights_EE) == [within(experts, pairs) for experts in better]


def plain_refine(ranks: list[list[int]], pairs: Pairs) -> list[list[int]]:
    """Swaps of the rank with the largest I(g), each tried out and summed anew."""
    ranks = [sorted(experts) for experts in ranks]
    for _ in range(2 * len(ranks)):
        sums = [within(experts, pairs) for experts in ranks]
        worst = sums.index(max(sums))
        tried = []
        for i, mine in enumerate(ranks[worst]):
            for h, experts in enumerate(ranks):
                for j, theirs in enumerate(experts):
                    if theirs in ranks[worst] or mine in experts:
                        continue
                    here = [e for e in ranks[worst] if e != mine] + [theirs]
                    there = [e for e in experts if e != theirs] + [mine]
                    tried.append((max(within(here, pairs), within(there, pairs)), i, h, j))
        if not tried or min(tried)[0] >= sums[worst]:
            break
        _, i, h, j = min(tried)
        ranks[worst][i], ranks[h][j] = ranks[h][j], ranks[worst][i]
    return [sorted(experts) for experts in ranks]


@settings(deadline=None)
@given(layers())
def test_refining_as_a_plain_loop(layer: tuple[list[int], Pairs, int, int]) -> None:
    counts, pairs, num_ranks, num_slots = layer
    weights_EE = pair_weights(np.array(pairs))
    first = algorithm_3(np.array(counts), weights_EE, num_ranks, num_slots)
    assert refine(first, weights_EE) == plain_refine(first, pairs)


def test_one_swap_reaches_the_optimum_of_two_pairs() -> None:
    pairs_EE = np.zeros((4, 4), dtype=int)
    pairs_EE[0, 1] = pairs_EE[1, 0] = 5
    pairs_EE[2, 3] = pairs_EE[3, 2] = 4
    better = refine([[0, 1], [2, 3]], pair_weights(pairs_EE))
    assert [within(experts, pairs_EE.tolist()) for experts in better] == [0, 0]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32))
def test_fractional_coactivation_is_the_same_in_any_memory_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    half_EE, counts = rng.random((12, 12)), rng.random(12)
    pairs_EE = half_EE + half_EE.T
    found = place_layer(counts, pairs_EE, 4, 4)
    assert place_layer(counts, np.asfortranarray(pairs_EE), 4, 4) == found
    assert all(len(set(experts)) == 4 for experts in found)


def test_planted_groups_are_spread() -> None:
    # 8 groups of 4 experts that are always activated together: 4 ranks can hold one of each.
    group_E = np.random.default_rng(1).permutation(np.arange(32) // 4)
    pairs_EE = 100 * (group_E[:, None] == group_E)
    counts_E = np.full(32, 100)
    found = place_layer(counts_E, pairs_EE, 4, 8)
    assert [within(experts, pairs_EE.tolist()) for experts in found] == [0] * 4


def test_less_coactivation_within_a_rank_than_the_other_kinds() -> None:
    rng = np.random.default_rng(2)
    chosen_T = rng.integers(0, 8, 500)
    hits_TE = np.zeros((500, 64), dtype=int)
    for hits_E, group in zip(hits_TE, chosen_T, strict=True):
        hits_E[8 * group + rng.choice(8, 4, replace=False)] = 1
        hits_E[rng.choice(64, 2, replace=False)] = 1
    pairs_EE = hits_TE.T @ hits_TE
    largest = {}
    for kind in ("contiguous", "janus", "eplb"):
        placement = make_placement(
            kind,
            num_layers=1,
            num_experts=64,
            num_ranks=8,
            num_slots=10,
            counts_LE=hits_TE.sum(axis=0)[None],
            coactivation_LEE=pairs_EE[None],
        )
        ranks = placement.slots_LRC[0].tolist()
        largest[kind] = max(within(experts, pairs_EE.tolist()) for experts in ranks)
    assert largest["janus"] < min(largest["contiguous"], largest["eplb"]), largest


def test_coactivation_must_be_symmetric() -> None:
    with pytest.raises(AssertionError, match="not symmetric"):
        place_layer(np.ones(2), np.array([[0, 1], [2, 0]]), 2, 1)
