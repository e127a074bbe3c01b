"""Collectives of Python objects over a communicator, by requests and waits that yield.

For start-up and batch borders: MPICH's blocking collectives spin, which stalls a node that has
more ranks than cores. Knows nothing of roles or of what is sent.
"""

import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mpi4py import MPI

from janus_hpc.comm.pulse import Waiting
from janus_hpc.comm.waits import WaitPolicy, wait_request, wait_until


def barrier(
    comm: MPI.Comm, policy: WaitPolicy, meanwhile: Callable[[], None] | None = None
) -> None:
    """Wait for every rank of `comm`, calling `meanwhile` between polls. Collective."""
    request = comm.Ibarrier()

    def is_over() -> bool:
        if meanwhile is not None:
            meanwhile()
        return request.Test()

    wait_until(is_over, policy, lambda: Waiting("waiting for all ranks at a barrier"))


def allgather_objects(comm: MPI.Comm, value: object, policy: WaitPolicy) -> list[Any]:
    """The value of every rank of `comm`, in rank order. Collective."""
    mine = pickle.dumps(value)
    sizes = np.empty(comm.size, dtype=np.int64)
    _wait(comm.Iallgather(np.array([len(mine)], dtype=np.int64), sizes), policy, "all ranks")
    gathered, displs = _buffer_for(sizes)
    target = [gathered, sizes.tolist(), displs, MPI.BYTE]
    _wait(comm.Iallgatherv([mine, MPI.BYTE], target), policy, "all ranks")
    return _split(gathered, sizes, displs)


def gather_objects(
    comm: MPI.Comm, value: object, policy: WaitPolicy, root: int = 0
) -> list[Any] | None:
    """The value of every rank of `comm` on `root`, in rank order; None elsewhere. Collective."""
    mine = pickle.dumps(value)
    is_root = comm.rank == root
    sizes = np.empty(comm.size if is_root else 0, dtype=np.int64)
    size = np.array([len(mine)], dtype=np.int64)
    _wait(comm.Igather(size, sizes if is_root else None, root), policy, "all ranks")
    gathered, displs = _buffer_for(sizes)
    target = [gathered, sizes.tolist(), displs, MPI.BYTE] if is_root else None
    _wait(comm.Igatherv([mine, MPI.BYTE], target, root), policy, "all ranks")
    return _split(gathered, sizes, displs) if is_root else None


def bcast_object(comm: MPI.Comm, value: object, policy: WaitPolicy, root: int = 0) -> Any:
    """The value of `root`, on every rank of `comm`. Collective."""
    mine = pickle.dumps(value) if comm.rank == root else b""
    size = np.array([len(mine)], dtype=np.int64)
    _wait(comm.Ibcast(size, root), policy, f"rank {root}")
    payload = bytearray(mine) if comm.rank == root else bytearray(int(size[0]))
    _wait(comm.Ibcast([payload, MPI.BYTE], root), policy, f"rank {root}")
    return value if comm.rank == root else pickle.loads(payload)


def group_comm(comm: MPI.Intracomm, ranks: Sequence[int], tag: int) -> MPI.Intracomm:
    """A communicator of these ranks of `comm`, in this order. Collective over them alone."""
    everybody = comm.Get_group()
    group = everybody.Incl(list(ranks))
    its_comm = comm.Create_group(group, tag)
    group.Free()
    everybody.Free()
    return its_comm


def mpi_library_version() -> str:
    """The MPI library's name and version, one line."""
    lines = MPI.Get_library_version().strip("\0\n ").splitlines()
    return " ".join(lines[0].split()) if lines else "unknown"


def _wait(request: MPI.Request, policy: WaitPolicy, peers: str) -> None:
    wait_request(request, policy, lambda: Waiting(f"waiting for objects from {peers}"))


def _buffer_for(sizes: "np.ndarray[Any, np.dtype[np.int64]]") -> tuple[bytearray, list[int]]:
    displs = (np.cumsum(sizes) - sizes).tolist()
    return bytearray(int(sizes.sum())), displs


def _split(
    gathered: bytearray, sizes: "np.ndarray[Any, np.dtype[np.int64]]", displs: list[int]
) -> list[Any]:
    parts = zip(displs, sizes.tolist(), strict=True)
    return [pickle.loads(memoryview(gathered)[start : start + size]) for start, size in parts]
