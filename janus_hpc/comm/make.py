"""Chooses and builds an exchange: the one place that knows every kind.

It must not know models or the engine. Which kind crosses nodes is decided before, by predicted cost.
"""

from collections.abc import Mapping

import torch
from mpi4py import MPI

from janus_hpc.comm.device.exchange import DeviceExchange
from janus_hpc.comm.device.make import make_device_exchange
from janus_hpc.comm.exchange import GATES, MAX_MICROBATCHES, Exchange
from janus_hpc.comm.host import HostExchange
from janus_hpc.comm.layout import Peers, Sizes
from janus_hpc.comm.links.make import INTERS
from janus_hpc.comm.local import LocalExchange
from janus_hpc.comm.objects import group_comm
from janus_hpc.comm.plan.fabric import Kind
from janus_hpc.comm.staged.make import GateRules, StagedOptions, make_staged_exchange
from janus_hpc.comm.waits import WaitPolicy
from janus_hpc.comm.world import World
from janus_hpc.errors import UsageError
from janus_hpc.topology import Topology

KINDS = ("auto", "host", "shm", "device", *Kind)
# Chunks of about this size travel by themselves: enough to spread the work of a node and to pass on
# one while the next comes, few enough that a message's fixed cost does not count.
CHUNK_BYTES = 256 * 1024
_GROUP_TAG = 77
_CPU = torch.device("cpu")


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
    inter_why: str | None = None,
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
    "auto". `inter_why`: the same of `inter`. `gate` "agate" needs `rules`, and a kind other than
    host and device. `ucx_settings`: the UCX_* variables the user set. UsageError, on every active
    rank alike, for what is unknown or impossible.
    """
    _check(kind, gate, topology, inter)
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
    comm = group_comm(world.comm, active, _GROUP_TAG)
    policy = world.make_policy(timeout_s)
    if kind == "host":
        return HostExchange(comm, peers, sizes, policy, "asked for")
    why = _why(kind, topology, chosen_why)
    if kind in ("auto", "device") and gate == "egate" and device.type == "cuda":
        built = _on_devices(comm, peers, sizes, policy, device)
        if isinstance(built, DeviceExchange):
            return built
        if kind == "device":
            comm.Free()
            raise UsageError(f"exchange 'device' cannot be had: {built}: take 'auto'")
        why += f"; staged through the host: {built}"
    elif kind == "device":
        comm.Free()
        raise UsageError(
            "exchange 'device' needs GPUs and the gate on the expert side: take 'auto'"
        )
    options = StagedOptions(
        kind=Kind.DIRECT if kind in ("auto", "shm") else Kind(kind),
        inter=inter,
        inter_why=inter_why,
        chunk_bytes=chunk_bytes,
        ucx_settings=ucx_settings or {},
    )
    routed = rules if gate == "agate" else None
    assert gate == "egate" or routed is not None, "routing on the attention side needs rules"
    staged = make_staged_exchange(world, comm, peers, sizes, policy, options, routed, why)
    if not isinstance(staged, str):
        return staged
    if gate == "egate" and inter != "ucx" and (kind == "auto" or chosen_why):
        return HostExchange(comm, peers, sizes, policy, f"{staged}; instead of: {why}")
    comm.Free()
    host = "take --exchange host" if gate == "egate" else "take --exchange host --gate egate"
    fix = f"enlarge /dev/shm (containers: --shm-size), lower --max-step-tokens, or {host}"
    raise UsageError(f"exchange {kind!r}: {staged}: {fix}")


def _why(kind: str, topology: Topology, chosen_why: str | None) -> str:
    """By what rule the kind is taken."""
    num_active = len(topology.active_ranks)
    if topology.same_node(topology.active_ranks):
        return f"all {num_active} active ranks share one node"
    if kind == "auto":
        return f"the {num_active} active ranks are on several nodes"
    return chosen_why or "asked for"


def _on_devices(
    comm: MPI.Intracomm, peers: Peers, sizes: Sizes, policy: WaitPolicy, device: torch.device
) -> DeviceExchange | str:
    """The exchange between GPUs, or why there is none."""
    if not peers.topology.same_node(peers.topology.active_ranks):
        return "the active ranks are on several nodes"
    return make_device_exchange(comm, peers, sizes, policy, device)


def _check(kind: str, gate: str, topology: Topology, inter: str) -> None:
    active = topology.active_ranks
    if kind not in KINDS:
        raise UsageError(f"exchange {kind!r} is unknown; one of {', '.join(KINDS)}")
    if gate not in GATES:
        raise UsageError(f"gate {gate!r} is unknown; one of {', '.join(GATES)}")
    if inter not in INTERS:
        raise UsageError(f"link {inter!r} is unknown; one of {', '.join(INTERS)}")
    if kind == "host" and gate == "agate":
        raise UsageError("exchange 'host' has its gate on the expert side: take another exchange")
    if kind in ("shm", "device") and not topology.same_node(active):
        nodes = sorted({topology.hosts[peer] for peer in active})
        raise UsageError(
            f"exchange {kind!r} needs all {len(active)} active ranks on one node, but they are on "
            f"{len(nodes)} hosts ({', '.join(nodes)}): take 'auto', or one that crosses nodes"
        )
