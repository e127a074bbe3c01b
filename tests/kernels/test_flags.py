"""Flags: the Triton kernels, in the interpreter and on a GPU, and their twin keep the contract.

Triton fixes at its import whether it interprets, so each way runs in a process of its own.
"""

from pathlib import Path

import pytest
import torch
from janus_hpc.kernels.flags import late_flags

from tests.kernels.test_route_triton import needs_gpu, run_python

pytest.importorskip("triton")

# What each way is checked by: only tensors on `device`, so that the same text serves all.
CONTRACT = """
import sys, threading, torch
from importlib import import_module
from janus_hpc.kernels.flags import MAX_FLAGS, late_flags
flags, device = import_module("janus_hpc.kernels." + sys.argv[1]), sys.argv[2]
TINY = 10_000_000 if device == "cuda" else 20

def words(values):
    return torch.tensor(values, dtype=torch.int64, device=device)

def addresses(memory, places):
    return words([memory.data_ptr() + 8 * place for place in places])

# Posting counts up and touches no other word.
memory, posted, status = words([0] * 200), words([1]), words([0] * 3)
receivers = addresses(memory, [0, 3, 131])
for generation in (1, 2, 3):
    flags.post(receivers, posted, status)
    want = torch.zeros(200, dtype=torch.int64)
    want[[0, 3, 131]] = generation
    assert torch.equal(memory.cpu(), want) and int(posted) == generation + 1
flags.post(addresses(memory, []), posted, status)
assert torch.equal(memory.cpu(), want) and int(posted) == 5

# A wait returns for flags that are there or ahead, and counts up.
awaited = words([1])
for generation in (1, 2, 3):
    flags.wait(receivers, awaited, status, 7, TINY)
    assert int(awaited) == generation + 1 and status.tolist() == [0, 0, 0]

# A late flag: which, at what generation, in which wait; then nothing waits or posts any more.
memory[0], memory[131] = 4, 5
flags.wait(receivers, awaited, status, 7, TINY)
assert [int(status[0]), late_flags(int(status[1])), int(status[2])] == [8, [1], 4], status
before = memory.clone()
flags.wait(receivers, awaited, status, 9, 1 << 60)
flags.post(receivers, posted, status)
assert [int(status[0]), late_flags(int(status[1])), int(status[2])] == [8, [1], 4], status
assert torch.equal(memory, before)

# As many flags as there may be, the last one late or all.
memory, awaited, status = words([3] * MAX_FLAGS), words([3]), words([0] * 3)
every = addresses(memory, range(MAX_FLAGS))
flags.wait(every, awaited, status, 0, TINY)
assert status.tolist() == [0, 0, 0]
memory[-1] = 5
flags.wait(every, awaited, status, 0, TINY)
assert late_flags(int(status[1])) == list(range(MAX_FLAGS - 1)), status
status.zero_()
flags.wait(every, words([6]), status, 0, TINY)
assert late_flags(int(status[1])) == list(range(MAX_FLAGS)), status
status.zero_()
flags.wait(every, words([5]), status, 0, TINY)
assert 63 not in late_flags(int(status[1])), status
try:
    flags.post(addresses(memory, range(MAX_FLAGS + 1)), posted, status)
except AssertionError:
    pass
else:
    raise SystemExit("too many flags were taken")
"""
# Two processes hand a word of plain memory to and fro under the flags' protection.
PROCESSES = """
import multiprocessing, sys, torch
from janus_hpc.kernels import flags_triton as flags
NUM_TURNS = 200

def play(memory, place, failed):
    # Words 0 and 1: flags; 8: what is protected. Place 0 begins.
    base = memory.data_ptr()
    mine, theirs = (torch.tensor([base + 8 * its]) for its in (place, 1 - place))
    posted, awaited = torch.tensor([1]), torch.tensor([1])
    status = torch.zeros(3, dtype=torch.int64)
    for turn in range(NUM_TURNS):
        if place == 1:
            flags.wait(mine, awaited, status, 0, 1_000_000)
        if status[0] or memory[8] != 2 * turn + place:
            failed.value = 1
        memory[8] += 1
        flags.post(theirs, posted, status)
        if place == 0:
            flags.wait(mine, awaited, status, 0, 1_000_000)

if __name__ == "__main__":
    memory = torch.zeros(16, dtype=torch.int64).share_memory_()
    context = multiprocessing.get_context("fork")
    failed = context.Value("i", 0)
    players = [context.Process(target=play, args=(memory, place, failed)) for place in (0, 1)]
    for player in players:
        player.start()
    for player in players:
        player.join(120)
    assert [player.exitcode for player in players] == [0, 0]
    assert not failed.value and memory[8] == 2 * NUM_TURNS
"""
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from janus_hpc.kernels.flags_triton import post_kernel, wait_kernel

