"""What is measured on: a model of a few layers with made-up weights, as a rank would hold it in both roles.

Times do not depend on values, so weights of one shape are all the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch

from janus_hpc.comm.shared_weights import NodeShared
from janus_hpc.comm.waits import WaitPolicy
from janus_hpc.comm.world import World
from janus_hpc.engine.device import rank_device, room_bytes
from janus_hpc.engine.measure.effort import Effort
from janus_hpc.engine.node_weights import NodeWeights
from janus_hpc.engine.setup import use_threads
from janus_hpc.errors import JanusError
from janus_hpc.experts.expert_weights import ExpertWeights
from janus_hpc.experts.gate import Gate
from janus_hpc.kernels.make import make_ops
from janus_hpc.kernels.ops import Ops
from janus_hpc.kvcache import KVCache, block_bytes
from janus_hpc.launch import LaunchEnv, threads_per_rank
from janus_hpc.layers.source import Reader, WeightSource
from janus_hpc.models.attention_model import AttentionModel
from janus_hpc.models.spec import ModelSpec
from janus_hpc.placement.make import make_placement
from janus_hpc.placement.placement import Placement
from janus_hpc.weights.random import RandomWeights

M = TypeVar("M")
BLOCK_SIZE = 16
NUM_SPARSE = 3
# Part of a rank's memory that experts, or a KV cache, may take here.
MEMORY_SHARE = 0.125


class SameWeights:
    """A `Reader` that makes one random tensor a shape."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._random = RandomWeights(0, dtype)
        self._of_shape: dict[tuple[int, ...], torch.Tensor] = {}

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if shape not in self._of_shape:
            self._of_shape[shape] = self._random.read(name, shape)
        return self._of_shape[shape]

    def check_unchanged(self) -> None:
        """Nothing is stored."""


@dataclass(frozen=True, kw_only=True)
class Bed:
    """One rank's; `spec` has NUM_SPARSE sparse layers and, where the model has dense ones, one as layer 1.

    `experts` lie in this rank's slots as expert rank 0 of `placement`. `room_bytes`: memory of the rank that
    has least.
    """

    world: World
    env: LaunchEnv
    policy: WaitPolicy
    effort: Effort
    spec: ModelSpec
    ops: Ops
    device: torch.device
    dtype: torch.dtype
    room_bytes: int
    max_context: int
    model: AttentionModel
    cache: KVCache
    gate: Gate
    experts: ExpertWeights
    placement: Placement
    shared: NodeShared

    @property
    def sharing(self) -> Sequence[int]:
        """Numbers of ranks of a node to measure at once: on GPUs ranks do not share."""
        if self.device.type != "cpu":
            return [1]
        most = max(self.world.local_ranks) + 1
        return sorted({its for its in self.effort.sharing if its < most} | {most})

    def takes_part(self, num_sharing: int) -> bool:
        """Whether this rank measures when so many of each node do."""
        return self.world.local_rank < num_sharing

    def use_threads(self, num_sharing: int) -> None:
        """Compute with the threads of a rank whose role so many of the node have."""
        if self.device.type == "cpu":
            cores = self.world.num_cores
            use_threads(self.ops, threads_per_rank(self.env, cores, num_sharing).num_threads)

    def free(self) -> None:
        """Unmap shared weights. Collective over the node."""
        self.shared.free()


def truncated(spec: ModelSpec) -> ModelSpec:
    """The few layers that are measured."""
    if len(spec.sparse_layers) == spec.num_layers:
        return replace(spec, num_layers=NUM_SPARSE, sparse_layers=tuple(range(NUM_SPARSE)))
    sparse_layers = (0, *range(2, NUM_SPARSE + 1))
    return replace(spec, num_layers=NUM_SPARSE + 1, sparse_layers=sparse_layers)


