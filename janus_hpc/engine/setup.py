"""What every rank's part of the engine is built from: world, model, device, sizes. Plain data plus its derivation."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch

from janus_hpc.comm.world import World
from janus_hpc.config import RunConfig
from janus_hpc.engine.device import kv_budget_bytes, rank_device
from janus_hpc.errors import UsageError
from janus_hpc.kernels.make import make_ops
from janus_hpc.kernels.native_ops import NativeOps
from janus_hpc.kernels.ops import Ops
from janus_hpc.launch import LaunchEnv, threads_per_rank
from janus_hpc.layers.source import Reader
from janus_hpc.models.spec import ModelSpec
from janus_hpc.placement.placement import Placement
from janus_hpc.topology import Role, Topology

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EngineSetup:
    """One rank's surroundings; equal on all ranks but for `device`, `ops`, `reader` and threads."""

    world: World
    env: LaunchEnv
    topology: Topology
    spec: ModelSpec
    reader: Reader
    ops: Ops
    device: torch.device
    dtype: torch.dtype
    max_context: int
    config: RunConfig
    placement: Placement
    num_threads: int
    threads_why: str
    # The same for ranks of both roles that compute at once, as with several microbatches.
    num_threads_at_once: int
    threads_at_once_why: str
    kernels: str
    kernels_why: str
    kv_bytes: int

    @property
    def ucx_settings(self) -> Mapping[str, str]:
        """The UCX_* variables the user set."""
        return self.env.ucx_settings

    @property
    def role(self) -> Role:
        return self.topology.roles[self.world.world_rank]


def make_setup(
    *,
    world: World,
    env: LaunchEnv,
    topology: Topology,
    spec: ModelSpec,
    reader: Reader,
    device_kind: str,
    dtype: str,
    max_context: int,
    config: RunConfig,
    placement: Placement,
) -> EngineSetup:
    """Choose threads and kernels on this rank, and say once what was chosen."""
    threads = _choose_threads(world, env, topology, config)
    num_threads = threads.num_threads
    torch.set_num_threads(num_threads)
    device = rank_device(device_kind, world.local_rank)
    # One rank a node compiles, the others find the result.
    if world.local_rank == 0:
        make_ops(device, num_threads, env.cache_dir)
    world.barrier()
    ops = make_ops(device, num_threads, env.cache_dir)
    kernels, kernels_why = _agree_on_kernels(world, ops)
    if world.world_rank == 0:
        log.info("threads per rank: %d (%s)", num_threads, threads.threads_why)
        if world.ranks_per_core > 1:
            log.warning(
                "%d ranks share %d cores on node 0: waits yield", world.num_local, world.num_cores
            )
        log.info("kernels: %s%s", kernels, f" ({kernels_why})" if kernels_why else "")
    return EngineSetup(
        world=world,
        env=env,
        topology=topology,
        spec=spec,
        reader=reader,
        ops=ops,
        device=device,
        dtype=getattr(torch, dtype),
        max_context=max_context,
        config=config,
        placement=placement,
        **asdict(threads),
        kernels=kernels,
        kernels_why=kernels_why,
        kv_bytes=_agree_on_kv_bytes(
            world,
            topology,
            device,
            config,
            _weight_bytes(world, topology, spec, device, dtype, placement.num_slots),
        ),
    )


def with_split(setup: EngineSetup, topology: Topology, placement: Placement) -> EngineSetup:
    """The surroundings after ranks have changed roles: threads and the KV cache's share of memory anew.

    To be called when weights are in place and no KV cache is. Collective over the world.
    """
    world, config = setup.world, setup.config
    return replace(
        setup,
        topology=topology,
        placement=placement,
        **asdict(_choose_threads(world, setup.env, topology, config)),
        kv_bytes=_agree_on_kv_bytes(world, topology, setup.device, config, 0),
    )


@dataclass(frozen=True, kw_only=True)
class _Threads:
    """As in `EngineSetup`."""

    num_threads: int
    threads_why: str
    num_threads_at_once: int
    threads_at_once_why: str


def _choose_threads(
    world: World, env: LaunchEnv, topology: Topology, config: RunConfig
) -> _Threads:
    threads = threads_per_rank(env, world.num_cores, _sharing(world, topology))
    at_once, at_once_why = _threads_at_once(world, env, topology, config)
    return _Threads(
        num_threads=config.threads or threads.num_threads,
        threads_why="--threads" if config.threads else threads.why,
        num_threads_at_once=at_once,
        threads_at_once_why=at_once_why,
    )


