"""What a rank does in a run, by its role: the one place that branches on it.

Every part has the same face: `run` until the rows of a batch are done or a stop is agreed on.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from janus_hpc.batcher import Batcher
from janus_hpc.comm.exchange import Exchange, StepHeader
from janus_hpc.comm.shared_weights import NodeShared
from janus_hpc.core import RowResult
from janus_hpc.engine.active import ActiveSample
from janus_hpc.engine.attention_loop import AttentionLoop, RowSource
from janus_hpc.engine.build import build_attention, build_gate
from janus_hpc.engine.claims import ClaimQueue, RowIds
from janus_hpc.engine.crossing import choose_crossing
from janus_hpc.engine.expert_loop import run_expert, serve_layer
from janus_hpc.engine.join import Joined, Loaded, join
from janus_hpc.engine.setup import EngineSetup
from janus_hpc.engine.tallies import Tallies
from janus_hpc.experts.balancer import Balancer
from janus_hpc.experts.expert_model import ExpertModel
from janus_hpc.experts.gate import Gate
from janus_hpc.experts.route_sampler import RouteSampler
from janus_hpc.experts.routed_gate import RoutedGate
from janus_hpc.kvcache import BlockPool, KVCache, num_blocks_for
from janus_hpc.models.attention_model import AttentionModel


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
    def joined(self) -> Joined: ...

    @property
    def loaded(self) -> Loaded: ...

    @property
    def tallies(self) -> Tallies: ...

    def run(self, rows: RowIds, hooks: RunHooks) -> list[StepHeader]:
        """Answer a batch of rows; the last step's headers, empty where this rank takes no part.

        Collective over active ranks.
        """
        ...


class ParkedPart:
    """Held but unused: waits for the others."""

    def __init__(self, joined: Joined, loaded: Loaded) -> None:
        self.joined = joined
        self.loaded = loaded
        self.tallies = Tallies()

    def run(self, rows: RowIds, hooks: RunHooks) -> list[StepHeader]:
        return []


class ExpertPart:
    """Serves the attention ranks' tokens."""

    def __init__(
        self,
        setup: EngineSetup,
        joined: Joined,
        loaded: Loaded,
        exchange: Exchange,
        experts: ExpertModel,
    ) -> None:
        self.setup = setup
        self.joined = joined
        self.loaded = loaded
        self.exchange = exchange
        self.experts = experts
        self.tallies = Tallies()

    def run(self, rows: RowIds, hooks: RunHooks) -> list[StepHeader]:
        note = _noter(self.setup)
        with torch.inference_mode():
            return run_expert(
                self.exchange,
                self.experts,
                self.joined.microbatches.num,
                hooks.stop_asked,
                note,
                hooks.on_step,
            )


class AttentionPart:
    """Answers rows. `while_away` runs while a layer's tokens are at the experts."""

    def __init__(
        self,
        setup: EngineSetup,
        joined: Joined,
        loaded: Loaded,
        exchange: Exchange,
        model: AttentionModel,
        cache: KVCache,
        while_away: Callable[[int, int], None],
    ) -> None:
        self.setup = setup
        self.joined = joined
        self.loaded = loaded
        self.exchange = exchange
        self.model = model
        self.cache = cache
        self.while_away = while_away
        self.tallies = Tallies()

    def run(self, rows: RowIds, hooks: RunHooks) -> list[StepHeader]:
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
            num_microbatches=self.joined.microbatches.num,
            gate=self.loaded.gate,
            claims=ClaimQueue(rows, role_rank),
            rows=hooks.make_rows(batcher.capacity_tokens),
            record=hooks.record,
            while_away=self.while_away,
            stop_asked=hooks.stop_asked,
            on_step=hooks.on_step,
            note=_noter(self.setup),
            tallies=self.tallies,
        )
        with torch.inference_mode():
            return loop.run()


def load_part(setup: EngineSetup) -> Part:
    """Read this rank's weights and join the exchange. Collective over the world."""
    role = setup.role
    crossing = choose_crossing(setup)
    loaded = _load(setup)
    joined = join(setup, loaded, crossing)
    if joined.exchange is None:
        return ParkedPart(joined, loaded)
    model, cache, experts = loaded.model, loaded.cache, loaded.experts
    if model is None or cache is None:
        assert experts is not None, f"{role=}"
        return ExpertPart(setup, joined, loaded, joined.exchange, experts)
    return AttentionPart(
        setup,
        joined,
        loaded,
        joined.exchange,
        model,
        cache,
        partial(_serve_own, joined.exchange, experts),
    )


def _load(setup: EngineSetup) -> Loaded:
    """What the role needs of the model. Collective over a node's ranks of the role."""
    role, spec, ops, reader = setup.role, setup.spec, setup.ops, setup.reader
    shared = NodeShared(setup.world, role.value)
    model: AttentionModel | None = None
    cache: KVCache | None = None
    gate: RoutedGate | None = None
    experts: ExpertModel | None = None
    if role.does_attention:
        model = build_attention(
            spec, ops, reader, shared, setup.dtype, setup.device, setup.max_context
        )
        cache = _cache(setup)
    routes_here = role.does_attention and setup.config.gate == "agate"
    if role.does_experts or routes_here:
        plain_gate = build_gate(spec, ops, reader, shared, setup.device)
        if routes_here:
            gate = RoutedGate(plain_gate, _balancer(setup), _sampler(setup))
        if role.does_experts:
            experts = _experts(setup, plain_gate)
    return Loaded(model=model, cache=cache, gate=gate, experts=experts)


def _experts(setup: EngineSetup, gate: Gate) -> ExpertModel:
    expert_rank = setup.topology.expert_ranks.index(setup.world.world_rank)
    return ExpertModel(
        setup.spec,
        setup.ops,
        gate,
        _balancer(setup),
        expert_rank,
        reader=setup.reader,
        dtype=setup.dtype,
        device=setup.device,
        # All expert ranks that route see the same choices.
        sampler=_sampler(setup) if expert_rank == 0 else None,
    )


def _balancer(setup: EngineSetup) -> Balancer:
    return Balancer(
        setup.ops,
        setup.placement,
        setup.spec.sparse_layers,
        setup.config.balance,
        setup.config.seed,
        setup.device,
    )


def _sampler(setup: EngineSetup) -> RouteSampler:
    moe = setup.spec.moe
    return RouteSampler(setup.spec.sparse_layers, moe.num_experts, moe.top_k)


def _cache(setup: EngineSetup) -> KVCache:
    config = setup.config
    num_blocks = num_blocks_for(
        setup.spec,
        setup.kv_bytes,
        config.block_size,
        setup.dtype,
        config.max_sequences * setup.max_context,
    )
    return KVCache(setup.spec, num_blocks, config.block_size, setup.dtype, setup.device)


def _serve_own(
    exchange: Exchange, experts: ExpertModel | None, layer: int, microbatch: int
) -> None:
    """What a rank with both roles does while its tokens are away; nothing on one without experts."""
    if experts is not None:
        serve_layer(exchange, experts, layer, microbatch)


def _noter(setup: EngineSetup) -> Callable[[str], None]:
    def note(where: str) -> None:
        setup.world.where = where

    return note
