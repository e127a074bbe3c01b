"""Memory of GPUs that the ranks of a node open to each other: CuPy allocates it, CUDA IPC opens it.

Knows nothing of what is stored in it. A slab is one rank's allocation; every rank sees every slab
as a torch tensor on its own GPU. CuPy is imported only when slabs are asked for.
"""

import ctypes
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any

import torch
from mpi4py import MPI
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from janus_hpc.comm.objects import allgather_objects, barrier
from janus_hpc.comm.waits import WaitPolicy
from janus_hpc.errors import JanusError

# Smaller allocations share a block with others, and CUDA IPC opens the whole block.
_GRAIN_BYTES = 2 << 20
# CU_DEVICE_P2P_ATTRIBUTE_NATIVE_ATOMIC_SUPPORTED of cuda.h.
_NATIVE_ATOMICS = 3


class PeerMemoryError(JanusError):
    """GPU memory that cannot be allocated or opened; the same on all ranks of the communicator."""


class CudaSlabs:
    """One slab a rank of `comm`; `tensors[i]` is rank i's, uint8, writable by every rank.

    `device` is this rank's GPU. `waits_on_device`: no other rank of `comm` uses this GPU, so that a
    kernel here may wait for one of theirs. All slabs start as zeros.
    """

    def __init__(
        self, comm: MPI.Intracomm, sizes_bytes: list[int], device: torch.device, policy: WaitPolicy
    ) -> None:
        """Allocate sizes_bytes[comm.rank] and open all others. Collective over `comm`.

        To be called where `why_not_peers` found no obstacle. PeerMemoryError on all ranks where one
        of them has no memory left or cannot open a slab.
        """
        assert device.type == "cuda" and device.index is not None, f"{device=}"
        assert len(sizes_bytes) == comm.size, f"{sizes_bytes=} {comm.size=}"
        self.device = device
        self._comm, self._policy = comm, policy
        self._cupy: Any = import_module("cupy")
        self._runtime: Any = self._cupy.cuda.runtime
        uuids = allgather_objects(comm, _uuid(device.index), policy)
        self.waits_on_device = uuids.count(uuids[comm.rank]) == 1
        self._own, self._opened = 0, dict[int, int]()
        with self._on_device():
            handles = self._allocate(sizes_bytes[comm.rank])
            self._open(handles)
            pointers = {comm.rank: self._own, **self._opened}
            self.tensors = [self._wrap(pointers[i], sizes_bytes[i]) for i in range(comm.size)]

    def free(self) -> None:
        """Close all slabs, then free the own one. Tensors on them are invalid from then on.

        Collective over the communicator, which stays the caller's.
        """
        torch.cuda.synchronize(self.device)
        self.tensors = []
        with self._on_device():
            barrier(self._comm, self._policy)
            self._release()

    def _on_device(self) -> AbstractContextManager[object]:
        context: AbstractContextManager[object] = self._cupy.cuda.Device(self.device.index)
        return context

    def _allocate(self, num_bytes: int) -> list[bytes]:
        """The own slab, zeroed; returns every rank's handle."""
        handle, problem = b"", ""
        size = -(-max(num_bytes, 1) // _GRAIN_BYTES) * _GRAIN_BYTES
        try:
            self._own = self._runtime.malloc(size)
            self._runtime.memset(self._own, 0, size)
            self._runtime.deviceSynchronize()
            handle = self._runtime.ipcGetMemHandle(self._own)
        except RuntimeError as error:
            problem = f"{size} bytes on {self.device}: {error}"
        handles: list[bytes] = allgather_objects(self._comm, handle, self._policy)
        self._agree(problem)
        return handles

    def _open(self, handles: list[bytes]) -> None:
        """Open all slabs but the own one, which a process may not open."""
        problem = ""
        try:
            for peer, handle in enumerate(handles):
                if peer != self._comm.rank:
                    self._opened[peer] = self._runtime.ipcOpenMemHandle(handle)
        except RuntimeError as error:
            problem = f"opening the memory of a peer on {self.device}: {error}"
        self._agree(problem)

    def _agree(self, problem: str) -> None:
        """PeerMemoryError on all ranks where one has a problem; then nothing is held any more."""
        why = agree_on(self._comm, problem, self._policy)
        if why:
            self._release()
            raise PeerMemoryError(why)

    def _release(self) -> None:
        """Close what is open, and free the own slab when no rank has it open any more."""
        for pointer in self._opened.values():
            self._runtime.ipcCloseMemHandle(pointer)
        self._opened.clear()
        barrier(self._comm, self._policy)
        if self._own:
            self._runtime.free(self._own)
            self._own = 0

    def _wrap(self, pointer: int, num_bytes: int) -> Tensor:
        """A tensor on this rank's GPU, wherever the memory is.

        The device is given and not looked up: torch would synchronise with the other GPU, and open
        a context on it, for every copy to a tensor that says it is there.
        """
        cuda = self._cupy.cuda
        memory = cuda.UnownedMemory(pointer, num_bytes, self, self.device.index)
        array = self._cupy.ndarray((num_bytes,), "uint8", cuda.MemoryPointer(memory, 0))
        tensor: Tensor = from_dlpack(array)
        assert tensor.device == self.device and tensor.data_ptr() == pointer, f"{tensor.device=}"
        return tensor


def agree_on(comm: MPI.Intracomm, problem: str, policy: WaitPolicy) -> str:
    """The problem of the lowest rank that has one, "" where none has. Collective over `comm`."""
    problems = allgather_objects(comm, problem, policy)
    return next((its for its in problems if its), "")


def why_not_peers(comm: MPI.Intracomm, device: torch.device, policy: WaitPolicy) -> str:
    """Why the ranks of `comm` cannot use each other's GPU memory; "" where they can.

    Looks at devices and links, then really opens a slab of every rank and writes to it. The same
    answer on all ranks. Collective over `comm`, ranks of one node.
    """
    uuid = _uuid(device.index) if device.type == "cuda" else ""
    uuids = allgather_objects(comm, uuid, policy)
    why = agree_on(comm, _obstacle(device, uuids), policy)
    if why:
        return why
    try:
        slabs = CudaSlabs(comm, [8 * comm.size] * comm.size, device, policy)
    except PeerMemoryError as error:
        return str(error)
    problem = _try_out(slabs, comm, policy)
    why = agree_on(comm, problem, policy)
    slabs.free()
    return why


def _try_out(slabs: CudaSlabs, comm: MPI.Intracomm, policy: WaitPolicy) -> str:
    """Every rank writes into every slab; "" if all of it arrives in the own one."""
    for tensor in slabs.tensors:
        tensor.view(torch.int64)[comm.rank] = comm.rank + 1
    torch.cuda.synchronize(slabs.device)
    barrier(comm, policy)
    seen = slabs.tensors[comm.rank].view(torch.int64).tolist()
    if seen == [peer + 1 for peer in range(comm.size)]:
        return ""
    return f"what peers write into the memory of {slabs.device} does not arrive: {seen}"


def _obstacle(device: torch.device, uuids: list[str]) -> str:
    """What this rank can tell without opening anything."""
    if device.type != "cuda":
        return f"a rank's tensors are on {device.type}"
    for package in ("cupy", "triton"):
        try:
            import_module(package)
        except ImportError as error:
            return f"{package} cannot be imported ({error}); pip install 'janus-hpc[cuda12]'"
    places = {_uuid(index): index for index in range(torch.cuda.device_count())}
    for uuid in set(uuids) - {_uuid(device.index)}:
        if uuid not in places:
            return (
                f"a peer's GPU {uuid} is not visible beside {device}: let every rank see all GPUs "
                "of its node (CUDA_VISIBLE_DEVICES; Slurm: --gpu-bind=none)"
            )
        obstacle = _link_obstacle(device.index, places[uuid])
        if obstacle:
            return obstacle
    return ""


def _link_obstacle(here: int, there: int) -> str:
    runtime: Any = import_module("cupy").cuda.runtime
    if not runtime.deviceCanAccessPeer(here, there):
        return f"GPU {here} has no peer access to GPU {there}"
    # Flags are set by atomic exchanges, which not every link carries.
    value = ctypes.c_int(0)
    driver = ctypes.CDLL("libcuda.so.1")
    failed = driver.cuDeviceGetP2PAttribute(ctypes.byref(value), _NATIVE_ATOMICS, here, there)
    if failed or not value.value:
        return f"the link from GPU {here} to GPU {there} carries no atomic operations"
    return ""


def _uuid(index: int) -> str:
    """Names a physical GPU, or a part of one, alike in all processes of a node."""
    return str(torch.cuda.get_device_properties(index).uuid)
