"""The headers of a step by MPI: every active rank's words to every other.

Knows neither what the words mean nor how rows travel.
"""

from collections.abc import Callable

import numpy as np
from mpi4py import MPI

from janus_hpc.comm.layout import Peers
from janus_hpc.comm.waits import WaitPolicy, wait_until


def allgather_words(
    comm: MPI.Intracomm,
    mine: list[int],
    peers: Peers,
    policy: WaitPolicy,
    progress: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """The words of all active ranks, in world order. Collective over `comm`, the active ranks.

    `progress` is called while waiting, for whatever else is to move.
    """
    words = np.empty((comm.size, len(mine)), dtype=np.int64)
    active = peers.topology.active_ranks
    others = [world_rank for world_rank in active if world_rank != peers.world_rank]
    request = comm.Iallgather(np.array(mine, dtype=np.int64), words)

    def is_ready() -> bool:
        progress()
        return request.Test()

    wait_until(is_ready, policy, lambda: peers.waiting("the headers of a step", others))
    found: list[list[int]] = words.tolist()
    return found
