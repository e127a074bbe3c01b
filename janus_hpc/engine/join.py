"""Joins a rank to its run's exchange: of which kind, for how many microbatches, and how fast it is.

The number of microbatches is the one asked for, or for `auto` what `planner.pingpong` makes of times
measured here; the kind is `engine.crossing`'s choice.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from janus_hpc.comm.exchange import Exchange
from janus_hpc.comm.make import make_exchange
from janus_hpc.comm.staged.make import GateRules
from janus_hpc.engine.crossing import Crossing
from janus_hpc.engine.setup import EngineSetup, use_threads
from janus_hpc.engine.warmup import attention_layers, exchange_round_s, expert_layers, seconds_each
from janus_hpc.errors import UsageError
from janus_hpc.experts.expert_model import ExpertModel
from janus_hpc.experts.routed_gate import RoutedGate
from janus_hpc.kvcache import KVCache
from janus_hpc.models.attention_model import AttentionModel
from janus_hpc.planner.pingpong import StageTimes, choose_microbatches
from janus_hpc.topology import Role


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What this rank holds of the model; None for what its role does not need.

    `gate`: where tokens are routed on the attention side, its gate.
    """

    model: AttentionModel | None = None
    cache: KVCache | None = None
    gate: RoutedGate | None = None
    experts: ExpertModel | None = None

    def reset(self) -> None:
        """Forget what was computed to warm up."""
        for its in (self.experts, self.gate):
            if its is not None:
                its.reset()


@dataclass(frozen=True, kw_only=True)
class Microbatches:
    """How many a step has, and why: the same on every rank. And how many threads this rank computes with."""

    num: int
    why: str
    num_threads: int
    threads_why: str


@dataclass(frozen=True, kw_only=True)
class Joined:
    """The exchange, None on a parked rank, and how it came to it. `measured_s`: seconds of a round
    with `crossing.num_tokens` tokens of each attention rank, before the first step; the slowest
    rank's.
    """

    exchange: Exchange | None
    crossing: Crossing
    microbatches: Microbatches
    measured_s: float

    @property
    def kind(self) -> str:
        """The exchange's kind; empty on a parked rank."""
        return "" if self.exchange is None else self.exchange.kind

    def facts(self) -> dict[str, Any]:
        """For the results file and the benchmark's records."""
        return {
            "exchange": self.kind,
            "exchange_why": "" if self.exchange is None else self.exchange.why,
            "exchange_tokens": self.crossing.num_tokens,
            "exchange_predicted_s": dict(self.crossing.predicted_s),
            "exchange_measured_s": self.measured_s,
            "gate": "" if self.exchange is None else self.exchange.gate,
            "microbatches": self.microbatches.num,
            "microbatches_why": self.microbatches.why,
            "threads_per_rank": self.microbatches.num_threads,
            "threads_why": self.microbatches.threads_why,
        }


def join(setup: EngineSetup, loaded: Loaded, crossing: Crossing) -> Joined:
    """Choose the number of microbatches, join the exchange and time it. Collective over the world.

    With `auto` on a split with both roles it computes for about a second.
    """
    microbatches, exchange = _settle(setup, loaded, crossing)
    with torch.inference_mode():
        round_s = _round_s(setup, loaded, exchange, crossing.num_tokens)
    loaded.reset()
    return Joined(
        exchange=exchange,
        crossing=crossing,
        microbatches=microbatches,
        measured_s=max(setup.world.allgather(round_s)),
    )


def rejoin(setup: EngineSetup, crossing: Crossing, num_microbatches: int, why: str) -> Joined:
    """Join the exchange of another split, for a decided number of microbatches. Collective over the world.

    Nothing is measured: `measured_s` is NaN.
    """
    microbatches = _microbatches(setup, num_microbatches, why)
    return Joined(
        exchange=_join(setup, crossing, microbatches.num),
        crossing=crossing,
        microbatches=microbatches,
        measured_s=math.nan,
    )


def _settle(
    setup: EngineSetup, loaded: Loaded, crossing: Crossing
) -> tuple[Microbatches, Exchange | None]:
    asked = setup.config.microbatches
    exchange: Exchange | None = None
    # On every rank alike, parked ones included: they are part of the agreement.
    has_joined = False
    if Role.COLOCATED in setup.topology.roles and asked != "1":
        num, why = 1, "colocated ranks compute in turn what they would overlap"
        why += "" if asked == "auto" else f", {asked} asked for"
    elif asked != "auto":
        num, why = int(asked), "asked for"
    elif crossing.num_tokens < 2:
        num, why = 1, "steps have one token a rank"
    else:
        exchange = _join(setup, crossing, 1)
        num, why = choose_microbatches(_measure(setup, loaded, exchange, crossing.num_tokens))
        has_joined = num == 1
        if exchange is not None and not has_joined:
            exchange.free()
    chosen = _microbatches(setup, num, why)
    return chosen, exchange if has_joined else _join(setup, crossing, num)