def _sharing(world: World, topology: Topology) -> int:
    """Ranks of this node that compute at the same time as this one: those of its role.

    Attention and expert ranks take turns within a layer, so each role can have all cores in its turn: with
    1a2e on two cores that gave 1.13 times the decode speed of one thread for everybody.
    """
    role = topology.roles[world.world_rank]
    nodes = zip(topology.roles, world.node_ids, strict=True)
    return sum(its == role and node == world.node_id for its, node in nodes)


def _threads_at_once(
    world: World, env: LaunchEnv, topology: Topology, config: RunConfig
) -> tuple[int, str]:
    """Threads of a rank where attention and expert ranks do not take turns, and why."""
    if config.threads:
        return config.threads, "--threads"
    num_active = sum(world.node_ids[active] == world.node_id for active in topology.active_ranks)
    threads = threads_per_rank(env, world.num_cores, max(num_active, 1))
    if env.omp_threads is not None:
        return threads.num_threads, threads.why
    return threads.num_threads, f"{world.num_cores} cores / {num_active} ranks that work at once"


def use_threads(ops: Ops, num_threads: int) -> None:
    """Let this rank compute with so many threads from now on."""
    torch.set_num_threads(num_threads)
    if isinstance(ops, NativeOps):
        ops.num_threads = num_threads


def _agree_on_kernels(world: World, ops: Ops) -> tuple[str, str]:
    """What computes, over all ranks; several instruction sets are said aloud, since bits may then differ.

    UsageError where only some ranks have compiled kernels: these lay weights out in an order of their own,
    and ranks share weights.
    """
    of_ranks = world.allgather((ops.name, ops.why))
    plain = [rank for rank, (name, _) in enumerate(of_ranks) if not name.startswith("native")]
    if 0 < len(plain) < len(of_ranks):
        why = next(its for name, its in of_ranks if not name.startswith("native"))
        hosts = ", ".join(sorted({world.hosts[rank] for rank in plain}))
        problem = f"{len(plain)} of {len(of_ranks)} ranks have no compiled kernels ({hosts}: {why})"
        world.agree(UsageError(f"{problem}: give all ranks a C compiler in PATH, or none of them"))
    found = sorted(set(of_ranks))
    if len(found) > 1 and world.world_rank == 0:
        log.warning("ranks have different kernels, so rows may differ in the last bit: %s", found)
    return ", ".join(name for name, _ in found), "; ".join(why for _, why in found if why)


def _agree_on_kv_bytes(
    world: World, topology: Topology, device: torch.device, config: RunConfig, weight_bytes: int
) -> int:
    """The smallest budget of all attention ranks: what fits on one must fit on every one.

    `weight_bytes`: of this rank's weights those that are still to be loaded.
    """
    sharing = max(len(_attention_here(world, topology, device)), 1)
    mine = kv_budget_bytes(config.kv_memory, device, sharing, weight_bytes)
    budgets: list[int] = world.allgather(mine)
    return min(budgets[r] for r in topology.attention_ranks)


def _attention_here(world: World, topology: Topology, device: torch.device) -> list[int]:
    """The attention ranks whose KV caches lie in this rank's memory: those of its node, or of its GPU."""
    here = [r for r in topology.attention_ranks if world.node_ids[r] == world.node_id]
    if device.type == "cuda":
        count = torch.cuda.device_count()
        here = [r for r in here if world.local_ranks[r] % count == device.index]
    return here


def _weight_bytes(
    world: World,
    topology: Topology,
    spec: ModelSpec,
    device: torch.device,
    dtype: str,
    num_slots: int,
) -> int:
    """What an attention rank here will hold of the model."""
    here = _attention_here(world, topology, device)
    # On a CPU the attention ranks of a node share one copy of these.
    params = spec.num_attention_params() // (max(len(here), 1) if device.type == "cpu" else 1)
    if topology.roles[world.world_rank] is Role.COLOCATED:
        params += spec.num_expert_params() * num_slots // spec.moe.num_experts
    return params * int(getattr(torch, dtype).itemsize)
