"""What balancing policies come to and what a decision takes, over drawn routing; one rank, no exchange.

Knows kernels and placements; owns the draws.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from janus_hpc.bench.exact_balance import exact_a_max
from janus_hpc.errors import UsageError
from janus_hpc.kernels.ops import Ops
from janus_hpc.kernels.slot_lists import SlotLists
from janus_hpc.kernels.slot_map import SlotMap
from janus_hpc.placement.make import KINDS, make_placement
from janus_hpc.planner.a_max import a_max_bound
from janus_hpc.routing.trace import RoutingTrace
from janus_hpc.routing.trace_file import read_trace

# Legend: D draws, N tokens of a draw, K choices a token, E experts, R expert ranks, C slots.

PLACEMENTS = ("dealt", "random", *KINDS)
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class BalanceOptions:
    """The sweep. `routing`: uniform, zipf:S or trace:FILE; `layer`: index of the trace's layer."""

    num_experts: int
    top_k: int
    num_slots: int
    expert_ranks: Sequence[int]
    batches: Sequence[int]
    routing: str
    layer: int
    policies: Sequence[str]
    placement: str
    num_draws: int
    seed: int


@dataclass(frozen=True)
class RouteSource:
    """Where draws come from: chances of the experts, or a layer's window of routes and what it counted."""

    chances_E: npt.NDArray[np.float64]
    routes_WK: npt.NDArray[np.integer] | None = None
    counts_E: npt.NDArray[np.int64] | None = None
    coactivation_EE: npt.NDArray[np.int64] | None = None

    def draws(
        self, rng: np.random.Generator, num_draws: int, num_tokens: int, top_k: int
    ) -> npt.NDArray[np.int32]:
        """ids_DNK, distinct and ascending in a token."""
        if self.routes_WK is not None:
            picked = rng.integers(len(self.routes_WK), size=(num_draws, num_tokens))
            return np.sort(self.routes_WK[picked], axis=2).astype(np.int32)
        # The largest of log chance + Gumbel noise are a sample without replacement.
        noise = rng.gumbel(size=(num_draws, num_tokens, len(self.chances_E)))
        keys = np.log(self.chances_E) + noise
        best = np.argpartition(-keys, top_k - 1, axis=2)[:, :, :top_k]
        return np.sort(best, axis=2).astype(np.int32)


def run_balance(ops: Ops, device: torch.device, options: BalanceOptions) -> list[Record]:
    """A record for every number of expert ranks, batch and policy. UsageError for what does not fit."""
    routing, top_k = make_routing(options)
    records = []
    for num_ranks in options.expert_ranks:
        slots_RC = place(options, routing, num_ranks)
        lists = SlotLists(slots_RC.tolist(), len(routing.chances_E))
        for batch in options.batches:
            rng = np.random.default_rng((options.seed, num_ranks, batch))
            ids_DNK = routing.draws(rng, options.num_draws, batch, top_k)
            records += _measure(ops, device, options, lists, ids_DNK, routing.chances_E)
    return records


def make_routing(options: BalanceOptions) -> tuple[RouteSource, int]:
    """Where to draw from, and the choices a token. UsageError for an unknown or unreadable routing."""
    kind, _, argument = options.routing.partition(":")
    if kind == "trace":
        return _from_trace(read_trace(Path(argument)), options)
    if options.top_k > options.num_experts:
        raise UsageError(f"--top-k {options.top_k}: more than --experts {options.num_experts}")
    ranks_E = np.arange(1, options.num_experts + 1, dtype=np.float64)
    if kind == "uniform" and not argument:
        return RouteSource(np.ones_like(ranks_E)), options.top_k
    try:
        weights_E = ranks_E ** -float(argument)
        if kind != "zipf" or not np.isfinite(weights_E).all():
            raise ValueError
    except ValueError as error:
        wanted = "expected uniform, zipf:S with a number S, or trace:FILE"
        raise UsageError(f"--routing {options.routing!r}: {wanted}") from error
    shuffled_E = np.random.default_rng(options.seed).permutation(weights_E)
    counts_E = np.round(shuffled_E / shuffled_E.sum() * 1e6).astype(np.int64)
    return RouteSource(shuffled_E, counts_E=counts_E), options.top_k


def _from_trace(trace: RoutingTrace, options: BalanceOptions) -> tuple[RouteSource, int]:
    index = options.layer
    if index >= len(trace.layer_ids) or not trace.num_routes_L[index]:
        raise UsageError(f"--layer {index}: the trace has no routes of such a layer")
    counts_E = trace.counts_LE[index]
    routing = RouteSource(
        np.maximum(counts_E, 1e-9).astype(np.float64),
        trace.routes_NK(index),
        counts_E,
        trace.coactivation_LEE[index],
    )
    return routing, trace.top_k


