"""What a change of roles asks for: placements over the world, who fills a node's memory, the splits in turn."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_hpc.config import RunConfig
from janus_hpc.engine.decision import Assignment, BorderDecision
from janus_hpc.engine.node_weights import Fill, plan_fills
from janus_hpc.engine.prepare import read_turns
from janus_hpc.errors import UsageError
from janus_hpc.placement.make import make_placement
from janus_hpc.placement.moves import moves
from janus_hpc.placement.placement import EMPTY, Placement
from janus_hpc.placement.world_rows import aligned_with, of_ranks, over_world
from janus_hpc.topology import Role, Split
from tests.unit.test_gates import SPEC

NUM_EXPERTS = 7


@st.composite
def assigned(draw: st.DrawFn, world_size: int) -> tuple[Placement, list[int]]:
    """A placement over some ranks of a world, with up to all slots it can use."""
    ranks = sorted(draw(st.sets(st.integers(0, world_size - 1), min_size=1)))
    fewest = -(-NUM_EXPERTS // len(ranks))
    counts = draw(st.lists(st.integers(0, 9), min_size=NUM_EXPERTS, max_size=NUM_EXPERTS))
    placement = make_placement(
        draw(st.sampled_from(["contiguous", "janus", "eplb"])),
        num_layers=2,
        num_experts=NUM_EXPERTS,
        num_ranks=len(ranks),
        num_slots=draw(st.integers(fewest, NUM_EXPERTS)),
        counts_LE=np.array([counts, counts[::-1]]),
    )
    return placement, ranks


@settings(deadline=None)
@given(st.data(), st.integers(1, 5))
def test_only_what_a_rank_does_not_hold_moves(data: st.DataObject, world_size: int) -> None:
    """Between any two sets of ranks: what is kept is kept, and a rank that leaves is a source."""
    old, old_ranks = data.draw(assigned(world_size))
    wanted, new_ranks = data.draw(assigned(world_size))
    new = aligned_with(wanted, new_ranks, old, old_ranks, world_size)
    new.check()
    assert new.slots_LRC.shape == wanted.slots_LRC.shape
    assert np.array_equal(np.sort(new.slots_LRC, axis=2), np.sort(wanted.slots_LRC, axis=2))
    whole_old = over_world(old, old_ranks, world_size)
    whole_new = over_world(new, new_ranks, world_size)
    planned = moves(whole_old, whole_new)
    missing: Counter[tuple[int, int, int]] = Counter()
    for index in range(2):
        for rank in range(world_size):
            before = set(whole_old.experts_of(index, rank))
            after = set(whole_new.experts_of(index, rank)) - {EMPTY}
            missing.update((index, rank, expert) for expert in after - before)
    assert missing == Counter((its.layer_index, its.expert_rank, its.expert) for its in planned)
    for its in planned:
        assert its.source in old_ranks and its.expert_rank in new_ranks
        assert its.expert in whole_old.experts_of(its.layer_index, its.source)
    if old.num_slots == new.num_slots:
        for index in range(2):
            for rank in set(old_ranks) & set(new_ranks):
                held = whole_old.experts_of(index, rank)
                for slot, expert in enumerate(whole_new.experts_of(index, rank)):
                    assert expert not in held or held[slot] == expert or expert == EMPTY


def test_rows_of_the_world_and_back() -> None:
    placement = make_placement("contiguous", num_layers=1, num_experts=4, num_ranks=2, num_slots=2)
    whole = over_world(placement, [1, 3], 4)
    assert whole.slots_LRC.tolist() == [[[EMPTY] * 2, [0, 1], [EMPTY] * 2, [2, 3]]]
    assert of_ranks(whole, [1, 3]).digest == placement.digest


@pytest.mark.parametrize(
    ("groups", "holders", "wanted", "expected"),
    [
        # At the start every node that needs them reads.
        ([(0, 1), (2, 3)], [], [1, 2], [Fill((0, 1), 1, None), Fill((2, 3), 2, None)]),
        ([(0, 1), (2, 3)], [], [3], [Fill((2, 3), 3, None)]),
        # A rank of a node that has them maps them.
        ([(0, 1), (2, 3)], [0], [0, 1], []),
        ([(0, 1), (2, 3)], [0], [1, 2, 3], [Fill((2, 3), 2, 0)]),
        # Nodes that have them are asked in turn.
        (
            [(0,), (1,), (2,), (3,), (4,)],
            [1, 0],
            [2, 3, 4],
            [Fill((2,), 2, 0), Fill((3,), 3, 1), Fill((4,), 4, 0)],
        ),
        ([(0, 1)], [0], [], []),
    ],
)
def test_a_node_is_filled_once_and_from_one_that_has_them(
    groups: list[tuple[int, ...]], holders: list[int], wanted: list[int], expected: list[Fill]
) -> None:
    assert plan_fills(groups, holders, wanted) == expected


def turns(text: str) -> list[str]:
    config = RunConfig(prompts="", replan=text)
    return [
        "".join(role.value[0] for role in its.roles) for its in read_turns(config, SPEC, [0] * 4)
    ]


def test_splits_in_turn() -> None:
    assert turns("off") == turns("auto") == []
    assert turns("2a2e, 1A2E,colocated,1c") == ["aaee", "aeep", "cccc", "cppp"]


@pytest.mark.parametrize("text", ["", "2a2e,", "3a2e", "on", "2a2e;1a3e", "auto,2a2e", "0c"])
def test_splits_that_cannot_be_name_the_option(text: str) -> None:
    with pytest.raises(UsageError, match="--replan"):
        turns(text)


def test_a_split_needs_a_placement_over_its_expert_ranks() -> None:
    assignment = Assignment(
        split=Split(num_attention=1, num_expert=1), roles=(Role.ATTENTION, Role.EXPERT)
    )
    fits = make_placement("contiguous", num_layers=1, num_experts=2, num_ranks=1, num_slots=2)
    BorderDecision(why="", assignment=assignment, placement=fits)
    for placement in (None, over_world(fits, [0], 2)):
        with pytest.raises(AssertionError):
            BorderDecision(why="", assignment=assignment, placement=placement)
