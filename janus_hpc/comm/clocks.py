"""How far the clocks of nodes are apart, by messages to and fro. Knows nothing of what they date."""

import time
from collections.abc import Callable

import numpy as np
from mpi4py import MPI

from janus_hpc.comm.pulse import Waiting
from janus_hpc.comm.waits import wait_request
from janus_hpc.comm.world import World

_TAG = 77


def clock_offsets(
    world: World, num_rounds: int = 25, clock: Callable[[], float] = time.time
) -> dict[int, tuple[float, float]]:
    """Node -> seconds its `clock` is ahead of node 0's, and the most that this may be wrong by.

    Node 0's first rank asks the first rank of each other node in turn; of the rounds the shortest
    counts, and half of it is the error bar (Cristian's algorithm). Of nodes, one with one rank
    included; {} where there is but one. The whole answer is on world rank 0's node alone: other
    ranks get {}. Collective over the world, as far as its first ranks of nodes go.
    """
    firsts = [world.node_ids.index(node) for node in sorted(set(world.node_ids))]
    if world.world_rank == firsts[0]:
        return {
            node: _ask(world, first, num_rounds, clock) for node, first in enumerate(firsts) if node
        }
    if world.world_rank in firsts:
        for _ in range(num_rounds):
            _receive(world, firsts[0])
            _send(world, firsts[0], clock())
    return {}


def _ask(
    world: World, peer: int, num_rounds: int, clock: Callable[[], float]
) -> tuple[float, float]:
    samples = []
    for _ in range(num_rounds):
        # Time to and fro by the steady clock; the wall clock may be set in between.
        started_s, sent_s = time.perf_counter(), clock()
        _send(world, peer, 0.0)
        theirs_s = _receive(world, peer)
        half_s = (time.perf_counter() - started_s) / 2
        samples.append((half_s, theirs_s - (sent_s + half_s)))
    error_s, offset_s = min(samples)
    return offset_s, error_s


def _send(world: World, peer: int, value: float) -> None:
    request = world.comm.Isend(np.array([value]), peer, _TAG)
    wait_request(request, world.policy, lambda: Waiting(f"clock question to rank {peer}", (peer,)))


def _receive(world: World, peer: int) -> float:
    value = np.empty(1)
    request: MPI.Request = world.comm.Irecv(value, peer, _TAG)
    wait_request(request, world.policy, lambda: Waiting(f"clock answer of rank {peer}", (peer,)))
    return float(value[0])
