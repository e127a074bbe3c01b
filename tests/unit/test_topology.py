"""Splits, roles and expert placement against their definitions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from janus_hpc.errors import UsageError
from janus_hpc.topology import (
    Role,
    Split,
    Topology,
    assign_roles,
    contiguous_experts,
    parse_split,
)

A, E, C, P = Role.ATTENTION, Role.EXPERT, Role.COLOCATED, Role.PARKED


def test_split_leaves_the_rest_parked() -> None:
    split = parse_split(" 2A6e ", 10, 64)
    assert split == Split(num_attention=2, num_expert=6, num_parked=2)
    assert str(split) == "2a6e"


def test_colocated_takes_all_or_a_number() -> None:
    assert parse_split("colocated", 3, 8) == Split(num_colocated=3)
    assert parse_split("3c", 3, 8) == Split(num_colocated=3)
    assert str(parse_split("3c", 3, 8)) == "colocated"
    assert parse_split("2c", 3, 8) == Split(num_colocated=2, num_parked=1)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 5))
def test_text_and_split_say_the_same(num_attention: int, num_expert: int, spare: int) -> None:
    world_size = num_attention + num_expert + spare
    for text in (f"{num_attention}a{num_expert}e", f"{num_attention}c", "colocated"):
        split = parse_split(text, world_size, 100)
        assert split.world_size == world_size
        assert parse_split(str(split), world_size, 100) == split


@pytest.mark.parametrize(
    ("text", "world_size", "num_experts", "message"),
    [
        ("2a6e", 7, 64, "needs 8 ranks, but 7 were started.*mpirun -n 8"),
        ("4c", 3, 64, "needs 4 ranks, but 3"),
        ("1a9e", 10, 8, "9 expert ranks, but the model has 8 experts"),
        ("colocated", 9, 8, "9 expert ranks, but the model has 8 experts"),
        ("2a", 4, 8, "2 attention and 0 expert ranks; at least one of each"),
        ("3e", 4, 8, "0 attention and 3 expert ranks; at least one of each"),
        ("0a3e", 4, 8, "0 attention and 3 expert"),
        ("0c", 4, 8, "at least one of each"),
        ("", 4, 8, "write 1a3e"),
        ("3e1a", 4, 8, "is not understood: write 1a3e"),
        ("1a3e1c", 8, 8, "is not understood"),
        ("-1a3e", 4, 8, "is not understood"),
        ("1:3", 4, 8, "is not understood"),
    ],
)
def test_impossible_splits(text: str, world_size: int, num_experts: int, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_split(text, world_size, num_experts)
    assert repr(text) in str(caught.value)


def test_roles_in_world_order_where_nodes_are_filled_in_turn() -> None:
    split = parse_split("2a3e", 6, 8)
    assert assign_roles(split, [0, 0, 0, 1, 1, 1]) == [A, A, E, E, E, P]
    assert assign_roles(Split(num_colocated=2, num_parked=1), [0, 0, 1]) == [C, C, P]


def test_roles_are_packed_by_node_where_ranks_are_dealt_round() -> None:
    assert assign_roles(parse_split("2a2e", 4, 8), [0, 1, 0, 1]) == [A, E, A, E]


@given(st.integers(1, 300), st.integers(1, 300))
def test_experts_are_all_placed_once_and_evenly(num_experts: int, num_ranks: int) -> None:
    num_ranks = min(num_ranks, num_experts)
    ranges = contiguous_experts(num_experts, num_ranks)
    assert [e for experts in ranges for e in experts] == list(range(num_experts))
    sizes = [len(experts) for experts in ranges]
    assert len(sizes) == num_ranks
    assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1


def test_topology_counts_roles_in_world_order() -> None:
    topology = Topology(
        roles=(A, C, P, E, P),
        node_ids=(0, 0, 0, 1, 1),
        hosts=("h0", "h0", "h0", "h1", "h1"),
        local_ranks=(0, 1, 2, 0, 1),
    )
    assert topology.world_size == 5
    assert topology.attention_ranks == (0, 1)
    assert topology.expert_ranks == (1, 3)
    assert topology.active_ranks == (0, 1, 3)
    assert [topology.role_rank(r) for r in range(5)] == [0, 1, 0, 1, 1]
    assert topology.label(3) == "expert 1/3@h1"
    assert topology.same_node([0, 1, 2]) and not topology.same_node(topology.active_ranks)
    assert topology.same_node([])
