"""Slabs of GPU memory with a CUDA runtime that only keeps books: who holds what, and in what order it goes.

What a real GPU does with them is seen in test_device_exchange.py.
"""

import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from mpi4py import MPI
from torch import Tensor

from janus_hpc.comm.device import cuda_slabs
from janus_hpc.comm.device.cuda_slabs import CudaSlabs, PeerMemoryError
from janus_hpc.comm.waits import WaitPolicy
from janus_hpc.comm.world import World
from tests.mpi.window_slabs import WindowSlabs

pytestmark = pytest.mark.world_size(2, 3)
POLICY, GPU, BASE = WaitPolicy(timeout_s=60), torch.device("cuda", 0), 1 << 40


class Books:
    """A runtime whose pointers are BASE + world rank; `opened[i]`: who has rank i's memory open."""

    def __init__(self, opened_RR: Tensor, world_rank: int) -> None:
        self.opened_RR, self.mine = opened_RR, world_rank
        self.held, self.fails_in = 0, ""

    def malloc(self, size: int) -> int:
        if self.fails_in == "malloc":
            raise RuntimeError("cudaErrorMemoryAllocation: out of memory")
        assert size % (2 << 20) == 0 and size > 0
        self.held = size
        return BASE + self.mine

    def memset(self, pointer: int, value: int, size: int) -> None:
        assert (pointer, value, size) == (BASE + self.mine, 0, self.held)

    def deviceSynchronize(self) -> None:
        pass

    def ipcGetMemHandle(self, pointer: int) -> bytes:
        return bytes([pointer - BASE]) * 64

    def ipcOpenMemHandle(self, handle: bytes) -> int:
        assert handle[0] != self.mine, "a process may not open its own memory"
        if self.fails_in == "open":
            raise RuntimeError("cudaErrorMapBufferObjectFailed: mapping failed")
        self.opened_RR[handle[0], self.mine] += 1
        return BASE + handle[0]

    def ipcCloseMemHandle(self, pointer: int) -> None:
        self.opened_RR[pointer - BASE, self.mine] -= 1

    def free(self, pointer: int) -> None:
        assert pointer == BASE + self.mine and self.held
        assert not self.opened_RR[self.mine].any(), "freed while a peer has it open"
        self.held = 0


@pytest.fixture
def books(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Books]:
    comm = MPI.Intracomm(world.comm.Dup())
    memory = WindowSlabs(comm, [4096] * comm.size, POLICY, on_device=True)
    words = memory.tensors[0].view(torch.int64)[: comm.size**2].view(comm.size, comm.size)
    made = Books(words, comm.rank)

    class Device:
        def __init__(self, index: int) -> None:
            assert index == GPU.index

        def __enter__(self) -> "Device":
            return self

        def __exit__(self, *error: object) -> None:
            pass

    cuda = SimpleNamespace(runtime=made, Device=Device)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(cuda_slabs, "_uuid", lambda index: "the only one")
    monkeypatch.setattr(CudaSlabs, "_wrap", lambda self, pointer, size: (pointer - BASE, size))
    yield made
    assert not made.held
    world.barrier()
    assert not words.any()
    del made.opened_RR, words
    memory.free()
    comm.Free()


def test_all_is_opened_and_given_back_in_order(world: World, books: Books) -> None:
    sizes = [100 * (peer + 1) for peer in range(world.world_size)]
    for _ in range(2):
        slabs = CudaSlabs(world.comm, sizes, GPU, POLICY)
        assert slabs.tensors == list(enumerate(sizes))
        # All ranks are on one GPU.
        assert not slabs.waits_on_device
        world.barrier()
        assert int(books.opened_RR.sum()) == world.world_size * (world.world_size - 1)
        world.barrier()
        slabs.free()


def test_a_gpu_of_ones_own_lets_kernels_wait(
    world: World, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_slabs, "_uuid", lambda index: f"GPU {world.world_rank}")
    slabs = CudaSlabs(world.comm, [8] * world.world_size, GPU, POLICY)
    assert slabs.waits_on_device
    slabs.free()


@pytest.mark.parametrize(
    ("call", "text"), [("malloc", "out of memory"), ("open", "mapping failed")]
)
def test_a_failure_on_one_rank_is_everybodys_and_leaves_nothing(
    world: World, books: Books, call: str, text: str
) -> None:
    books.fails_in = call if world.world_rank == 1 else ""
    with pytest.raises(PeerMemoryError, match=text):
        CudaSlabs(world.comm, [8] * world.world_size, GPU, POLICY)
