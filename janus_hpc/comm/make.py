"""Chooses and builds an exchange: the one place that knows every kind.

The choice is a pure rule of the topology; it must not know models or the engine.
"""

import torch

from janus_hpc.comm.exchange import MAX_MICROBATCHES, Exchange
from janus_hpc.comm.host import HostExchange
from janus_hpc.comm.layout import Peers, Sizes
from janus_hpc.comm.local import LocalExchange
from janus_hpc.comm.objects import bcast_object
from janus_hpc.comm.shm import ShmExchange
from janus_hpc.comm.shm_window import shm_free_bytes, window_bytes
from janus_hpc.comm.waits import WaitPolicy, make_policy
from janus_hpc.comm.world import World
from janus_hpc.errors import UsageError
from janus_hpc.topology import Topology

KINDS = ("auto", "host", "shm")
_GROUP_TAG = 77


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
) -> Exchange:
    """Build the exchange of a topology. Collective over its active ranks; parked ones stay out.

    "auto" takes local for one active rank, shm where all active ranks share memory and the window
    fits there, host otherwise; `why` of the result tells. UsageError, on every rank alike, for an
    unknown kind or a forced shm that is impossible.
    """
    if kind not in KINDS:
        raise UsageError(f"exchange {kind!r} is unknown; one of {', '.join(KINDS)}")
    assert 0 < num_microbatches <= MAX_MICROBATCHES, f"{num_microbatches=}"
    active = topology.active_ranks
    assert world.world_rank in active, f"{world.world_rank=} {active=}"
    if kind == "auto" and len(active) == 1:
        return LocalExchange("one rank alone does attention and experts")
    if kind == "shm" and not topology.same_node(active):
        nodes = sorted({topology.hosts[peer] for peer in active})
        raise UsageError(
            f"exchange 'shm' needs all {len(active)} active ranks on one node, but they are on "
            f"{len(nodes)} hosts ({', '.join(nodes)}): take 'auto' or 'host'"
        )
    peers = Peers(topology, world.world_rank)
    sizes = Sizes(
        hidden=hidden,
        row_dtype=row_dtype,
        max_tokens_per_rank=max_tokens_per_rank,
        num_microbatches=num_microbatches,
    )
    group = world.comm.Get_group().Incl(list(active))
    comm = world.comm.Create_group(group, _GROUP_TAG)
    group.Free()
    policy = make_policy(timeout_s, ranks_per_core=world.ranks_per_core)
    if kind == "host":
        return HostExchange(comm, peers, sizes, policy, "asked for")
    if not topology.same_node(active):
        why = f"the {len(active)} active ranks are on several nodes"
        return HostExchange(comm, peers, sizes, policy, why)
    needed = window_bytes(peers, sizes)
    free = bcast_object(comm, shm_free_bytes(), WaitPolicy())
    if free is not None and free < needed:
        why = f"the shared window needs {needed} bytes, but /dev/shm has {free} bytes free"
        if kind == "shm":
            comm.Free()
            raise UsageError(f"exchange 'shm': {why}: enlarge /dev/shm, or take 'auto' or 'host'")
        return HostExchange(comm, peers, sizes, policy, why)
    why = "asked for" if kind == "shm" else f"all {len(active)} active ranks share one node"
    return ShmExchange(comm, peers, sizes, policy, why)
