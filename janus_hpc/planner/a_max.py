"""How many experts the fullest expert rank activates: simulated under a trace, and bounded by a formula.

Knows routes and slots, not where they come from. Needs no torch; with the C library it is about 50 times
faster than in plain Python, with the same values.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from janus_hpc.kernels.assign import assign, nth_host
from janus_hpc.kernels.native.balance_library import BalanceLibrary
from janus_hpc.kernels.slot_lists import SlotLists
from janus_hpc.placement.placement import Placement
from janus_hpc.routing.trace import RoutingTrace

# Legend: W routes of a window, N tokens of a draw, K choices a token, D draws, E experts.

MAX_DRAWS = 256
MAX_RELATIVE_ERROR = 0.01
_DRAWS_AT_ONCE = 32


@dataclass(frozen=True)
class AMax:
    """A mean over draws, its standard error, and how many draws there were."""

    mean: float
    standard_error: float
    num_draws: int


def simulate_a_max(
    routes_WK: npt.NDArray[np.integer],
    lists: SlotLists,
    batch: int,
    *,
    policy: str = "aebs",
    library: BalanceLibrary | None = None,
    seed: int = 0,
    max_draws: int = MAX_DRAWS,
) -> AMax:
    """Mean a_max over batches of tokens drawn from a window (Janus, Appendix A): each draw takes `batch`
    routes, all different while the window has so many, applies the policy and keeps the largest load.

    Draws until the standard error is below MAX_RELATIVE_ERROR of the mean, or max_draws.
    """
    assert batch > 0 and len(routes_WK), f"{batch=} {routes_WK.shape=}"
    rng = np.random.default_rng(seed)
    loads: list[int] = []
    while len(loads) < max_draws:
        count = min(_DRAWS_AT_ONCE, max_draws - len(loads))
        picked_DNK = np.stack([_draw(rng, routes_WK, batch) for _ in range(count)])
        loads += a_max_of_draws(
            picked_DNK, lists, policy, library=library, draw=len(loads)
        ).tolist()
        if _standard_error(loads) <= MAX_RELATIVE_ERROR * float(np.mean(loads)):
            break
    return AMax(float(np.mean(loads)), _standard_error(loads), len(loads))


def a_max_of_draws(
    ids_DNK: npt.NDArray[np.integer],
    lists: SlotLists,
    policy: str,
    *,
    library: BalanceLibrary | None = None,
    draw: int = 0,
) -> npt.NDArray[np.int32]:
    """a_max of each draw's choices. `draw`: the first draw's number, for the policy random."""
    num_draws = len(ids_DNK)
    if library is None:
        loads = [_plain(ids, lists, policy, draw + i) for i, ids in enumerate(ids_DNK)]
        return np.array(loads, dtype=np.int32)
    ids_DN = np.ascontiguousarray(ids_DNK, dtype=np.int32).reshape(num_draws, -1)
    hosts_EW = np.array(lists.host_words(), dtype=np.int64)
    primary_E = np.array(lists.primary, dtype=np.int32)
    a_max_D = np.empty(num_draws, dtype=np.int32)
    scratch = np.empty(3 * lists.num_experts + lists.num_ranks, dtype=np.int32)
    library.a_max(
        policy,
        (ids_DN.ctypes.data, num_draws, ids_DN.shape[1]),
        (lists.num_experts, lists.num_ranks, lists.num_words),
        (hosts_EW.ctypes.data, primary_E.ctypes.data),
        draw,
        (a_max_D.ctypes.data, scratch.ctypes.data),
    )
    return a_max_D


def a_max_bound(shares_E: npt.NDArray[np.float64], lists: SlotLists, batch: int) -> float:
    """An upper estimate of a_max: each rank's expected activated primaries and the balls-into-bins deviation
    of the fullest (Janus, Appendix A, Eq. 4 and 5).

    shares_E: probability that a token chooses an expert; they add up to the choices a token. The slots of a
    rank count as its primaries only, which is what reproduces the paper's figures.
    """
    active_E = 1.0 - (1.0 - np.clip(shares_E, 0.0, 1.0)) ** batch
    expected_R = np.bincount(lists.primary, weights=active_E, minlength=lists.num_ranks)
    num_primaries = int(np.bincount(lists.primary, minlength=lists.num_ranks).max())
    mean = float(expected_R.max())
    return min(num_primaries, mean + math.sqrt(2.0 * mean * math.log(lists.num_ranks))) + 1.0


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


def _draw(
    rng: np.random.Generator, routes_WK: npt.NDArray[np.integer], batch: int
) -> npt.NDArray[np.integer]:
    chosen = rng.choice(len(routes_WK), batch, replace=batch > len(routes_WK), shuffle=False)
    return routes_WK[chosen]


def _standard_error(loads: Sequence[int]) -> float:
    return float(np.std(loads, ddof=1) / math.sqrt(len(loads))) if len(loads) > 1 else math.inf


def _plain(ids_NK: npt.NDArray[np.integer], lists: SlotLists, policy: str, draw: int) -> int:
    """One draw without the C library."""
    counts_E = np.bincount(ids_NK.ravel(), minlength=lists.num_experts)
    active = np.flatnonzero(counts_E).tolist()
    if policy == "eplb":
        used = [nth_host(lists.hosts[e], n) for e in active for n in _turns(lists, counts_E, e)]
        return int(np.bincount(used, minlength=1).max())
    rank_of = assign(policy, active, lists.hosts, lists.primary, lists.num_ranks, draw)
    return int(np.bincount(list(rank_of.values()), minlength=1).max())


def _turns(lists: SlotLists, counts_E: npt.NDArray[np.integer], expert: int) -> range:
    """Which of an expert's replicas get a token when they are served in turn."""
    return range(min(int(counts_E[expert]), lists.hosts[expert].bit_count()))