def make_bed(
    world: World,
    env: LaunchEnv,
    full_spec: ModelSpec,
    *,
    dtype: torch.dtype,
    device_kind: str,
    effort: Effort,
    timeout_s: float,
    max_context: int,
) -> Bed:
    """Collective over the world. UsageError on all ranks where shared memory does not suffice."""
    spec = truncated(full_spec)
    device = rank_device(device_kind, world.local_rank)
    room = min(world.allgather(room_bytes(device_kind, world.local_rank, world.num_local)))
    threads = threads_per_rank(env, world.num_cores, world.num_local).num_threads
    # One rank a node compiles, the others find the result.
    if world.local_rank == 0:
        make_ops(device, threads, env.cache_dir)
    world.barrier()
    ops = make_ops(device, threads, env.cache_dir)
    reader, shared = SameWeights(dtype), NodeShared(world, "measure")
    model = _build(
        world, shared, partial(AttentionModel, spec, ops, dtype=dtype), ops, dtype, reader, device
    )
    longest = min(max_context, spec.max_context, max(effort.contexts) + effort.passes + 2)
    model.prepare(device, longest)
    gate = _build(world, shared, partial(Gate, spec, ops), ops, torch.float32, reader, device)
    placement = _placement(spec, effort, int(room * MEMORY_SHARE), dtype.itemsize)
    experts = ExpertWeights(spec, ops, reader, dtype, device)
    experts.load(placement, 0)
    return Bed(
        world=world,
        env=env,
        policy=world.make_policy(timeout_s),
        effort=effort,
        spec=spec,
        ops=ops,
        device=device,
        dtype=dtype,
        room_bytes=room,
        max_context=longest,
        model=model,
        cache=_cache(spec, effort, int(room * MEMORY_SHARE), dtype, device),
        gate=gate,
        experts=experts,
        placement=placement,
        shared=shared,
    )


def _build(
    world: World,
    shared: NodeShared,
    make: Callable[[WeightSource], M],
    ops: Ops,
    dtype: torch.dtype,
    reader: Reader,
    device: torch.device,
) -> M:
    """Weights that the ranks of a node share. Collective over the world."""
    nodes = sorted(set(world.node_ids))
    groups = [
        tuple(rank for rank, its in enumerate(world.node_ids) if its == node) for node in nodes
    ]
    weights = NodeWeights(make, ops, dtype, shared, groups, world.world_rank)
    fills = weights.plan(range(world.world_size))
    error: JanusError | None = None
    try:
        weights.open(fills)
    except JanusError as problem:
        error = problem
    world.agree(error)
    weights.fill(fills, reader, None)
    weights.close(fills)
    return weights.build(device)


def _placement(spec: ModelSpec, effort: Effort, budget_bytes: int, itemsize: int) -> Placement:
    """Half of the experts here, so that some choices are other ranks', or as many as there is room for."""
    num_experts, num_layers = spec.moe.num_experts, len(spec.sparse_layers)
    slot_bytes = 3 * spec.hidden * spec.moe.width * itemsize * num_layers
    most = max(1, min(effort.num_slots, budget_bytes // slot_bytes, -(-num_experts // 2)))
    return make_placement(
        "contiguous",
        num_layers=num_layers,
        num_experts=num_experts,
        num_ranks=-(-num_experts // most),
        num_slots=most,
    )


def _cache(
    spec: ModelSpec, effort: Effort, budget_bytes: int, dtype: torch.dtype, device: torch.device
) -> KVCache:
    """Filled with zeros, so that its pages are there, and what is computed from it is finite."""
    num_blocks = min(budget_bytes, effort.kv_bytes) // block_bytes(spec, BLOCK_SIZE, dtype)
    wanted = max(effort.batches) * -(-(max(effort.contexts) + effort.passes + 2) // BLOCK_SIZE)
    cache = KVCache(spec, max(min(num_blocks, wanted), 1), BLOCK_SIZE, dtype, device)
    for keys, values in cache.layers:
        keys.zero_()
        values.zero_()
    return cache
