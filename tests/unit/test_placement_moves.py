"""Moves between placements: as few as can be, from ranks that hold the expert, and enough."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_hpc.placement.moves import Move, aligned, moves
from janus_hpc.placement.placement import EMPTY, Placement


def placed(layers: list[list[list[int]]], num_experts: int, epoch: int = 0) -> Placement:
    return Placement(np.array(layers), num_experts=num_experts, epoch=epoch, kind="janus", why="x")


@st.composite
def placements(draw: st.DrawFn, num_experts: int, num_ranks: int, num_slots: int) -> Placement:
    """Any slots with distinct experts a rank, empty ones among them; two layers."""
    # An expert may have no slot at all: the ranks that held it are gone.
    either = list(range(num_experts)) + [EMPTY - i for i in range(num_slots)]
    rows = st.permutations(either).map(lambda row: [max(e, EMPTY) for e in row[:num_slots]])
    layer = st.lists(rows, min_size=num_ranks, max_size=num_ranks)
    return placed(draw(st.lists(layer, min_size=2, max_size=2)), num_experts)


def sets_of(placement: Placement) -> list[list[list[int]]]:
    sorted_slots: list[list[list[int]]] = np.sort(placement.slots_LRC, axis=2).tolist()
    return sorted_slots


def held(placement: Placement, layer_index: int, expert_rank: int) -> set[int]:
    if expert_rank >= placement.num_ranks:
        return set()
    return set(placement.experts_of(layer_index, expert_rank)) - {EMPTY}


SIZES = st.tuples(st.integers(1, 4), st.integers(1, 5))


@settings(deadline=None)
@given(st.data(), st.integers(1, 7), SIZES)
def test_moves_applied_to_the_old_slots_give_the_new(
    data: st.DataObject, num_experts: int, sizes: tuple[int, int]
) -> None:
    old = data.draw(placements(num_experts, *sizes))
    wanted = data.draw(placements(num_experts, *sizes))
    new = aligned(wanted, old)
    assert sets_of(new) == sets_of(wanted)
    assert (new.epoch, new.kind, new.why) == (wanted.epoch, wanted.kind, wanted.why)
    slots_LRC = np.array(old.slots_LRC)
    for move in moves(old, new):
        slots_LRC[move.layer_index, move.expert_rank, move.slot] = move.expert
    # A slot that is empty under the new placement may keep what it had.
    assert (np.where(new.slots_LRC == EMPTY, EMPTY, slots_LRC) == new.slots_LRC).all()


@settings(deadline=None)
@given(st.data(), st.integers(1, 7), SIZES, SIZES)
def test_as_few_moves_as_can_be_from_ranks_that_hold_the_expert(
    data: st.DataObject, num_experts: int, old_sizes: tuple[int, int], new_sizes: tuple[int, int]
) -> None:
    old = data.draw(placements(num_experts, *old_sizes))
    new = aligned(data.draw(placements(num_experts, *new_sizes)), old)
    num_ranks = max(old.num_ranks, new.num_ranks)
    nodes = data.draw(st.lists(st.integers(0, 2), min_size=num_ranks, max_size=num_ranks))
    plan = moves(old, new, nodes)
    for layer_index in range(2):
        for target in range(new.num_ranks):
            here = [m for m in plan if (m.layer_index, m.expert_rank) == (layer_index, target)]
            experts = [move.expert for move in here]
            lacking = held(new, layer_index, target) - held(old, layer_index, target)
            assert sorted(experts) == sorted(lacking)
            for move in here:
                assert new.slots_LRC[layer_index, target, move.slot] == move.expert
    num_sends: Counter[int] = Counter()
    for move in plan:
        holders = [r for r in range(old.num_ranks) if move.expert in held(old, move.layer_index, r)]
        near = [r for r in holders if nodes[r] == nodes[move.expert_rank]] or holders
        if not near:
            assert move.source is None
            continue
        fewest = min(num_sends[r] for r in near)
        assert move.source == next(r for r in near if num_sends[r] == fewest)
        num_sends[move.source] += 1
    assert moves(old, new, nodes) == plan
    in_turn = sorted(plan, key=lambda m: (m.layer_index, m.expert_rank, m.slot))
    assert plan == in_turn


def test_at_first_everything_comes_from_the_checkpoint() -> None:
    new = placed([[[1, EMPTY], [0, 1]]], num_experts=2)
    assert moves(None, new) == [
        Move(0, expert=1, expert_rank=0, slot=0, source=None),
        Move(0, expert=0, expert_rank=1, slot=0, source=None),
        Move(0, expert=1, expert_rank=1, slot=1, source=None),
    ]


def test_an_expert_that_stays_keeps_its_slot() -> None:
    old = placed([[[4, 0, 2], [1, 3, 5]]], num_experts=6)
    new = placed([[[0, 1, 4], [2, 3, 5]]], num_experts=6, epoch=1)
    better = aligned(new, old)
    assert better.slots_LRC.tolist() == [[[4, 0, 1], [2, 3, 5]]]
    assert better.epoch == 1
    assert moves(old, better) == [Move(0, 1, 0, 2, 1), Move(0, 2, 1, 0, 0)]
    with pytest.raises(AssertionError, match="not aligned"):
        moves(old, new)


def test_sends_are_spread_over_the_holders_of_a_node() -> None:
    # Ranks 0 1 2 hold expert 0, on nodes 0 0 1; ranks 3 to 6 want it.
    old = placed([[[0], [0], [0], [1], [1], [1], [1]]], num_experts=2)
    new = placed([[[0], [0], [0], [0], [0], [0], [0]]], num_experts=2)
    sources = [move.source for move in moves(old, new, [0, 0, 1, 0, 0, 0, 1])]
    assert sources == [0, 1, 0, 2]
    assert [move.source for move in moves(old, new)] == [0, 1, 2, 0]


def test_a_rank_that_is_new_and_one_that_goes() -> None:
    small = placed([[[0, 1], [2, 1]]], num_experts=3)
    large = placed([[[1], [0], [2]]], num_experts=3)
    grown = aligned(large, small)
    assert moves(small, grown) == [Move(0, 0, 1, 0, 0), Move(0, 2, 2, 0, 1)]
    shrunk = aligned(small, large)
    assert shrunk.slots_LRC.tolist() == [[[1, 0], [2, 1]]]
    assert moves(large, shrunk) == [
        Move(0, 0, 0, 1, 1),
        Move(0, 2, 1, 0, 2),
        Move(0, 1, 1, 1, 0),
    ]
