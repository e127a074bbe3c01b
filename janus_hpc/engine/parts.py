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
from janus_hpc.comm.pulse import Pulse
from janus_hpc.core import RowProgress, RowResult
from janus_hpc.engine.active import ActiveSample
from janus_hpc.engine.attention_loop import AttentionLoop, RowSource
from janus_hpc.engine.claims import ClaimQueue, RowIds
from janus_hpc.engine.crossing import CostSource, choose_crossing
from janus_hpc.engine.ending import NO_HORIZON, Horizon
from janus_hpc.engine.expert_loop import run_expert, serve_layer
from janus_hpc.engine.held import Held
from janus_hpc.engine.join import Joined, Loaded, join, rejoin
from janus_hpc.engine.setup import EngineSetup
from janus_hpc.engine.tallies import Tallies
from janus_hpc.experts.balancer import Balancer
from janus_hpc.experts.expert_model import ExpertModel
from janus_hpc.experts.route_sampler import RouteSampler
from janus_hpc.experts.routed_gate import RoutedGate
from janus_hpc.kvcache import BlockPool, KVCache, num_blocks_for
from janus_hpc.models.attention_model import AttentionModel


@dataclass(frozen=True, kw_only=True)
class RunHooks:
    """What the run's surroundings provide. `make_rows` gets the most tokens one sequence may have cached; `leave`
    the rows in flight at a stop.
    """

    make_rows: Callable[[int], RowSource]
    record: Callable[[RowResult], None]
    stop_asked: Callable[[], bool]
    on_step: Callable[[list[StepHeader]], None]
    leave: Callable[[list[RowProgress]], None] = lambda rows: None
    horizon: Horizon = NO_HORIZON


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

    def __init__(self, joined: Joined, loaded: Loaded, tallies: Tallies) -> None:
        self.joined = joined
        self.loaded = loaded
        self.tallies = tallies

    def run(self, rows: RowIds, hooks: RunHooks) -> list[StepHeader]:
        return []


class ExpertPart:
    """Serves the attention ranks' tokens."""

    def __init__(
        self,
        setup: EngineSetup,
        joined: Joined,
        loaded: Loaded,
        tallies: Tallies,
        exchange: Exchange,
        experts: ExpertModel,
    ) -> None:
        self.setup = setup
        self.joined = joined
        self.loaded = loaded
        self.tallies = tallies
        self.exchange = exchange
        self.experts = experts

    def run(self, rows: RowIds, hooks: RunHooks) -> list[StepHeader]:
        with torch.inference_mode():
            return run_expert(
                self.exchange,
                self.experts,
                self.joined.microbatches.num,
                hooks.stop_asked,
                self.setup.world.pulse,
                hooks.on_step,
                self.tallies,
            )


class AttentionPart:
    """Answers rows. `while_away` runs while a layer's tokens are at the experts."""

    def __init__(
        self,
        setup: EngineSetup,
        joined: Joined,
        loaded: Loaded,
        tallies: Tallies,
        exchange: Exchange,
        model: AttentionModel,
        cache: KVCache,
        while_away: Callable[[int, int], None],
    ) -> None:
        self.setup = setup
        self.joined = joined
        self.loaded = loaded
        self.tallies = tallies
        self.exchange = exchange
        self.model = model
        self.cache = cache
        self.while_away = while_away

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
            leave=hooks.leave,
            while_away=self.while_away,
            experts_busy_s=partial(_busy_s, self.loaded.experts),
            stop_asked=hooks.stop_asked,
            horizon=hooks.horizon,
            on_step=hooks.on_step,
            pulse=self.setup.world.pulse,
            tallies=self.tallies,
        )
        with torch.inference_mode():
            return loop.run()


@dataclass(frozen=True)
class Kept:
    """What outlives a rank's parts: its weights, its tallies, and the costs of crossing nodes."""

    held: Held
    tallies: Tallies
    costs: CostSource

    @classmethod
    def nothing(cls, setup: EngineSetup) -> "Kept":
        """Before the first part. Collective over the world."""
        return cls(Held(setup), Tallies(), CostSource())


def load_part(setup: EngineSetup, kept: Kept | None = None) -> Part:
    """Read this rank's weights and join the exchange. Collective over the world."""
    kept = Kept.nothing(setup) if kept is None else kept
    crossing = choose_crossing(setup, kept.costs)
    kept.held.load(setup.topology, setup.placement)
    loaded = _load(setup, kept.held)
    return _part(setup, kept, loaded, join(setup, loaded, crossing))


def rebuild_part(setup: EngineSetup, kept: Kept, num_microbatches: int, why: str) -> Part:
    """This rank's part under another split, its weights being in place. Collective over the world."""
    crossing = choose_crossing(setup, kept.costs)
    loaded = _load(setup, kept.held)
    return _part(setup, kept, loaded, rejoin(setup, crossing, num_microbatches, why))


def _part(setup: EngineSetup, kept: Kept, loaded: Loaded, joined: Joined) -> Part:
    role, exchange = setup.role, joined.exchange
    if exchange is None:
        return ParkedPart(joined, loaded, kept.tallies)
    model, cache, experts = loaded.model, loaded.cache, loaded.experts
    if model is None or cache is None:
        assert experts is not None, f"{role=}"
        return ExpertPart(setup, joined, loaded, kept.tallies, exchange, experts)
    return AttentionPart(
        setup,
        joined,
        loaded,
        kept.tallies,
        exchange,
        model,
        cache,
        partial(_serve_own, exchange, experts, setup.world.pulse),
    )


def _load(setup: EngineSetup, held: Held) -> Loaded:
    """What the role computes with, made of the weights that are held."""
    role = setup.role
    cache: KVCache | None = None
    gate: RoutedGate | None = None
    experts: ExpertModel | None = None
    if role.does_attention:
        cache = _cache(setup)
    if role.does_attention and setup.config.gate == "agate":
        assert held.gate is not None, f"{role=}"
        gate = RoutedGate(held.gate, _balancer(setup), _sampler(setup))
    if role.does_experts:
        experts = _experts(setup, held)
    return Loaded(model=held.model, cache=cache, gate=gate, experts=experts)


def _experts(setup: EngineSetup, held: Held) -> ExpertModel:
    assert held.gate is not None, f"{setup.role=}"
    expert_rank = setup.topology.expert_ranks.index(setup.world.world_rank)
    return ExpertModel(
        setup.spec,
        setup.ops,
        held.gate,
        _balancer(setup),
        expert_rank,
        held.experts,
        # All expert ranks that route see the same choices.
        _sampler(setup) if expert_rank == 0 else None,
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
    exchange: Exchange, experts: ExpertModel | None, pulse: Pulse, layer: int, microbatch: int
) -> None:
    """What a rank with both roles does while its tokens are away; nothing on one without experts."""
    if experts is not None:
        serve_layer(exchange, experts, pulse, layer, microbatch)


def _busy_s(experts: ExpertModel | None) -> float:
    return 0.0 if experts is None else experts.busy_s
