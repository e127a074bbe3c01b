"""Slabs in memory that CPU ranks share: the device exchange as it is, without a GPU."""

import torch
from mpi4py import MPI
from torch import Tensor

from janus_hpc.comm.objects import barrier
from janus_hpc.comm.waits import WaitPolicy


class WindowSlabs:
    """Each rank's own part of one MPI-3 shared window; see `device_slots.Slabs`."""

    def __init__(
        self, comm: MPI.Intracomm, sizes_bytes: list[int], policy: WaitPolicy, *, on_device: bool
    ) -> None:
        """`on_device`: waits are the kernels', else the host's. Collective over `comm`."""
        self.device, self.waits_on_device = torch.device("cpu"), on_device
        self._comm, self._policy = comm, policy
        self._win = MPI.Win.Allocate_shared(sizes_bytes[comm.rank], 1, comm=comm)
        parts = [self._win.Shared_query(peer)[0] for peer in range(comm.size)]
        self.tensors: list[Tensor] = [torch.frombuffer(part, dtype=torch.uint8) for part in parts]
        # What is used before it was written must not look right.
        self.tensors[comm.rank].fill_(0xFF)
        self.tensors[comm.rank][:4096].zero_()
        barrier(comm, policy)

    def free(self) -> None:
        """Unmap. Collective over the communicator."""
        self.tensors = []
        barrier(self._comm, self._policy)
        self._win.Free()
