"""One door to the rules that find a placement.

Checks what the user asked for and puts the layers together; each layer is placed by itself.
"""

from collections.abc import Sequence

import numpy as np

from janus_hpc.errors import UsageError
from janus_hpc.placement import contiguous, eplb, janus
from janus_hpc.placement.placement import EMPTY, Placement
from janus_hpc.placement.replicas import Counts

# Legend: L sparse layers, E experts of a layer, R expert ranks, C slots of an expert rank.

KINDS = ("contiguous", "janus", "eplb")


def make_placement(
    kind: str,
    *,
    num_layers: int,
    num_experts: int,
    num_ranks: int,
    num_slots: int,
    counts_LE: Counts | None = None,
    coactivation_LEE: Counts | None = None,
    node_of_rank: Sequence[int] | None = None,
    num_groups: int = 0,
    why: str = "",
) -> Placement:
    """A placement of epoch 0, the same for the same arguments on every machine.

    kind: one of KINDS. counts_LE: how often each expert was activated; None, or zeros in a layer,
    for a uniform load. coactivation_LEE: how often two experts were activated together, symmetric
    (used by "janus"); None for the same for all pairs. node_of_rank: node id of each expert rank,
    None for one node; num_groups: expert groups of the model, 0 for none (both used by "eplb").
    Errors: UsageError for an unknown kind and for slots that are too few or too many.
    """
    check_request(kind, num_experts, num_ranks, num_slots)
    if counts_LE is None:
        counts_LE = np.zeros((num_layers, num_experts), dtype=np.int64)
    nodes = [0] * num_ranks if node_of_rank is None else list(node_of_rank)
    assert counts_LE.shape == (num_layers, num_experts), f"{counts_LE.shape=}"
    assert len(nodes) == num_ranks, f"{node_of_rank=} {num_ranks=}"
    if coactivation_LEE is not None:
        shape = (num_layers, num_experts, num_experts)
        assert coactivation_LEE.shape == shape, f"{coactivation_LEE.shape=}"
    slots_LRC = np.full((num_layers, num_ranks, num_slots), EMPTY, dtype=np.int32)
    for layer_index, counts_E in enumerate(counts_LE):
        if kind == "contiguous":
            ranks = contiguous.place_layer(counts_E, num_ranks, num_slots)
        elif kind == "janus":
            pairs_EE = None if coactivation_LEE is None else coactivation_LEE[layer_index]
            ranks = janus.place_layer(counts_E, pairs_EE, num_ranks, num_slots)
        else:
            ranks = eplb.place_layer(counts_E, num_slots, nodes, num_groups)
        for expert_rank, experts in enumerate(ranks):
            slots_LRC[layer_index, expert_rank, : len(experts)] = experts
    placement = Placement(slots_LRC, num_experts, 0, kind, why)
    placement.check()
    return placement


def check_request(kind: str, num_experts: int, num_ranks: int, num_slots: int) -> None:
    """UsageError for what no rule can place."""
    if kind not in KINDS:
        raise UsageError(f"placement {kind!r} is not known: choose one of {', '.join(KINDS)}")
    assert num_ranks > 0, f"{num_ranks=}"
    num_all = num_ranks * num_slots
    if num_all < num_experts:
        raise UsageError(
            f"{num_slots} slots on each of {num_ranks} expert ranks are {num_all} slots a layer, but "
            f"the model has {num_experts} experts a layer and each needs one: take at least "
            f"{-(-num_experts // num_ranks)} slots, or more expert ranks"
        )
    if num_slots > num_experts:
        raise UsageError(
            f"{num_slots} slots on each expert rank, but the model has {num_experts} experts a layer "
            f"and a rank holds each at most once: take at most {num_experts} slots"
        )
