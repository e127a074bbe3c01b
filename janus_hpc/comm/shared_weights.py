"""Memory that ranks of one node share: what several of them need is held, and read, once.

Knows nothing of what is stored in it.
"""

import torch
from mpi4py import MPI
from torch import Tensor

from janus_hpc.comm.objects import allgather_objects, barrier, bcast_object
from janus_hpc.comm.shm_memory import shm_free_bytes
from janus_hpc.comm.world import World
from janus_hpc.errors import UsageError


class NodeShared:
    """Buffers of the ranks of a node that gave the same `group`; the lowest of them is the leader.

    The leader fills a buffer, all call `fence`, then all may read it.
    """

    def __init__(self, world: World, group: str) -> None:
        """Find the ranks of the group. Collective over each node: all its ranks give a group."""
        self._policy = world.policy
        groups = sorted(set(allgather_objects(world.node_comm, group, self._policy)))
        self._comm = MPI.Intracomm(world.node_comm.Split(groups.index(group), world.local_rank))
        self._wins: list[MPI.Win] = []

    @property
    def num_ranks(self) -> int:
        """Ranks of this node in the group."""
        return self._comm.size

    @property
    def is_leader(self) -> bool:
        """Whether this rank fills the buffers."""
        return self._comm.rank == 0

    def allocate(self, num_bytes: int) -> Tensor:
        """A uint8 buffer, the same memory on all ranks of the group. Collective over the group.

        `num_bytes` counts on the leader. UsageError on all when the node's shared memory is too
        small.
        """
        wanted, free = bcast_object(self._comm, (num_bytes, shm_free_bytes()), self._policy)
        if self._comm.size == 1 or wanted == 0:
            return torch.empty(wanted, dtype=torch.uint8)
        if free is not None and free < wanted:
            raise UsageError(
                f"/dev/shm has {free} bytes free, but {self._comm.size} ranks of this node are to "
                f"share {wanted} bytes: enlarge it (containers: --shm-size), or use one rank a node"
            )
        win = MPI.Win.Allocate_shared(wanted if self.is_leader else 0, 1, comm=self._comm)
        self._wins.append(win)
        win.Lock_all(MPI.MODE_NOCHECK)
        memory, _ = win.Shared_query(0)
        return torch.frombuffer(memory, dtype=torch.uint8)

    def fence(self) -> None:
        """What any rank of the group wrote before is seen by all after. Collective over the
        group.
        """
        for win in self._wins:
            win.Sync()
        barrier(self._comm, self._policy)
        for win in self._wins:
            win.Sync()

    def free(self) -> None:
        """Unmap all buffers; tensors on them are invalid from then on. Collective over the
        group.
        """
        barrier(self._comm, self._policy)
        for win in self._wins:
            win.Unlock_all()
            win.Free()
        self._wins.clear()
        self._comm.Free()