pointers = dict.fromkeys(("addresses_ptr", "generation_ptr", "status_ptr"), "*i64")
counts = dict(num_flags="i32", wait_id="i32", bound="i64")
cases = [
    (post_kernel, dict(num_receivers="i32"), dict(BLOCK=64), "atom.global.sys.release.exch.b64"),
    (wait_kernel, counts, dict(BLOCK=64, TIMED=True), "atom.global.sys.acquire.add.u64"),
]
for kernel, scalars, sizes, atomic in cases:
    signature = {**pointers, **scalars, **dict.fromkeys(sizes, "constexpr")}
    for arch in (80, 90):
        built = triton.compile(ASTSource(kernel, signature, sizes),
                               target=GPUTarget("cuda", arch, 32), options={"num_warps": 1})
        assert built.asm["cubin"][:4] == b"\\x7fELF"
        assert f".target sm_{arch}" in built.asm["ptx"]
        assert atomic in built.asm["ptx"], built.asm["ptx"]
        assert ("%globaltimer" in built.asm["ptx"]) == (kernel is wait_kernel)
"""
# One graph, replayed: no value of a launch may have been baked in.
GRAPH = """
import torch
from janus_hpc.kernels import flags_triton as flags
def words(values):
    return torch.tensor(values, dtype=torch.int64, device="cuda")
memory, posted, awaited, status = words([0] * 4), words([1]), words([1]), words([0] * 3)
places = words([memory.data_ptr() + 8 * place for place in range(4)])
x, y = torch.zeros(1 << 20, device="cuda"), torch.zeros(1 << 20, device="cuda")
def turn():
    x.add_(1)
    flags.post(places, posted, status)
    flags.wait(places, awaited, status, 0, 10**9)
    y.copy_(x)
turn()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    turn()
for _ in range(50):
    graph.replay()
torch.cuda.synchronize()
assert memory.tolist() == [51] * 4 and int(posted) == int(awaited) == 52
assert status.tolist() == [0, 0, 0] and y.unique().tolist() == [51.0]
"""
WAYS = [
    ("flags", "cpu", False),
    ("flags_triton", "cpu", True),
    pytest.param("flags_triton", "cuda", False, marks=[needs_gpu]),
]


@pytest.mark.parametrize(("module", "device", "interpret"), WAYS)
def test_contract(module: str, device: str, interpret: bool, tmp_path: Path) -> None:
    run_python(CONTRACT, tmp_path, module, device, interpret=interpret)


def test_flags_order_memory_between_processes(tmp_path: Path) -> None:
    run_python(PROCESSES, tmp_path, interpret=True)


def test_kernels_compile_for_gpus_without_one(tmp_path: Path) -> None:
    run_python(COMPILE, tmp_path)


@needs_gpu
def test_kernels_in_a_cuda_graph(tmp_path: Path) -> None:
    run_python(GRAPH, tmp_path)


@pytest.mark.parametrize("late", [[], [0], [63], [5, 31, 32, 62, 63]])
def test_late_flags_are_the_bits(late: list[int]) -> None:
    bits = sum(torch.tensor(1).bitwise_left_shift(its) for its in late)
    assert late_flags(int(bits)) == late
