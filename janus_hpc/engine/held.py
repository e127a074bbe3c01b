"""What a rank holds of the model, and what it frees and brings in when ranks change roles between batches.

Weights only, and what computes with them. Branches on no role: a rank needs what the topology lists it for.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from janus_hpc.comm.shared_weights import NodeShared
from janus_hpc.engine.carrier import Carrier, make_carrier
from janus_hpc.engine.node_weights import Fill, NodeWeights
from janus_hpc.engine.relocate import Relocation
from janus_hpc.engine.setup import EngineSetup
from janus_hpc.errors import JanusError
from janus_hpc.experts.expert_weights import ExpertWeights
from janus_hpc.experts.gate import Gate
from janus_hpc.models.attention_model import AttentionModel
from janus_hpc.placement.moves import moves
from janus_hpc.placement.placement import Placement
from janus_hpc.placement.world_rows import over_world
from janus_hpc.topology import Topology

# Attention weights' fills, then the gates'.
Fills = tuple[list[Fill], list[Fill]]


@dataclass(frozen=True)
class Moved:
    """What a change of roles or placement brought, over all ranks: slots of experts, how many of them were
    read from the checkpoint, all bytes filled, and the slowest rank's seconds.
    """

    num_slots: int = 0
    num_read: int = 0
    num_bytes: int = 0
    seconds: float = 0.0


class Held:
    """One rank's weights; `model` and `gate` are None where they are not needed now."""

    def __init__(self, setup: EngineSetup) -> None:
        """Holds nothing yet. Collective over the world."""
        self.model: AttentionModel | None = None
        self.gate: Gate | None = None
        spec, ops, world = setup.spec, setup.ops, setup.world
        self.experts = ExpertWeights(spec, ops, setup.reader, setup.dtype, setup.device)
        self._setup = setup
        self._own = world.world_rank
        self._carrier: Carrier | None = None
        # Without re-splits only ranks that need the same share memory, since /dev/shm may be small.
        self._changes = setup.config.replan != "off"
        group = "node" if self._changes else setup.role.value
        of_ranks = world.allgather((world.node_id, group))
        groups = [
            tuple(rank for rank, its in enumerate(of_ranks) if its == found)
            for found in sorted(set(of_ranks))
        ]
        shared = NodeShared(world, group)
        make: Callable[..., Any] = partial(AttentionModel, spec, ops, dtype=setup.dtype)
        self._attention: NodeWeights[AttentionModel] = NodeWeights(
            make, ops, setup.dtype, shared, groups, self._own
        )
        # Routers decide: they are kept in float32 whatever the model's dtype.
        self._gates: NodeWeights[Gate] = NodeWeights(
            partial(Gate, spec, ops), ops, torch.float32, shared, groups, self._own
        )

    def load(self, topology: Topology, placement: Placement) -> None:
        """Read what this rank needs, for the first time. Collective over the world."""
        fills = self._open(topology)
        self._fill(fills, None)
        if self._own in topology.expert_ranks:
            self.experts.load(placement, topology.expert_ranks.index(self._own))
        self._close(fills)
        self._build(topology)

    def move(self, before: Topology, old: Placement, after: Topology, new: Placement) -> Moved:
        """Free what this rank needs no longer, then bring in what it newly does. Collective over the world.

        `new` is aligned with `old` (`world_rows.aligned_with`). Errors: JanusError on all ranks where shared
        memory does not suffice, CommTimeout as for every wait.
        """
        started_s, world = time.monotonic(), self._setup.world
        self._drop(after)
        carrier = self._connect()
        fills = self._open(after)
        size = world.world_size
        whole_old = over_world(old, before.expert_ranks, size)
        whole_new = over_world(new, after.expert_ranks, size)
        planned = moves(whole_old, whole_new, world.node_ids)
        stays = self._own in after.expert_ranks
        relocation = Relocation(self.experts, carrier, whole_old, whole_new, stays=stays)
        num_bytes = relocation.move(planned)
        if any(fills):
            # Ranks may read for long now, and a message that counts as sent may still need its sender.
            world.barrier(carrier.progress)
            num_bytes += self._fill(fills, carrier)
        world.barrier(carrier.progress)
        self._close(fills)
        self._build(after)
        if self._setup.device.type == "cuda":
            # Room for the cache is what the driver says is free.
            torch.cuda.empty_cache()
        reports = world.allgather((num_bytes, time.monotonic() - started_s))
        return Moved(
            num_slots=len(planned),
            num_read=sum(move.source is None for move in planned),
            num_bytes=sum(its for its, _ in reports),
            seconds=max(seconds for _, seconds in reports),
        )

    def free(self) -> None:
        """Close the link between ranks. Collective over the world."""
        if self._carrier is not None:
            self._carrier.free()

    def _connect(self) -> Carrier:
        """The link, made for the first move."""
        if self._carrier is None:
            setup = self._setup
            self._carrier = make_carrier(setup.world, setup.config, setup.ucx_settings)
        return self._carrier

    def _drop(self, topology: Topology) -> None:
        if self._own not in topology.attention_ranks:
            self.model = None
        if self._own not in self._gate_ranks(topology):
            self.gate = None

    def _build(self, topology: Topology) -> None:
        setup = self._setup
        if self._own in topology.attention_ranks and self.model is None:
            self.model = self._attention.build(setup.device)
            self.model.prepare(setup.device, setup.max_context)
        if self._own in self._gate_ranks(topology) and self.gate is None:
            self.gate = self._gates.build(setup.device)
        if setup.device.type == "cuda" and not self._changes:
            # What the host holds was on its way to the GPU.
            self._attention.release()
            self._gates.release()

    def _gate_ranks(self, topology: Topology) -> set[int]:
        ranks = set(topology.expert_ranks)
        return ranks | set(topology.attention_ranks if self._setup.config.gate == "agate" else ())

    def _open(self, topology: Topology) -> Fills:
        fills = (
            self._attention.plan(topology.attention_ranks),
            self._gates.plan(sorted(self._gate_ranks(topology))),
        )
        error: JanusError | None = None
        try:
            self._attention.open(fills[0])
            self._gates.open(fills[1])
        except JanusError as problem:
            error = problem
        self._setup.world.agree(error)
        return fills

    def _fill(self, fills: Fills, carrier: Carrier | None) -> int:
        reader = self._setup.reader
        num_bytes = self._attention.fill(fills[0], reader, carrier)
        return num_bytes + self._gates.fill(fills[1], reader, carrier)

    def _close(self, fills: Fills) -> None:
        self._attention.close(fills[0])
        self._gates.close(fills[1])
