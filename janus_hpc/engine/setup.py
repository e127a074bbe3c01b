"""What every rank's part of the engine is built from: world, model, device, sizes. Plain data plus its derivation."""

import logging
from dataclasses import dataclass

import torch

from janus_hpc.comm.world import World
from janus_hpc.config import RunConfig
from janus_hpc.engine.device import rank_device
from janus_hpc.kernels.make import make_ops
from janus_hpc.kernels.ops import Ops
from janus_hpc.launch import LaunchEnv, threads_per_rank
from janus_hpc.layers.source import Reader
from janus_hpc.models.spec import ModelSpec
from janus_hpc.topology import Role, Topology

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EngineSetup:
    """One rank's surroundings; equal on all ranks but for `device`, `ops` and `reader`."""

    world: World
    topology: Topology
    spec: ModelSpec
    reader: Reader
    ops: Ops
    device: torch.device
    dtype: torch.dtype
    max_context: int
    config: RunConfig
    num_threads: int

    @property
    def role(self) -> Role:
        return self.topology.roles[self.world.world_rank]

    @property
    def ranks_on_device(self) -> int:
        """Active ranks of this node that share this rank's memory for KV: its GPU's, or the node's."""
        world = self.world
        attention = [r for r in self.topology.attention_ranks if world.node_ids[r] == world.node_id]
        if self.device.type == "cpu":
            return max(len(attention), 1)
        count = torch.cuda.device_count()
        return max(sum(world.local_ranks[r] % count == self.device.index for r in attention), 1)


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
) -> EngineSetup:
    """Choose threads and kernels on this rank, and say once what was chosen."""
    threads = threads_per_rank(env, world.num_cores, world.num_local)
    num_threads = config.threads or threads.num_threads
    torch.set_num_threads(num_threads)
    device = rank_device(device_kind, world.local_rank)
    # One rank a node compiles, the others find the result.
    if world.local_rank == 0:
        make_ops(device, num_threads, env.cache_dir)
    world.barrier()
    ops = make_ops(device, num_threads, env.cache_dir)
    if world.world_rank == 0:
        log.info("threads per rank: %d (%s)", num_threads, threads.why)
        if threads.oversubscribed:
            log.warning(
                "%d ranks share %d cores on node 0: waits yield", world.num_local, world.num_cores
            )
        log.info("kernels: %s%s", ops.name, f" ({ops.why})" if ops.why else "")
    return EngineSetup(
        world=world,
        topology=topology,
        spec=spec,
        reader=reader,
        ops=ops,
        device=device,
        dtype=getattr(torch, dtype),
        max_context=max_context,
        config=config,
        num_threads=num_threads,
    )
