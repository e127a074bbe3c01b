"""Builds the staged exchange where shared memory suffices, or says why it does not.

Knows what it takes, not what else could be taken.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mpi4py import MPI

from janus_hpc.comm.layout import Peers, Sizes
from janus_hpc.comm.links.link import Link
from janus_hpc.comm.links.make import make_link
from janus_hpc.comm.objects import allgather_objects, group_comm
from janus_hpc.comm.plan.fabric import Fabric, Kind, make_fabric
from janus_hpc.comm.shm_memory import shm_free_bytes
from janus_hpc.comm.staged.cargo import DenseCargo
from janus_hpc.comm.staged.exchange import StagedExchange
from janus_hpc.comm.staged.frames import FrameSizes
from janus_hpc.comm.staged.group_memory import GroupMemory, group_bytes
from janus_hpc.comm.staged.routed import Router
from janus_hpc.comm.staged.routed_cargo import RoutedCargo
from janus_hpc.comm.waits import WaitPolicy
from janus_hpc.comm.world import World

_MEMORY_TAG = 79


@dataclass(frozen=True, kw_only=True)
class GateRules:
    """What routing on the attention side needs: choices a token."""

    top_k: int


@dataclass(frozen=True, kw_only=True)
class StagedOptions:
    """How rows cross nodes. `inter`: the link as for `make_link`; `inter_why`: by what rule, None
    where it was asked for. `chunk_bytes`: about what travels by itself. `ucx_settings`: the UCX_*
    variables the user set.
    """

    kind: Kind
    inter: str
    chunk_bytes: int
    inter_why: str | None = None
    ucx_settings: Mapping[str, str] = field(default_factory=dict)


def make_staged_exchange(
    world: World,
    comm: MPI.Intracomm,
    peers: Peers,
    sizes: Sizes,
    policy: WaitPolicy,
    options: StagedOptions,
    rules: GateRules | None,
    why: str,
) -> StagedExchange | str:
    """The exchange, which takes over `comm`, or what is missing; then `comm` stays the caller's.

    `comm`: the active ranks in world order. `rules` are given for the gate on the attention side.
    The outcome is the same on all ranks. Collective over `comm`. UsageError as `make_link`.
    """
    topology = peers.topology
    fabric = make_fabric(topology, options.kind)
    frames = None if rules is None else FrameSizes(fabric, sizes, rules.top_k)
    if short := _memory_short(comm, peers, fabric, sizes, frames, policy):
        return short
    kind = str(options.kind)
    link: Link | None = None
    if topology.same_node(topology.active_ranks):
        kind = "shm"
    else:
        link = make_link(
            world.comm,
            topology.active_ranks,
            options.inter,
            policy=policy,
            why=options.inter_why,
            user_settings=options.ucx_settings,
        )
        why = f"{why}; between nodes {link.name} ({link.why}; {link.detail})"
    group = fabric.group_of[world.world_rank]
    memory_comm = group_comm(world.comm, group.members, _MEMORY_TAG)
    memory = GroupMemory(memory_comm, fabric, group, sizes, frames)
    cargo: DenseCargo | RoutedCargo = DenseCargo(memory)
    if rules is not None and frames is not None:
        router = Router(fabric)
        cargo = RoutedCargo(memory, fabric, group, sizes, frames, router)
    chunk_rows = max(1, options.chunk_bytes // sizes.row_bytes) if rules is None else None
    return StagedExchange(
        comm, peers, fabric, sizes, memory, cargo, link, chunk_rows, policy, kind=kind, why=why
    )


def _memory_short(
    comm: MPI.Intracomm,
    peers: Peers,
    fabric: Fabric,
    sizes: Sizes,
    frames: FrameSizes | None,
    policy: WaitPolicy,
) -> str:
    """What is missing on the first node whose shared memory is too small; empty if none is."""
    topology = peers.topology
    group = fabric.group_of[peers.world_rank]
    mine = group_bytes(fabric, group, sizes, frames) if group.members[0] == peers.world_rank else 0
    facts = allgather_objects(comm, (mine, shm_free_bytes()), policy)
    by_rank = dict(zip(topology.active_ranks, facts, strict=True))
    for node in sorted(set(topology.node_ids)):
        here = [rank for rank in topology.active_ranks if topology.node_ids[rank] == node]
        needed = sum(by_rank[rank][0] for rank in here)
        free = min((its for rank in here if (its := by_rank[rank][1]) is not None), default=needed)
        if free < needed:
            place = f"/dev/shm on {topology.hosts[here[0]]}"
            return f"{needed} bytes of shared memory are needed, but {place} has {free} bytes free"
    return ""
