"""The MPI link: point-to-point messages on a communicator of its own.

The second link beside UCX, and the one that runs everywhere; knows no layers, rows or steps.
"""

from collections.abc import Sequence

from mpi4py import MPI
from torch import Tensor

from janus_hpc.comm.objects import mpi_library_version
from janus_hpc.errors import LinkError

# A test moves a large message by one piece, and a waiting rank sleeps between polls.
_MAX_TURNS = 8


class MpiTransfer:
    """A message under way; keeps its memory alive."""

    def __init__(self, request: MPI.Request, memory_B: Tensor, what: str) -> None:
        self.num_bytes = memory_B.nbytes
        self._request, self._memory_B, self._what = request, memory_B, what
        self._done = False

    def is_done(self) -> bool:
        """Whether the memory may be used again; LinkError when MPI says it failed."""
        if not self._done:
            try:
                self._done = any(self._request.Test() for _ in range(_MAX_TURNS))
            except MPI.Exception as error:
                raise _link_error(self._what, error) from error
        return self._done


class MpiLink:
    """Isend and Irecv of bytes; a peer that vanishes shows only as a wait without an answer."""

    name = "mpi"

    def __init__(
        self, comm: MPI.Intracomm, world_ranks: Sequence[int], why: str = "asked for"
    ) -> None:
        """Take over `comm`, whose rank i is world rank `world_ranks[i]`. Not collective."""
        self.detail, self.why = mpi_library_version(), why
        comm.Set_errhandler(MPI.ERRORS_RETURN)
        self._comm = comm
        self._comm_ranks = {world_rank: i for i, world_rank in enumerate(world_ranks)}

    def send(self, world_rank: int, tag: int, memory_B: Tensor) -> MpiTransfer:
        """Start to send; LinkError when MPI refuses."""
        what = f"sending {memory_B.nbytes} bytes with tag {tag} to world rank {world_rank}"
        peer = self._comm_ranks[world_rank]
        try:
            return MpiTransfer(self._comm.Isend(_memory(memory_B), peer, tag), memory_B, what)
        except MPI.Exception as error:
            raise _link_error(what, error) from error

    def recv(self, world_rank: int, tag: int, memory_B: Tensor) -> MpiTransfer:
        """Post memory; LinkError when MPI refuses."""
        what = f"up to {memory_B.nbytes} bytes with tag {tag} from world rank {world_rank}"
        peer = self._comm_ranks[world_rank]
        try:
            return MpiTransfer(self._comm.Irecv(_memory(memory_B), peer, tag), memory_B, what)
        except MPI.Exception as error:
            raise _link_error(what, error) from error

    def progress(self) -> None:
        """One probe: it drives all of MPI's requests."""
        self._comm.Iprobe(MPI.ANY_SOURCE, MPI.ANY_TAG)

    def free(self) -> None:
        """Free the communicator. Collective over its ranks."""
        self._comm.Free()


def _memory(memory_B: Tensor) -> list[MPI.buffer | MPI.Datatype]:
    assert memory_B.is_contiguous() and memory_B.device.type == "cpu", f"{memory_B.device=}"
    return [MPI.buffer.fromaddress(memory_B.data_ptr(), memory_B.nbytes), MPI.BYTE]


def _link_error(what: str, error: MPI.Exception) -> LinkError:
    return LinkError(f"MPI link: {what}: {' '.join(error.Get_error_string().split())}")
