"""What a rank does in a run, by its role: the one place that branches on it.

Every part has the same face: `run` until the pending rows are done or a stop is agreed on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from janus_hpc.batcher import Batcher
from janus_hpc.comm.exchange import Exchange, StepHeader
from janus_hpc.comm.make import make_exchange
from janus_hpc.comm.shared_weights import NodeShared
from janus_hpc.core import RowResult
from janus_hpc.engine.active import ActiveSample
from janus_hpc.engine.attention_loop import AttentionLoop, RowSource
from janus_hpc.engine.build import build_attention, build_experts
from janus_hpc.engine.claims import ClaimQueue, RowIds
from janus_hpc.engine.expert_loop import run_expert, serve_layer
from janus_hpc.engine.setup import EngineSetup
from janus_hpc.engine.tallies import Tallies
from janus_hpc.experts.activity import ExpertActivity
from janus_hpc.experts.expert_model import ExpertModel
from janus_hpc.kvcache import BlockPool, KVCache, num_blocks_for
from janus_hpc.models.attention_model import AttentionModel
from janus_hpc.topology import Role, contiguous_experts


@dataclass(frozen=True, kw_only=True)
class RunHooks:
    """What the run's surroundings provide. `make_rows` gets the most tokens one sequence may have cached."""

    make_rows: Callable[[int], RowSource]
    record: Callable[[RowResult], None]
    stop_asked: Callable[[], bool]
    on_step: Callable[[list[StepHeader]], None]


class Part(Protocol):
    """A rank's part of the engine, loaded and ready."""

    @property
    def exchange(self) -> Exchange | None: ...

    @property
    def activity(self) -> ExpertActivity | None: ...

    @property
    def tallies(self) -> Tallies: ...

    def run(self, pending_rows: RowIds, hooks: RunHooks) -> list[StepHeader]:
        """The last step's headers; empty where this rank takes no part. Collective over active ranks."""
        ...


class ParkedPart:
    """Held but unused: waits for the others."""

    exchange = None
    activity = None

    def __init__(self) -> None:
        self.tallies = Tallies()

    def run(self, pending_rows: RowIds, hooks: RunHooks) -> list[StepHeader]:
        return []


class ExpertPart:
    """Serves the attention ranks' tokens."""

    def __init__(self, setup: EngineSetup, exchange: Exchange, experts: ExpertModel) -> None:
        self.setup = setup
        self.exchange = exchange
        self.experts = experts
        self.activity = experts.activity
        self.tallies = Tallies()

    def run(self, pending_rows: RowIds, hooks: RunHooks) -> list[StepHeader]:
        note = _noter(self.setup)
        with torch.inference_mode():
            return run_expert(self.exchange, self.experts, hooks.stop_asked, note, hooks.on_step)


class AttentionPart:
    """Answers rows. `while_away` runs while a layer's tokens are at the experts."""

    def __init__(
        self,
        setup: EngineSetup,
        exchange: Exchange,
        model: AttentionModel,
        activity: ExpertActivity | None,
        while_away: Callable[[int, int], None],
    ) -> None:
        self.setup = setup
        self.exchange = exchange
        self.model = model
        self.activity = activity
        self.while_away = while_away
        self.tallies = Tallies()
        config = setup.config
        num_blocks = num_blocks_for(
            setup.spec,
            setup.kv_bytes,
            config.block_size,
            setup.dtype,
            config.max_sequences * setup.max_context,
        )
        self.cache = KVCache(setup.spec, num_blocks, config.block_size, setup.dtype, setup.device)

    def run(self, pending_rows: RowIds, hooks: RunHooks) -> list[StepHeader]:
        config = self.setup.config
        batcher: Batcher[ActiveSample] = Batcher(
            BlockPool(self.cache.num_blocks),
            config.block_size,
            config.max_step_tokens,
            config.max_sequences,
        )
        topology = self.setup.topology
        role_rank = topology.attention_ranks.index(self.setup.world.world_rank)
        loop = AttentionLoop(
            model=self.model,
            cache=self.cache,
            batcher=batcher,
            exchange=self.exchange,
            claims=ClaimQueue(pending_rows, role_rank),
            rows=hooks.make_rows(batcher.capacity_tokens),
            record=hooks.record,
            while_away=self.while_away,
            stop_asked=hooks.stop_asked,
            on_step=hooks.on_step,
            note=_noter(self.setup),
        )
        self.tallies = loop.tallies
        with torch.inference_mode():
            return loop.run()


def load_part(setup: EngineSetup) -> Part:
    """Read this rank's weights and join the exchange. Collective over the world."""
    role = setup.role
    shared = NodeShared(setup.world, role.value)
    if role is Role.PARKED:
        return ParkedPart()
    if role is Role.EXPERT:
        experts = _experts(setup, shared)
        return ExpertPart(setup, _exchange(setup), experts)
    model = build_attention(
        setup.spec, setup.ops, setup.reader, shared, setup.dtype, setup.device, setup.max_context
    )
    if role is Role.ATTENTION:
        return AttentionPart(setup, _exchange(setup), model, None, lambda layer, microbatch: None)
    experts = _experts(setup, shared)
    exchange = _exchange(setup)
    return AttentionPart(
        setup,
        exchange,
        model,
        experts.activity,
        lambda layer, microbatch: serve_layer(exchange, experts, layer, microbatch),
    )


def _experts(setup: EngineSetup, shared: NodeShared) -> ExpertModel:
    ranks = setup.topology.expert_ranks
    return build_experts(
        setup.spec,
        setup.ops,
        setup.reader,
        shared,
        setup.dtype,
        setup.device,
        contiguous_experts(setup.spec.moe.num_experts, len(ranks)),
        ranks.index(setup.world.world_rank),
    )


def _exchange(setup: EngineSetup) -> Exchange:
    return make_exchange(
        setup.world,
        setup.topology,
        kind=setup.config.exchange,
        hidden=setup.spec.hidden,
        row_dtype=setup.dtype,
        max_tokens_per_rank=setup.config.max_step_tokens,
        timeout_s=setup.config.comm_timeout_s,
    )


def _noter(setup: EngineSetup) -> Callable[[str], None]:
    def note(where: str) -> None:
        setup.world.where = where

    return note
