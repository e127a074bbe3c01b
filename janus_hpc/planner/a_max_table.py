"""a_max of every layer for candidate numbers of expert ranks and batch sizes, for the planner to look up.

Made from a routing trace; each candidate is placed as a run would place it. Needs no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from janus_hpc.kernels.native.balance_library import BalanceLibrary
from janus_hpc.kernels.slot_lists import SlotLists
from janus_hpc.placement.make import make_placement
from janus_hpc.placement.placement import Placement
from janus_hpc.planner.a_max import AMax, simulate_a_max
from janus_hpc.routing.trace import RoutingTrace

# Legend: L sparse layers, R candidate numbers of expert ranks, B batch sizes, E experts.


@dataclass(frozen=True, eq=False)
class AMaxTable:
    """mean_LRB and standard_error_LRB over expert_ranks and batches, both ascending, for one number of
    slots a rank; NaN where so many ranks cannot hold all experts.
    """

    expert_ranks: tuple[int, ...]
    num_slots: int
    batches: tuple[int, ...]
    policy: str
    mean_LRB: npt.NDArray[np.float64]
    standard_error_LRB: npt.NDArray[np.float64]

    def a_max_L(self, num_expert_ranks: int, batch: float) -> npt.NDArray[np.float64]:
        """a_max of each layer for a batch size between or beyond those of the table: linear in the
        logarithm of the batch, constant beyond the ends.
        """
        mean_LB = self.mean_LRB[:, self.expert_ranks.index(num_expert_ranks)]
        at = np.log(max(batch, 1.0))
        known = np.log(np.array(self.batches, dtype=np.float64))
        return np.array([np.interp(at, known, mean_B) for mean_B in mean_LB])


def a_max_table(
    trace: RoutingTrace,
    *,
    expert_ranks: Sequence[int],
    num_slots: int,
    batches: Sequence[int],
    kind: str = "janus",
    policy: str = "aebs",
    library: BalanceLibrary | None = None,
    seed: int = 0,
) -> AMaxTable:
    """Simulate every layer under `kind` of placement and `policy`; layers without routes give NaN."""
    ranks, sizes = sorted(expert_ranks), sorted(batches)
    shape = (len(trace.layer_ids), len(ranks), len(sizes))
    mean_LRB, error_LRB = np.full(shape, np.nan), np.full(shape, np.nan)
    for r, num_ranks in enumerate(ranks):
        if num_ranks * num_slots < trace.num_experts or num_ranks > trace.num_experts:
            continue
        placement = place(trace, num_ranks, num_slots, kind)
        for index in range(len(trace.layer_ids)):
            for b, found in enumerate(
                layer_a_max(trace, placement, index, sizes, policy, library, seed)
            ):
                mean_LRB[index, r, b] = found.mean
                error_LRB[index, r, b] = found.standard_error
    return AMaxTable(tuple(ranks), num_slots, tuple(sizes), policy, mean_LRB, error_LRB)


def place(trace: RoutingTrace, num_ranks: int, num_slots: int, kind: str) -> Placement:
    """The placement of one node's ranks that the trace asks for."""
    return make_placement(
        kind,
        num_layers=len(trace.layer_ids),
        num_experts=trace.num_experts,
        num_ranks=num_ranks,
        num_slots=min(num_slots, trace.num_experts),
        counts_LE=trace.counts_LE,
        coactivation_LEE=trace.coactivation_LEE,
    )


def layer_a_max(
    trace: RoutingTrace,
    placement: Placement,
    layer_index: int,
    batches: Sequence[int],
    policy: str,
    library: BalanceLibrary | None,
    seed: int = 0,
) -> list[AMax]:
    """One layer's a_max for each batch size; empty where the trace has no routes of that layer."""
    routes_WK = trace.routes_NK(layer_index)
    if not len(routes_WK):
        return []
    lists = SlotLists(placement.slots_LRC[layer_index].tolist(), trace.num_experts)
    return [
        simulate_a_max(routes_WK, lists, batch, policy=policy, library=library, seed=seed)
        for batch in batches
    ]
