"""What must be copied to get from one placement to the next, and from which rank.

Knows neither how weights travel nor when a slot may be overwritten.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from janus_hpc.placement.placement import EMPTY, Placement

# Legend: L sparse layers, R expert ranks, C slots of an expert rank.


@dataclass(frozen=True)
class Move:
    """A replica that must come into a slot: from an expert rank that holds the expert under the old
    placement, or, where source is None, from the checkpoint.
    """

    layer_index: int
    expert: int
    expert_rank: int
    slot: int
    source: int | None


def aligned(new: Placement, old: Placement) -> Placement:
    """`new` with the slots of each rank reordered so that an expert that stays on a rank keeps its
    slot; the others take the slots left, in the order `new` has them.

    An expert rank is the same process under both; either may have more ranks or slots. An expert
    whose old slot is beyond the slots of `new` cannot keep it and counts among the others.
    """
    slots_LRC = np.full_like(new.slots_LRC, EMPTY)
    for layer_index in range(new.num_layers):
        for expert_rank in range(new.num_ranks):
            held = _slot_of(old, layer_index, expert_rank)
            experts = [e for e in new.experts_of(layer_index, expert_rank) if e != EMPTY]
            kept = {e: held[e] for e in experts if held.get(e, new.num_slots) < new.num_slots}
            free = sorted(set(range(new.num_slots)) - set(kept.values()))
            others = [e for e in experts if e not in kept]
            places = kept | dict(zip(others, free, strict=False))
            slots_LRC[layer_index, expert_rank, list(places.values())] = list(places)
    return replace(new, slots_LRC=slots_LRC)


def moves(
    old: Placement | None, new: Placement, node_of_rank: Sequence[int] | None = None
) -> list[Move]:
    """The replicas `new` has on a rank and `old` has not, by layer, expert rank and slot.

    `new` must be aligned with `old`; `old` None means that nothing is loaded yet. The source is a
    holder of the expert on the target's node, if there is one, then the one with the fewest sends so
    far in this plan, then the lowest. node_of_rank: node id of each expert rank of either placement;
    None for one node. Old slots beyond those of `new` are for the caller to carry over.
    """
    if old is None:
        return [Move(*where, source=None) for where in _filled(new, range(new.num_layers))]
    num_ranks = max(old.num_ranks, new.num_ranks)
    nodes = [0] * num_ranks if node_of_rank is None else node_of_rank
    assert len(nodes) >= num_ranks, f"{node_of_rank=} {num_ranks=}"
    assert old.num_layers == new.num_layers, f"{old.num_layers=} {new.num_layers=}"
    plan: list[Move] = []
    num_sends: Counter[int] = Counter()
    for layer_index in range(new.num_layers):
        held = [_slot_of(old, layer_index, expert_rank) for expert_rank in range(num_ranks)]
        for where in _filled(new, [layer_index]):
            _, expert, target, slot = where
            if expert in held[target]:
                stays = held[target][expert] in (slot, *range(new.num_slots, old.num_slots))
                assert stays, f"not aligned: {where=} was in slot {held[target][expert]}"
                continue
            holders = [expert_rank for expert_rank, of_rank in enumerate(held) if expert in of_rank]
            source = min(
                holders,
                key=lambda expert_rank: (
                    nodes[expert_rank] != nodes[target],
                    num_sends[expert_rank],
                    expert_rank,
                ),
                default=None,
            )
            if source is not None:
                num_sends[source] += 1
            plan.append(Move(*where, source=source))
    return plan


def _slot_of(placement: Placement, layer_index: int, expert_rank: int) -> dict[int, int]:
    """Expert -> slot on a rank; empty for a rank the placement does not have."""
    if expert_rank >= placement.num_ranks:
        return {}
    experts = placement.experts_of(layer_index, expert_rank)
    return {expert: slot for slot, expert in enumerate(experts) if expert != EMPTY}


def _filled(placement: Placement, layers: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """(layer, expert, expert rank, slot) of each replica, by layer, expert rank and slot."""
    return [
        (layer_index, expert, expert_rank, slot)
        for layer_index in layers
        for expert_rank in range(placement.num_ranks)
        for slot, expert in enumerate(placement.experts_of(layer_index, expert_rank))
        if expert != EMPTY
    ]
