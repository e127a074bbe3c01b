"""Chooses and builds an exchange: the one place that knows every kind.

It must not know models or the engine. Which kind crosses nodes is decided before, by predicted cost.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from mpi4py import MPI

from janus_hpc.comm.device.exchange import DeviceExchange
from janus_hpc.comm.device.make import make_device_exchange
from janus_hpc.comm.exchange import GATES, MAX_MICROBATCHES, Exchange
from janus_hpc.comm.host import HostExchange
from janus_hpc.comm.layout import Peers, Sizes
from janus_hpc.comm.links.link import Link
from janus_hpc.comm.links.make import make_link
from janus_hpc.comm.local import LocalExchange
from janus_hpc.comm.objects import allgather_objects
from janus_hpc.comm.plan.fabric import Fabric, Kind, make_fabric
from janus_hpc.comm.shm_memory import shm_free_bytes
from janus_hpc.comm.staged.cargo import DenseCargo
from janus_hpc.comm.staged.exchange import StagedExchange
from janus_hpc.comm.staged.frames import FrameSizes
from janus_hpc.comm.staged.group_memory import GroupMemory, group_bytes
from janus_hpc.comm.staged.routed import Router
from janus_hpc.comm.staged.routed_cargo import RoutedCargo
from janus_hpc.comm.waits import WaitPolicy, make_policy
from janus_hpc.comm.world import World
from janus_hpc.errors import UsageError
from janus_hpc.topology import Topology

KINDS = ("auto", "host", "shm", "device", *Kind)
# Chunks of about this size travel by themselves: enough to spread the work of a node and to pass on
# one while the next comes, few enough that a message's fixed cost does not count.
CHUNK_BYTES = 256 * 1024
_GROUP_TAG, _MEMORY_TAG = 77, 79
_CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class GateRules:
    """What routing on the attention side needs: choices a token, and the experts of each expert rank."""

    top_k: int
    placement: Sequence[Sequence[int]]


def make_exchange(
    world: World,
    topology: Topology,
    *,
    kind: str = "auto",
    hidden: int,
    row_dtype: torch.dtype,
    max_tokens_per_rank: int,
    timeout_s: float = 300.0,
    num_microbatches: int = 1,
    gate: str = "egate",
    rules: GateRules | None = None,
    inter: str = "auto",
    chunk_bytes: int = CHUNK_BYTES,
    chosen_why: str | None = None,
    device: torch.device = _CPU,
    ucx_settings: Mapping[str, str] | None = None,
) -> Exchange:
    """Build the exchange of a topology. Collective over its active ranks; parked ones stay out.

    "auto" takes local for one active rank, device where all active ranks have GPUs of one node that
    can open each other's memory, shm where they share a node, and direct over several nodes. Where
    memory that ranks of a node share is too small, "auto" takes host; `why` of the result tells.
    `chosen_why`: that `kind` was not asked for but chosen, and by what rule; it may give way like
    "auto". `ucx_settings`: the UCX_* variables the user set.
    `gate` "agate" needs `rules`, and a kind other than host and device. UsageError, on every rank
    alike, for what is unknown or impossible.
    """
    _check(kind, gate, topology)
    assert 0 < num_microbatches <= MAX_MICROBATCHES, f"{num_microbatches=}"
    active = topology.active_ranks
    assert world.world_rank in active, f"{world.world_rank=} {active=}"
    if kind == "auto" and len(active) == 1:
        note = "; the gate is on the expert side, since both are one rank" * (gate == "agate")
        return LocalExchange(f"one rank alone does attention and experts{note}")
    peers = Peers(topology, world.world_rank)
    sizes = Sizes(
        hidden=hidden,
        row_dtype=row_dtype,
        max_tokens_per_rank=max_tokens_per_rank,
        num_microbatches=num_microbatches,
    )
    comm = _group_comm(world, active, _GROUP_TAG)
    policy = make_policy(timeout_s, ranks_per_core=world.ranks_per_core)
    if kind == "host":
        return HostExchange(comm, peers, sizes, policy, "asked for")
    one_node = topology.same_node(active)
    staged = ""
    if kind in ("auto", "device") and one_node and gate == "egate" and device.type == "cuda":
        built = make_device_exchange(comm, peers, sizes, policy, device)
        if isinstance(built, DeviceExchange):
            return built
        staged = f"; staged through the host: {built}"
    if kind == "device":
        comm.Free()
        reason = staged or ": it needs GPUs of one node, and the gate on the expert side"
        raise UsageError(f"exchange 'device' cannot be had{reason}: take 'auto'")
    taken = Kind.DIRECT if kind in ("auto", "shm") else Kind(kind)
    fabric = make_fabric(topology, taken)
    frames = None
    if gate == "agate":
        assert rules is not None, "routing on the attention side needs rules"
        frames = FrameSizes(fabric, sizes, rules.top_k)
    if short := _memory_short(comm, peers, fabric, sizes, frames):
        if not (kind == "auto" or chosen_why) or gate == "agate":
            comm.Free()
            raise UsageError(
                f"exchange {kind!r}: {short}: enlarge /dev/shm (containers: --shm-size), lower "
                "--max-step-tokens, or take --exchange host"
            )
        return HostExchange(comm, peers, sizes, policy, short)
    group = fabric.group_of[world.world_rank]
    memory_comm = _group_comm(world, group.members, _MEMORY_TAG)
    memory = GroupMemory(memory_comm, fabric, group, sizes, frames)
    cargo: DenseCargo | RoutedCargo = DenseCargo(memory)
    if frames is not None and rules is not None:
        router = Router(fabric, rules.placement)
        cargo = RoutedCargo(memory, fabric, group, sizes, frames, router)
    link: Link | None = None
    why = chosen_why or "asked for"
    if kind == "auto":
        why = f"the {len(active)} active ranks are on several nodes"
    name = str(taken)
    if one_node:
        name, why = "shm", f"all {len(active)} active ranks share one node{staged}"
    else:
        link = make_link(world.comm, active, inter, policy=policy, user_settings=ucx_settings)
        why = f"{why}; between nodes {link.name} ({link.why})"
    return StagedExchange(
        comm,
        peers,
        fabric,
        sizes,
        memory,
        cargo,
        link,
        max(1, chunk_bytes // sizes.row_bytes) if gate == "egate" else None,
        policy,
        kind=name,
        why=why,
    )


def _check(kind: str, gate: str, topology: Topology) -> None:
    active = topology.active_ranks
    if kind not in KINDS:
        raise UsageError(f"exchange {kind!r} is unknown; one of {', '.join(KINDS)}")
    if gate not in GATES:
        raise UsageError(f"gate {gate!r} is unknown; one of {', '.join(GATES)}")
    if kind == "host" and gate == "agate":
        raise UsageError("exchange 'host' has its gate on the expert side: take another exchange")
    if kind in ("shm", "device") and not topology.same_node(active):
        nodes = sorted({topology.hosts[peer] for peer in active})
        raise UsageError(
            f"exchange {kind!r} needs all {len(active)} active ranks on one node, but they are on "
            f"{len(nodes)} hosts ({', '.join(nodes)}): take 'auto', or one that crosses nodes"
        )


def _memory_short(
    comm: MPI.Intracomm, peers: Peers, fabric: Fabric, sizes: Sizes, frames: FrameSizes | None
) -> str:
    """What is missing on the first node whose shared memory is too small; empty if none is."""
    topology = peers.topology
    group = fabric.group_of[peers.world_rank]
    mine = group_bytes(fabric, group, sizes, frames) if group.members[0] == peers.world_rank else 0
    facts = allgather_objects(comm, (mine, shm_free_bytes()), WaitPolicy())
    by_rank = dict(zip(topology.active_ranks, facts, strict=True))
    for node in sorted(set(topology.node_ids)):
        here = [rank for rank in topology.active_ranks if topology.node_ids[rank] == node]
        needed = sum(by_rank[rank][0] for rank in here)
        free = min((its for rank in here if (its := by_rank[rank][1]) is not None), default=needed)
        if free < needed:
            place = f"/dev/shm on {topology.hosts[here[0]]}"
            return f"{needed} bytes of shared memory are needed, but {place} has {free} bytes free"
    return ""


def _group_comm(world: World, world_ranks: Sequence[int], tag: int) -> MPI.Intracomm:
    """A communicator of these ranks, in this order. Collective over them alone."""
    group = world.comm.Get_group().Incl(list(world_ranks))
    comm = world.comm.Create_group(group, tag)
    group.Free()
    return comm
