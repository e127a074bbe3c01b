"""a_max for any number of expert ranks, slots and tokens that a search asks for, worked out when asked.

Knows routing (a trace, or a uniform one) and placements; nothing of time. Needs no torch.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from janus_hpc.kernels.native.balance_library import BalanceLibrary
from janus_hpc.kernels.slot_lists import SlotLists
from janus_hpc.placement.make import make_placement
from janus_hpc.planner.a_max import a_max_bound, a_max_of_draws
from janus_hpc.routing.trace import RoutingTrace

# Legend: W routes of a window, K choices a token, E experts, D draws, N tokens of a draw, G batch sizes, X
# candidates.

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MAX_LAYERS = 4
NUM_DRAWS = 16
UNIFORM_WINDOW = 2048
# Batch sizes of a table are powers of two up to this one, or to where nearly all experts are activated.
_LARGEST_LOG2 = 16
_NEARLY_ALL = 0.995


@dataclass(frozen=True, eq=False)
class Routing:
    """Some layers' windows of routes, and how often their experts were chosen; counts may be None: uniform."""

    num_experts: int
    windows: tuple[npt.NDArray[np.int32], ...]
    counts: tuple[npt.NDArray[np.int64] | None, ...]
    pairs: tuple[npt.NDArray[np.int64] | None, ...]
    why: str


def uniform_routing(num_experts: int, top_k: int, seed: int = 0) -> Routing:
    """A window of tokens that choose evenly: what is known without a trace."""
    rng = np.random.default_rng(seed)
    draws_WE = rng.random((UNIFORM_WINDOW, num_experts))
    routes_WK = np.argpartition(draws_WE, top_k - 1, axis=1)[:, :top_k].astype(np.int32)
    return Routing(num_experts, (routes_WK,), (None,), (None,), "uniform routing")


def traced_routing(trace: RoutingTrace, where: str) -> Routing:
    """At most MAX_LAYERS of a trace's layers that have routes, evenly spaced."""
    with_routes = [i for i in range(len(trace.layer_ids)) if len(trace.routes_NK(i))]
    layers = with_routes[:: -(-len(with_routes) // MAX_LAYERS) or 1]
    return Routing(
        trace.num_experts,
        tuple(trace.routes_NK(i).astype(np.int32) for i in layers),
        tuple(trace.counts_LE[i] for i in layers),
        tuple(trace.coactivation_LEE[i] for i in layers),
        f"the routing in {where}",
    )


class AMaxLookup:
    """Tables of mean a_max by batch size, one for each (expert ranks, slots), made when first asked for.

    With the C library each point is a mean of NUM_DRAWS draws, the same in every run; without it the upper
    estimate of `a_max_bound`, and `how` says so.
    """

    def __init__(
        self,
        routing: Routing,
        *,
        policy: str = "aebs",
        kind: Literal["auto", "janus", "eplb", "contiguous"] = "auto",
        library: BalanceLibrary | None = None,
        seed: int = 0,
    ) -> None:
        self._routing, self._policy, self._library, self._seed = routing, policy, library, seed
        has_counts = routing.counts[0] is not None
        self._kind = kind if kind != "auto" else ("janus" if has_counts else "contiguous")
        self._batches = self._grid()
        # A row a (expert ranks, slots) seen so far, and where it is.
        size = routing.num_experts + 1
        self._row_of = np.full((size, size), -1, dtype=np.int64)
        self._tables = np.empty((0, len(self._batches)))
        way = f"{NUM_DRAWS} draws a point" if library is not None else "bound, no C library"
        self.how = f"a_max of {policy} under {routing.why} ({way})"

    def a_max(self, num_expert_ranks: Ints, num_slots: Ints, batch: Floats) -> Floats:
        """a_max_X of each candidate for a batch of its own: linear in the logarithm of the batch."""
        rows = self._row_of[num_expert_ranks, num_slots]
        if (rows < 0).any():
            self._add_tables(num_expert_ranks[rows < 0], num_slots[rows < 0])
            rows = self._row_of[num_expert_ranks, num_slots]
        log2 = np.clip(np.log2(np.maximum(batch, 1.0)), 0, len(self._batches) - 1)
        low = np.minimum(log2.astype(np.int64), len(self._batches) - 2)
        below, above = self._tables[rows, low], self._tables[rows, low + 1]
        found: Floats = below + (above - below) * (log2 - low)
        return found

    def _grid(self) -> list[int]:
        """Powers of two up to the batch that activates nearly all experts."""
        share = min(self._shares().min(), 1.0)
        sizes = [1, 2]
        while sizes[-1] < 1 << _LARGEST_LOG2:
            if 1 - (1 - share) ** sizes[-1] > _NEARLY_ALL:
                break
            sizes.append(2 * sizes[-1])
        return sizes

    def _shares(self) -> Floats:
        """Probability that a token chooses an expert: the middle one of each layer, so that rare experts do
        not stretch the table.
        """
        shares = [
            np.median(np.bincount(routes.ravel(), minlength=self._routing.num_experts))
            / len(routes)
            for routes in self._routing.windows
        ]
        return np.maximum(np.array(shares), 1e-6)

    def _add_tables(self, num_expert_ranks: Ints, num_slots: Ints) -> None:
        layers = range(len(self._routing.windows))
        found: list[Floats] = []
        for ranks, slots in sorted(
            set(zip(num_expert_ranks.tolist(), num_slots.tolist(), strict=True))
        ):
            means = np.mean([self._layer(index, ranks, slots) for index in layers], axis=0)
            self._row_of[ranks, slots] = len(self._tables) + len(found)
            # More tokens never activate less: what falls is the draws' noise.
            found.append(np.maximum.accumulate(means))
        self._tables = np.concatenate([self._tables, np.array(found)])

    def _layer(self, index: int, num_ranks: int, num_slots: int) -> Floats:
        routing = self._routing
        counts_E, pairs_EE = routing.counts[index], routing.pairs[index]
        placement = make_placement(
            self._kind,
            num_layers=1,
            num_experts=routing.num_experts,
            num_ranks=num_ranks,
            num_slots=num_slots,
            counts_LE=None if counts_E is None else counts_E[None],
            coactivation_LEE=None if pairs_EE is None else pairs_EE[None],
        )
        lists = SlotLists(placement.slots_LRC[0].tolist(), routing.num_experts)
        routes_WK = routing.windows[index]
        if self._library is None:
            counts = np.bincount(routes_WK.ravel(), minlength=routing.num_experts)
            shares_E = counts.astype(np.float64) / len(routes_WK)
            return np.array([a_max_bound(shares_E, lists, batch) for batch in self._batches])
        rng = np.random.default_rng(self._seed)
        means = []
        for batch in self._batches:
            picked_DNK = routes_WK[rng.integers(0, len(routes_WK), (NUM_DRAWS, batch))]
            loads_D = a_max_of_draws(picked_DNK, lists, self._policy, library=self._library)
            means.append(float(loads_D.mean()))
        return np.array(means)
