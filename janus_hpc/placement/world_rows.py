"""Placements with a row for every rank of the world, so that two over different expert ranks can be compared.

Pure; knows neither how an expert travels nor why ranks change roles.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from janus_hpc.placement.moves import aligned
from janus_hpc.placement.placement import EMPTY, Placement

# Legend: L sparse layers, R expert ranks, W ranks of the world, C slots of a rank.


def over_world(placement: Placement, expert_ranks: Sequence[int], world_size: int) -> Placement:
    """The placement over world ranks: rows of ranks without experts are EMPTY."""
    assert placement.num_ranks == len(expert_ranks), f"{placement.num_ranks=} {expert_ranks=}"
    shape = (placement.num_layers, world_size, placement.num_slots)
    slots_LWC = np.full(shape, EMPTY, dtype=np.int32)
    slots_LWC[:, list(expert_ranks)] = placement.slots_LRC
    return replace(placement, slots_LRC=slots_LWC)


def of_ranks(placement: Placement, expert_ranks: Sequence[int]) -> Placement:
    """The rows of these world ranks: the inverse of `over_world`."""
    return replace(placement, slots_LRC=placement.slots_LRC[:, list(expert_ranks)])


def aligned_with(
    new: Placement,
    new_ranks: Sequence[int],
    old: Placement,
    old_ranks: Sequence[int],
    world_size: int,
) -> Placement:
    """`new` with its slots in such an order that what stays on a rank of the world keeps its slot."""
    whole = aligned(over_world(new, new_ranks, world_size), over_world(old, old_ranks, world_size))
    return of_ranks(whole, new_ranks)
