"""Times of whole layers inside a node, computed and exchanged, under several splits of the first node's ranks.

What they take beyond both stages is the exchange: ranks that have waited for long wake later than in rounds
without computing, and those that share cores begin one after the other.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from janus_hpc.comm.exchange import Exchange, StepHeader
from janus_hpc.comm.make import make_exchange
from janus_hpc.comm.pulse import Pulse
from janus_hpc.engine.expert_loop import serve_layer
from janus_hpc.engine.interleave import send_tokens
from janus_hpc.engine.measure.bed import Bed
from janus_hpc.engine.measure.experts import PinnedGate, choices, make_experts, own_choices
from janus_hpc.engine.measure.pace import usual_s
from janus_hpc.engine.warmup import CONTEXT, attention_layers
from janus_hpc.errors import UsageError
from janus_hpc.experts.expert_model import ExpertModel
from janus_hpc.topology import Role, Topology


@dataclass(frozen=True, kw_only=True)
class RoundTimes:
    """Seconds of a layer with `rows` of each attention rank, `context` tokens behind each; the expert ranks get
    `own_rows` for `activated` experts each.
    """

    num_attention: int
    num_expert: int
    rows: int
    colocated: bool
    context: int
    activated: int
    own_rows: int
    seconds: float


def round_times(bed: Bed, timeout_s: float) -> tuple[list[RoundTimes], float]:
    """All points, and the longest time of joining and freeing. Collective over the world."""
    found: list[RoundTimes] = []
    label, joined_s = bed.world.label, []
    gate = PinnedGate(bed.gate)
    experts = make_experts(bed, gate)
    for num_attention, num_expert in _splits(bed.world.node_ids.count(0)):
        topology = bed.world.topology(_roles(bed, num_attention, num_expert))
        role = topology.roles[bed.world.world_rank]
        bed.use_threads(max(topology.roles.count(role), 1))
        started_s = time.perf_counter()
        exchange = _join(bed, topology, timeout_s)
        seconds = time.perf_counter() - started_s
        own = own_choices(bed, 1 / (num_expert or num_attention))
        for rows in bed.effort.rows:
            ids_NK = choices(bed, num_attention * rows, own, bed.placement.num_slots)
            gate.ids_NK = ids_NK.to(bed.device)
            here = ids_NK[ids_NK < bed.placement.num_slots]
            bed.world.barrier()
            mine = [] if exchange is None else _layers_s(bed, exchange, experts, role, rows)
            found.append(
                RoundTimes(
                    num_attention=num_attention,
                    num_expert=num_expert or num_attention,
                    rows=rows,
                    colocated=not num_expert,
                    context=min(CONTEXT, bed.max_context),
                    activated=len(here.unique()),
                    own_rows=len(here),
                    seconds=max(usual_s(its) for its in bed.world.allgather(mine) if its),
                )
            )
        started_s = time.perf_counter()
        if exchange is not None:
            exchange.free()
        joined_s += bed.world.allgather(seconds + time.perf_counter() - started_s)
        experts.reset()
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


def _layers_s(
    bed: Bed, exchange: Exchange, experts: ExpertModel, role: Role, rows: int
) -> list[float]:
    """Seconds of each layer as an attention rank sees it; empty on an expert rank. Collective over the active.

    The first step is not timed, nor are layers with something beside a sparse layer.
    """
    times_s: list[float] = []
    header = StepHeader(rows) if role.does_attention else None
    x_TD = torch.randn((rows, bed.spec.hidden)).to(bed.device, bed.dtype)
    layers, pulse = bed.spec.sparse_layers, Pulse()
    work = attention_layers(bed.model, bed.cache, rows)
    with torch.inference_mode():
        for step in range(bed.effort.passes + 1):
            exchange.open_step(header)
            for index, layer in enumerate(layers):
                started_s = time.perf_counter()
                if role.does_attention:
                    next(work)
                    send_tokens(exchange, None, layer, 0, x_TD)
                if role.does_experts:
                    serve_layer(exchange, experts, pulse, layer, 0)
                if role.does_attention:
                    exchange.recv_outputs(layer, 0)
                    if step and index > bed.spec.num_layers - len(layers):
                        times_s.append(time.perf_counter() - started_s)
            exchange.settle()
    return times_s