def _microbatches(setup: EngineSetup, num: int, why: str) -> Microbatches:
    """This rank computes with the threads that go with the number from now on."""
    threads, threads_why = setup.num_threads, setup.threads_why
    if num > 1:
        threads, threads_why = setup.num_threads_at_once, setup.threads_at_once_why
    use_threads(setup.ops, threads)
    return Microbatches(num=num, why=why, num_threads=threads, threads_why=threads_why)


def _join(setup: EngineSetup, crossing: Crossing, num_microbatches: int) -> Exchange | None:
    """None on a parked rank. Collective over the world; UsageError on all ranks alike."""
    exchange, error = None, None
    if setup.role is not Role.PARKED:
        try:
            exchange = _make(setup, crossing, num_microbatches)
        except UsageError as problem:
            error = problem
    setup.world.agree(error)
    return exchange


def _make(setup: EngineSetup, crossing: Crossing, num_microbatches: int) -> Exchange:
    return make_exchange(
        setup.world,
        setup.topology,
        kind=crossing.kind,
        hidden=setup.spec.hidden,
        row_dtype=setup.dtype,
        max_tokens_per_rank=setup.config.max_step_tokens,
        timeout_s=setup.config.comm_timeout_s,
        num_microbatches=num_microbatches,
        gate=setup.config.gate,
        rules=GateRules(top_k=setup.spec.moe.top_k),
        inter=crossing.inter,
        inter_why=crossing.inter_why,
        chosen_why=crossing.why,
        device=setup.device,
        ucx_settings=setup.ucx_settings,
    )


def _measure(
    setup: EngineSetup, loaded: Loaded, exchange: Exchange | None, whole: int
) -> StageTimes:
    """The slowest rank's times of each stage, the same on every rank. Collective over the world."""
    world, half = setup.world, whole // 2
    with torch.inference_mode():
        # One role after the other, as with one microbatch; then both at once, as with several.
        use_threads(setup.ops, setup.num_threads)
        world.barrier()
        attention_s = [_attention_s(setup, loaded, whole)]
        world.barrier()
        experts_s = [_experts_s(setup, loaded, whole)]
        use_threads(setup.ops, setup.num_threads_at_once)
        world.barrier()
        attention_s.append(_attention_s(setup, loaded, half))
        experts_s.append(_experts_s(setup, loaded, half))
        world.barrier()
        exchange_s = [_round_s(setup, loaded, exchange, tokens) for tokens in (whole, half)]
    mine = (*attention_s, *experts_s, *exchange_s)
    slowest = [max(of_ranks) for of_ranks in zip(*world.allgather(mine), strict=True)]
    return StageTimes(
        attention_s=(slowest[0], slowest[1]),
        experts_s=(slowest[2], slowest[3]),
        exchange_s=(slowest[4], slowest[5]),
        num_layers=len(setup.spec.sparse_layers),
    )


def _attention_s(setup: EngineSetup, loaded: Loaded, num_tokens: int) -> float:
    """Seconds a layer; 0 on a rank that does no attention."""
    if loaded.model is None or loaded.cache is None:
        return 0.0
    layers = attention_layers(loaded.model, loaded.cache, num_tokens)
    return seconds_each(layers, setup.device)


def _experts_s(setup: EngineSetup, loaded: Loaded, num_tokens: int) -> float:
    """Seconds a layer for so many tokens of each attention rank; 0 on a rank that has no experts."""
    if loaded.experts is None:
        return 0.0
    num_rows = num_tokens * len(setup.topology.attention_ranks)
    return seconds_each(expert_layers(loaded.experts, num_rows, setup.dtype), setup.device)


def _round_s(
    setup: EngineSetup, loaded: Loaded, exchange: Exchange | None, num_tokens: int
) -> float:
    """Seconds a round of the exchange takes as an attention rank sees it; 0 on other ranks.

    Collective over the active ranks.
    """
    if exchange is None:
        return 0.0
    return exchange_round_s(
        exchange,
        setup.spec.sparse_layers,
        role=setup.role,
        num_tokens=num_tokens,
        hidden=setup.spec.hidden,
        row_dtype=setup.dtype,
        gate=loaded.gate,
    )
