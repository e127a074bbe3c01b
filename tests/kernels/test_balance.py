"""Balancing policies: C against the plain twin, both against an exact solver and the paper's rules."""

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from janus_hpc.kernels.assign import POLICIES
from janus_hpc.kernels.balance import balance
from janus_hpc.kernels.native_ops import NativeOps
from janus_hpc.kernels.slot_lists import SlotLists
from janus_hpc.kernels.slot_map import Balanced, SlotMap

from janus_hpc.bench.exact_balance import exact_a_max

CPU = torch.device("cpu")


def random_slots(num_experts: int, num_ranks: int, num_slots: int, seed: int) -> list[list[int]]:
    """Every expert once, spread evenly, then different further ones in the spare slots, some left empty."""
    rng = random.Random(seed)
    order = rng.sample(range(num_experts), num_experts)
    ranks = [order[g::num_ranks] for g in range(num_ranks)]
    for experts in ranks:
        others = [e for e in range(num_experts) if e not in experts]
        experts.extend(rng.sample(others, num_slots - len(experts)))
        rng.shuffle(experts)
        if len(experts) > -(-num_experts // num_ranks) and rng.random() < 0.2:
            once = [e for e in experts if sum(e in its for its in ranks) > 1]
            if once:
                experts[experts.index(once[0])] = -1
    return ranks


def random_ids(num_tokens: int, top_k: int, num_experts: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(num_tokens, num_experts, generator=generator)
    return scores.argsort(dim=1)[:, :top_k].sort(dim=1).values.int().contiguous()


def check_against_rules(
    ids: torch.Tensor, slots: list[list[int]], num_experts: int, result: Balanced
) -> None:
    """Every choice lies on a slot that holds its expert, and counts and loads are those of the choices."""
    num_slots = len(slots[0])
    flat = [expert for experts in slots for expert in experts]
    used: set[tuple[int, int]] = set()
    for expert, slot in zip(
        ids.flatten().tolist(), result.slots_TJ.flatten().tolist(), strict=True
    ):
        assert flat[slot] == expert
        used.add((expert, slot // num_slots))
    loads = [sum(g == its for _, its in used) for g in range(len(slots))]
    assert result.loads_R.tolist() == loads
    counts = [ids.flatten().tolist().count(expert) for expert in range(num_experts)]
    assert result.counts_E.tolist() == counts


SIZES = st.tuples(
    st.integers(1, 40),
    st.integers(1, 70),
    st.integers(0, 5),
    st.integers(0, 12),
    st.integers(0, 999),
)


@settings(max_examples=150, deadline=None)
@given(sizes=SIZES, policy=st.sampled_from(POLICIES))
def test_native_and_twin_choose_the_same_by_the_rules(
    native: NativeOps, sizes: tuple[int, ...], policy: str
) -> None:
    num_experts, num_ranks, spare, num_tokens, seed = sizes
    num_ranks = min(num_ranks, num_experts)
    num_slots = min(num_experts, -(-num_experts // num_ranks) + spare)
    slots = random_slots(num_experts, num_ranks, num_slots, seed)
    slot_map = SlotMap.make(SlotLists(slots, num_experts), CPU)
    ids = random_ids(num_tokens, min(4, num_experts), num_experts, seed)
    found = native.balance(ids, slot_map, policy, seed)
    plain = balance(ids, slot_map, policy, seed)
    for ours, its in zip(
        (found.slots_TJ, found.counts_E, found.loads_R),
        (plain.slots_TJ, plain.counts_E, plain.loads_R),
        strict=True,
    ):
        assert torch.equal(ours, its) and ours.dtype == its.dtype
    check_against_rules(ids, slots, num_experts, found)


@pytest.mark.parametrize("num_experts", [64, 128, 160, 256])
@pytest.mark.parametrize("redundancy", [0.12, 0.5, 1.0])
def test_aebs_reaches_the_optimum_and_never_exceeds_the_greedy(
    native: NativeOps, num_experts: int, redundancy: float
) -> None:
    for seed, num_ranks in enumerate((6, 8, 12, 16)):
        num_slots = -(-int(num_experts * (1 + redundancy)) // num_ranks)
        slots = random_slots(num_experts, num_ranks, num_slots, seed)
        slot_map = SlotMap.make(SlotLists(slots, num_experts), CPU)
        hosts_ER = (slot_map.slot_of_ER >= 0).numpy()
        for num_tokens in (8, 16, 64, 1024):
            ids = random_ids(num_tokens, 6, num_experts, seed)
            aebs = int(native.balance(ids, slot_map, "aebs", 0).loads_R.max())
            greedy = int(native.balance(ids, slot_map, "greedy", 0).loads_R.max())
            assert aebs == exact_a_max(np.unique(ids.numpy()).tolist(), hosts_ER)
            assert aebs <= greedy


def test_greedy_is_algorithm_1() -> None:
    """Worked by hand: experts 0 and 3 have one replica, then 1 and 2 go where less lies, ties to the left."""
    slots = [[0, 1, 2], [3, 1, -1], [2, 1, -1]]
    slot_map = SlotMap.make(SlotLists(slots, 4), CPU)
    ids = torch.tensor([[0, 1], [2, 3]], dtype=torch.int32)
    result = balance(ids, slot_map, "greedy", 0)
    assert result.loads_R.tolist() == [2, 1, 1]
    assert result.slots_TJ.tolist() == [[0, 7], [2, 3]]


def test_eplb_takes_an_experts_replicas_in_turn() -> None:
    slots = [[0, 1], [0, 2], [0, 3]]
    slot_map = SlotMap.make(SlotLists(slots, 4), CPU)
    ids = torch.tensor([[0, 1], [0, 2], [0, 3], [0, 1]], dtype=torch.int32)
    result = balance(ids, slot_map, "eplb", 0)
    assert result.slots_TJ[:, 0].tolist() == [0, 2, 4, 0]
    assert result.loads_R.tolist() == [2, 2, 2]


def test_random_spreads_over_replicas_and_follows_its_draw() -> None:
    slots = [list(range(8))] * 4
    slot_map = SlotMap.make(SlotLists(slots, 8), CPU)
    ids = torch.arange(8, dtype=torch.int32).view(1, 8)
    drawn = [balance(ids, slot_map, "random", draw).slots_TJ // 8 for draw in range(200)]
    share = torch.stack(drawn).flatten().bincount(minlength=4) / 1600
    assert share.min() > 0.2 and share.max() < 0.3
    assert any(not torch.equal(a, b) for a, b in pairwise(drawn))
    again = balance(ids, slot_map, "random", 7).slots_TJ // 8
    assert torch.equal(again, drawn[7])


def test_a_map_that_hosts_an_expert_nowhere_or_twice_on_a_rank_is_refused() -> None:
    with pytest.raises(AssertionError, match="expert 1 has no slot"):
        SlotLists([[0], [0]], 2)
    with pytest.raises(AssertionError, match="expert=0"):
        SlotLists([[0, 0], [1, 1]], 2)
