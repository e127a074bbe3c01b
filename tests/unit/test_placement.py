"""Placements of every kind: the rules each must keep, the value's own answers, and refused requests."""

import hashlib
import struct
from dataclasses import FrozenInstanceError
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_hpc.errors import UsageError
from janus_hpc.placement.make import KINDS, make_placement
from janus_hpc.placement.placement import EMPTY, Placement
from janus_hpc.placement.replicas import replica_counts
from janus_hpc.topology import contiguous_experts


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """The arguments of make_placement beside the kind; also skewed, uniform and missing counts."""
    num_experts = draw(st.integers(1, 20))
    num_ranks = draw(st.integers(1, 8))
    num_slots = draw(st.integers(-(-num_experts // num_ranks), num_experts))
    num_layers = draw(st.integers(1, 2))
    largest = draw(st.sampled_from([0, 1, 5, 10**6]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    counts_LE = rng.integers(0, largest, (num_layers, num_experts), endpoint=True)
    if draw(st.booleans()):
        counts_LE[:, draw(st.integers(0, num_experts - 1))] = 10**9
    half_LEE = rng.integers(0, 9, (num_layers, num_experts, num_experts))
    nodes = draw(st.lists(st.integers(0, 3), min_size=num_ranks, max_size=num_ranks))
    return {
        "num_layers": num_layers,
        "num_experts": num_experts,
        "num_ranks": num_ranks,
        "num_slots": num_slots,
        "counts_LE": draw(st.sampled_from([None, counts_LE, counts_LE / 7])),
        "coactivation_LEE": draw(st.sampled_from([None, half_LEE + half_LEE.swapaxes(1, 2)])),
        "node_of_rank": draw(st.sampled_from([None, nodes, [r // 2 for r in range(num_ranks)]])),
        "num_groups": draw(st.integers(0, 4)),
    }


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(request=requests())
def test_every_kind_keeps_the_rules(kind: str, request: dict[str, Any]) -> None:
    placement = make_placement(kind, why="a test", **request)
    num_experts = request["num_experts"]
    assert (placement.kind, placement.epoch, placement.why) == (kind, 0, "a test")
    shape = (request["num_layers"], request["num_ranks"], request["num_slots"])
    assert placement.slots_LRC.shape == shape
    for layer in placement.slots_LRC.tolist():
        held = [expert for slots in layer for expert in slots]
        # With at most as many slots as experts every slot has an expert that its rank lacks.
        assert set(held) == set(range(num_experts)), held
        assert all(len(set(slots)) == len(slots) for slots in layer), layer
    assert make_placement(kind, **request).digest == placement.digest


@settings(deadline=None)
@given(requests())
def test_contiguous_experts_come_first(request: dict[str, Any]) -> None:
    placement = make_placement("contiguous", **request)
    num_holding = min(request["num_ranks"], request["num_experts"])
    own = contiguous_experts(request["num_experts"], num_holding)
    for layer_index in range(placement.num_layers):
        for expert_rank, experts in enumerate(own):
            held = placement.experts_of(layer_index, expert_rank)
            assert held[: len(experts)] == list(experts)


@settings(deadline=None)
@given(requests())
def test_spare_slots_of_contiguous_as_a_plain_loop(request: dict[str, Any]) -> None:
    num_ranks, num_slots = request["num_ranks"], request["num_slots"]
    experts = range(request["num_experts"])
    placement = make_placement("contiguous", **request)
    for layer_index in range(placement.num_layers):
        # Integers and floats are both exact as fractions; nothing known means one each.
        counts_E = np.zeros(len(experts))
        if request["counts_LE"] is not None:
            counts_E = request["counts_LE"][layer_index]
        replicas = replica_counts(counts_E, num_ranks * num_slots, num_ranks).tolist()
        counts = [Fraction(count) for count in counts_E.tolist()]
        counts = counts if any(counts) else [Fraction(1)] * len(experts)
        load = [count / num for count, num in zip(counts, replicas, strict=True)]
        own = contiguous_experts(len(experts), min(num_ranks, len(experts)))
        ranks = [list(own[g]) if g < len(own) else [] for g in range(num_ranks)]
        for expert in sorted(experts, key=lambda e: (-load[e], e)):
            for _ in range(replicas[expert] - 1):
                able = [
                    (len(held), sum(load[e] for e in held), g)
                    for g, held in enumerate(ranks)
                    if len(held) < num_slots and expert not in held
                ]
                if able:
                    ranks[min(able)[2]].append(expert)
        for g, held in enumerate(ranks):
            assert placement.experts_of(layer_index, g)[: len(held)] == held


def test_spare_slots_of_contiguous_go_to_busy_experts() -> None:
    # Ranks hold 0 1 | 2 3 | 4 5. Spare slots go first to expert 5 (load 90 / 3 = 30), then to 0
    # (14 / 2 = 7); ranks are filled evenly, the lightest first.
    counts_LE = np.array([[14, 1, 1, 2, 3, 90]])
    placement = make_placement(
        "contiguous", num_layers=1, num_experts=6, num_ranks=3, num_slots=3, counts_LE=counts_LE
    )
    assert placement.slots_LRC[0].tolist() == [[0, 1, 5], [2, 3, 5], [4, 5, 0]]


def test_a_slot_whose_rank_has_the_busiest_expert_gets_the_next() -> None:
    # The one free slot is on rank 1, which holds the busiest expert already.
    counts_LE = np.array([[3, 4, 90]])
    placement = make_placement(
        "contiguous", num_layers=1, num_experts=3, num_ranks=2, num_slots=2, counts_LE=counts_LE
    )
    assert placement.slots_LRC[0].tolist() == [[0, 1], [2, 1]]


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_placed_by_themselves(kind: str) -> None:
    rng = np.random.default_rng(3)
    counts_LE = rng.integers(0, 100, (3, 12))
    half_LEE = rng.integers(0, 9, (3, 12, 12))
    pairs_LEE = half_LEE + half_LEE.swapaxes(1, 2)
    sizes = {"num_experts": 12, "num_ranks": 4, "num_slots": 4, "num_groups": 4}
    sizes_and_nodes: dict[str, Any] = {**sizes, "node_of_rank": [0, 0, 1, 1]}
    whole = make_placement(
        kind, num_layers=3, counts_LE=counts_LE, coactivation_LEE=pairs_LEE, **sizes_and_nodes
    )
    for layer in range(3):
        part = slice(layer, layer + 1)
        alone = make_placement(
            kind,
            num_layers=1,
            counts_LE=counts_LE[part],
            coactivation_LEE=pairs_LEE[part],
            **sizes_and_nodes,
        )
        assert (alone.slots_LRC[0] == whole.slots_LRC[layer]).all()


@pytest.mark.parametrize(
    ("kind", "num_slots", "message"),
    [
        ("janus", 3, "3 slots on each of 2 expert ranks are 6 .* 7 experts .* at least 4 slots"),
        ("eplb", 0, "at least 4 slots"),
        ("contiguous", 8, "8 slots on each expert rank, but .* 7 experts .* at most 7 slots"),
        ("best", 4, "'best' is not known: choose one of contiguous, janus, eplb"),
    ],
)
def test_impossible_requests(kind: str, num_slots: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_placement(kind, num_layers=1, num_experts=7, num_ranks=2, num_slots=num_slots)


def hand_made() -> Placement:
    slots_LRC = np.array([[[0, 2], [1, EMPTY]], [[1, 0], [2, 1]]])
    return Placement(slots_LRC, num_experts=3, epoch=4, kind="janus", why="by hand")


def test_what_a_placement_says() -> None:
    placement = hand_made()
    assert (placement.num_layers, placement.num_ranks, placement.num_slots) == (2, 2, 2)
    assert placement.slots_LRC.dtype == np.int32
    assert placement.experts_of(0, 1) == [1, -1]
    assert placement.num_replicas_LE().tolist() == [[1, 1, 1], [1, 2, 1]]
    assert placement.hosts_LER().tolist() == [
        [[True, False], [False, True], [True, False]],
        [[True, False], [True, True], [False, True]],
    ]
    placement.check()


def test_the_digest_is_over_shape_experts_and_slots_only() -> None:
    placement = hand_made()
    numbers = struct.pack("<4q8i", 2, 2, 2, 3, 0, 2, 1, -1, 1, 0, 2, 1)
    assert placement.digest == hashlib.sha256(numbers).hexdigest()
    later = placement.with_epoch(5)
    assert (later.epoch, later.kind, later.why) == (5, "janus", "by hand")
    assert later.digest == placement.digest
    more = Placement(placement.slots_LRC, num_experts=4, epoch=4, kind="janus")
    assert more.digest != placement.digest


def test_a_placement_cannot_be_changed() -> None:
    slots_LRC = np.array([[[0, 1]]], dtype=np.int32)
    placement = Placement(slots_LRC, num_experts=2, epoch=0, kind="janus")
    with pytest.raises(ValueError, match="read-only"):
        placement.slots_LRC[0, 0, 0] = 1
    with pytest.raises(FrozenInstanceError):
        placement.epoch = 1  # type: ignore[misc]
    slots_LRC[0, 0] = 0
    placement.check()


def test_several_slots_of_a_rank_may_be_empty() -> None:
    slots_LRC = np.array([[[EMPTY, 0, EMPTY], [1, 0, EMPTY]]])
    Placement(slots_LRC, num_experts=2, epoch=0, kind="janus").check()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ([[0, 1], [2, 3]], "out of range"),
        ([[0, 1], [2, -2]], "out of range"),
        ([[0, 0], [1, 2]], "twice"),
        ([[0, 1], [1, -1]], "has no slot"),
    ],
)
def test_broken_placements_are_found(layer: list[list[int]], message: str) -> None:
    sound = [[0, 1], [2, -1]]
    placement = Placement(np.array([sound, layer]), num_experts=3, epoch=0, kind="janus")
    with pytest.raises(AssertionError, match=message):
        placement.check()
