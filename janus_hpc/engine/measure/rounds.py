"""Times of the exchange inside a node: real rounds under several splits of the first node's ranks.

Knows nothing of what is computed between rounds.
"""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from janus_hpc.comm.exchange import Exchange
from janus_hpc.comm.make import make_exchange
from janus_hpc.engine.measure.bed import Bed
from janus_hpc.engine.warmup import exchange_round_s
from janus_hpc.errors import UsageError
from janus_hpc.topology import Role, Topology


@dataclass(frozen=True, kw_only=True)
class RoundTimes:
    """Seconds of a layer's exchange, there and back, with `rows` of each attention rank."""

    num_attention: int
    num_expert: int
    rows: int
    colocated: bool
    seconds: float


def round_times(bed: Bed, timeout_s: float) -> tuple[list[RoundTimes], float]:
    """All points, and the longest time of joining and freeing. Collective over the world."""
    found: list[RoundTimes] = []
    label, joined_s = bed.world.label, []
    bed.use_threads(bed.world.num_local)
    for num_attention, num_expert in _splits(bed.world.node_ids.count(0)):
        topology = bed.world.topology(_roles(bed, num_attention, num_expert))
        started_s = time.perf_counter()
        exchange = _join(bed, topology, timeout_s)
        seconds = time.perf_counter() - started_s
        for rows in bed.effort.rows:
            mine = [_round_s(bed, exchange, topology, rows) for _ in range(bed.effort.passes)]
            slowest = [max(its) for its in zip(*bed.world.allgather(mine), strict=True)]
            found.append(
                RoundTimes(
                    num_attention=num_attention,
                    num_expert=num_expert or num_attention,
                    rows=rows,
                    colocated=not num_expert,
                    seconds=statistics.median(slowest),
                )
            )
        started_s = time.perf_counter()
        if exchange is not None:
            exchange.free()
        joined_s += bed.world.allgather(seconds + time.perf_counter() - started_s)
    bed.world.label = label
    return found, max(joined_s, default=0.0)


def _splits(num_ranks: int) -> Sequence[tuple[int, int]]:
    """Attention and expert ranks; no expert ranks: colocated."""
    if num_ranks < 2:
        return []
    half = num_ranks // 2
    wanted = [
        (1, num_ranks - 1),
        (num_ranks - 1, 1),
        (half, num_ranks - half),
        (1, 1),
        (num_ranks, 0),
    ]
    return sorted(set(wanted))


def _roles(bed: Bed, num_attention: int, num_expert: int) -> list[Role]:
    """The first ranks of node 0 take part, all others are parked."""
    first = Role.ATTENTION if num_expert else Role.COLOCATED
    roles = iter([first] * num_attention + [Role.EXPERT] * num_expert)
    return [Role.PARKED if node else next(roles, Role.PARKED) for node in bed.world.node_ids]


def _join(bed: Bed, topology: Topology, timeout_s: float) -> Exchange | None:
    exchange, error = None, None
    if topology.roles[bed.world.world_rank] is not Role.PARKED:
        try:
            exchange = make_exchange(
                bed.world,
                topology,
                hidden=bed.spec.hidden,
                row_dtype=bed.dtype,
                max_tokens_per_rank=max(bed.effort.rows),
                timeout_s=timeout_s,
                device=bed.device,
                ucx_settings=bed.env.ucx_settings,
            )
        except UsageError as problem:
            error = problem
    bed.world.agree(error)
    return exchange


def _round_s(bed: Bed, exchange: Exchange | None, topology: Topology, rows: int) -> float:
    bed.world.barrier()
    if exchange is None:
        return 0.0
    with torch.inference_mode():
        return exchange_round_s(
            exchange,
            bed.spec.sparse_layers,
            role=topology.roles[bed.world.world_rank],
            num_tokens=rows,
            hidden=bed.spec.hidden,
            row_dtype=bed.dtype,
            gate=None,
        )
