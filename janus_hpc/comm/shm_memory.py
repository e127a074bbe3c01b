"""Memory that the ranks of a node map together, and how much of it is free.

Owns the MPI windows; knows nothing of what lies in them.
"""

import os

import torch
from mpi4py import MPI
from torch import Tensor

from janus_hpc.comm.objects import barrier
from janus_hpc.comm.waits import WaitPolicy

_SHM_FOLDER = "/dev/shm"


def shm_free_bytes() -> int | None:
    """Free bytes of the file system that backs shared windows; None where there is none to ask."""
    if not os.path.isdir(_SHM_FOLDER):
        return None
    stats = os.statvfs(_SHM_FOLDER)
    return stats.f_bavail * stats.f_frsize


class SharedMemory:
    """One buffer of zeroes, the same on all ranks of a communicator, which all share a node."""

    def __init__(self, comm: MPI.Intracomm, num_bytes: int) -> None:
        """Allocate on the first rank, map on all. Collective over `comm`, which it takes over."""
        self._comm = comm
        self._win = MPI.Win.Allocate_shared(num_bytes if comm.rank == 0 else 0, 1, comm=comm)
        self.memory, _ = self._win.Shared_query(0)
        # Fences need an access epoch; nothing is locked with NOCHECK.
        self._win.Lock_all(MPI.MODE_NOCHECK)
        self.fence = self._win.Sync
        barrier(comm, WaitPolicy())

    def bytes(self) -> Tensor:
        """The whole buffer as uint8."""
        return torch.frombuffer(self.memory, dtype=torch.uint8)

    def free(self, policy: WaitPolicy) -> None:
        """Unmap; every view is invalid from then on. Collective over the communicator."""
        barrier(self._comm, policy)
        self._win.Unlock_all()
        self._win.Free()
        self._comm.Free()