def place(options: BalanceOptions, routing: RouteSource, num_ranks: int) -> npt.NDArray[np.int32]:
    """slots_RC. UsageError where the slots do not fit the experts."""
    num_experts = len(routing.chances_E)
    counts_E, pairs_EE = routing.counts_E, routing.coactivation_EE
    slots_LRC = make_placement(
        options.placement if options.placement in KINDS else "contiguous",
        num_layers=1,
        num_experts=num_experts,
        num_ranks=num_ranks,
        num_slots=options.num_slots,
        counts_LE=None if counts_E is None else counts_E[None],
        coactivation_LEE=None if pairs_EE is None else pairs_EE[None],
    ).slots_LRC
    if options.placement == "random":
        return random_placement(num_experts, num_ranks, options.num_slots, options.seed)
    if options.placement == "dealt":
        return dealt_placement(num_experts, num_ranks, options.num_slots)
    slots_RC: npt.NDArray[np.int32] = slots_LRC[0]
    return slots_RC


def dealt_placement(num_experts: int, num_ranks: int, num_slots: int) -> npt.NDArray[np.int32]:
    """slots_RC: as many replicas of every expert, the first ones one more, dealt in id order to ranks in turn."""
    each, num_more = divmod(num_ranks * num_slots, num_experts)
    replicas_E = np.full(num_experts, each)
    replicas_E[:num_more] += 1
    experts_S = np.repeat(np.arange(num_experts, dtype=np.int32), replicas_E)
    slots_RC: npt.NDArray[np.int32] = experts_S.reshape(num_slots, num_ranks).T
    return slots_RC


def random_placement(
    num_experts: int, num_ranks: int, num_slots: int, seed: int
) -> npt.NDArray[np.int32]:
    """slots_RC: every expert once, dealt out in random order, then random others in the spare slots."""
    rng = np.random.default_rng((seed, num_ranks))
    order_E = rng.permutation(num_experts)
    slots_RC = np.empty((num_ranks, num_slots), dtype=np.int32)
    for expert_rank in range(num_ranks):
        first = order_E[expert_rank::num_ranks]
        others = np.setdiff1d(np.arange(num_experts), first)
        spare = rng.choice(others, num_slots - len(first), replace=False)
        slots_RC[expert_rank] = np.concatenate([first, spare])
    return slots_RC


def _measure(
    ops: Ops,
    device: torch.device,
    options: BalanceOptions,
    lists: SlotLists,
    ids_DNK: npt.NDArray[np.int32],
    chances_E: npt.NDArray[np.float64],
) -> list[Record]:
    slot_map = SlotMap.make(lists, device)
    hosts_ER = np.array(lists.slot_of_ER).reshape(lists.num_experts, -1) >= 0
    exact = None
    if find_spec("scipy") is not None:
        exact = float(np.mean([exact_a_max(np.unique(ids).tolist(), hosts_ER) for ids in ids_DNK]))
    shares_E = np.bincount(ids_DNK.ravel(), minlength=lists.num_experts) / ids_DNK[..., 0].size
    facts = {
        "expert_ranks": lists.num_ranks,
        "slots": lists.num_slots,
        "experts": lists.num_experts,
        "top_k": ids_DNK.shape[2],
        "batch": ids_DNK.shape[1],
        "routing": options.routing,
        "placement": options.placement,
        "draws": len(ids_DNK),
        "kernels": ops.name,
    }
    records = []
    for policy in options.policies:
        loads_DR, times_s = _decide(ops, device, slot_map, policy, ids_DNK)
        mean = float(loads_DR.max(axis=1).mean())
        records.append(
            facts
            | {
                "policy": policy,
                "mean_a_max": mean,
                "mean_exact": exact,
                "over_exact": None if exact is None else mean / exact,
                "mean_activated": float(loads_DR.sum(axis=1).mean()),
                "bound": a_max_bound(shares_E, lists, ids_DNK.shape[1]),
                "time_us": statistics.median(times_s) * 1e6,
            }
        )
    return records


def _decide(
    ops: Ops,
    device: torch.device,
    slot_map: SlotMap,
    policy: str,
    ids_DNK: npt.NDArray[np.int32],
) -> tuple[npt.NDArray[np.int32], list[float]]:
    """loads_DR, and seconds of every draw's decision; the first one is made twice, to warm up."""
    ids_on = [torch.from_numpy(ids).to(device) for ids in ids_DNK]
    ops.balance(ids_on[0], slot_map, policy, 0)
    loads, times_s = [], []
    for draw, ids_NK in enumerate(ids_on):
        _wait_for(device)
        started_s = time.perf_counter()
        balanced = ops.balance(ids_NK, slot_map, policy, draw)
        _wait_for(device)
        times_s.append(time.perf_counter() - started_s)
        loads.append(balanced.loads_R.cpu().numpy())
    return np.stack(loads), times_s


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
