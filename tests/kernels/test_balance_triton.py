"""AEBS in Triton: in the interpreter (and on a GPU) the same choices as the plain twin; compiled for GPUs."""

from pathlib import Path

import pytest

from tests.kernels.test_route_triton import needs_gpu, run_python

CHECK = """
import torch
from janus_hpc.kernels.balance import balance
from janus_hpc.kernels.balance_triton import balance_aebs
from janus_hpc.kernels.slot_lists import SlotLists
from janus_hpc.kernels.slot_map import SlotMap
from tests.kernels.test_balance import random_ids, random_slots

cases = [(1, 1, 1, 1), (5, 1, 5, 3), (20, 3, 7, 9), (64, 8, 9, 5), (64, 8, 12, 16), (160, 6, 27, 16),
         (160, 16, 13, 64), (256, 16, 17, 300), (130, 66, 3, 40), (300, 150, 3, 30), (64, 8, 12, 0)]
device = torch.device({device!r})
for seed, (num_experts, num_ranks, num_slots, num_tokens) in enumerate(cases):
    lists = SlotLists(random_slots(num_experts, num_ranks, num_slots, seed), num_experts)
    ids = random_ids(num_tokens, min(6, num_experts), num_experts, seed)
    found = balance_aebs(ids.to(device), SlotMap.make(lists, device))
    plain = balance(ids, SlotMap.make(lists, torch.device("cpu")), "aebs", 0)
    assert torch.equal(found.slots_TJ.cpu(), plain.slots_TJ), seed
    assert torch.equal(found.counts_E.cpu(), plain.counts_E), seed
    assert torch.equal(found.loads_R.cpu(), plain.loads_R), seed
"""
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from janus_hpc.kernels.balance_triton import balance_kernel

pointers = ["ids", "slot_of", "hosts", "primary", "slots", "counts", "loads", "table"]
types = {f"{name}_ptr": "*i32" for name in pointers} | {"hosts_ptr": "*i64"}
types |= dict.fromkeys(["num_choices", "num_experts", "num_ranks"], "i32")
for block, experts, ranks, words in [(256, 64, 8, 1), (4096, 256, 16, 1), (2048, 512, 128, 2)]:
    sizes = dict(BLOCK=block, BLOCK_E=experts, BLOCK_R=ranks, W=words)
    signature = {**types, **dict.fromkeys(sizes, "constexpr")}
    signature = {name: signature[name] for name in balance_kernel.arg_names}
    for arch in (80, 90):
        kernel = triton.compile(ASTSource(balance_kernel, signature, sizes),
                                target=GPUTarget("cuda", arch, 32), options={"num_warps": 4})
        assert kernel.asm["cubin"][:4] == b"\\x7fELF"
        assert f".target sm_{arch}" in kernel.asm["ptx"]
"""
GRAPH = """
import torch
from janus_hpc.kernels.slot_lists import SlotLists
from janus_hpc.kernels.slot_map import SlotMap
from janus_hpc.kernels.torch_ops import TorchOps
from tests.kernels.test_balance import random_ids, random_slots
device = torch.device("cuda")
ops, lists = TorchOps(device), SlotLists(random_slots(160, 8, 27, 0), 160)
slot_map = SlotMap.make(lists, device)
ids = random_ids(64, 6, 160, 1).to(device)
ops.balance(ids, slot_map, "aebs", 0)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    result = ops.balance(ids, slot_map, "aebs", 0)
ids.copy_(random_ids(64, 6, 160, 2))
graph.replay()
assert torch.equal(result.slots_TJ, ops.balance(ids, slot_map, "aebs", 0).slots_TJ)
"""


@pytest.mark.parametrize(
    ("device", "interpret"), [("cpu", True), pytest.param("cuda", False, marks=[needs_gpu])]
)
def test_kernel_chooses_as_the_twin(tmp_path: Path, device: str, interpret: bool) -> None:
    run_python(CHECK.format(device=device), tmp_path, interpret=interpret)


def test_kernel_compiles_for_gpus_without_one(tmp_path: Path) -> None:
    run_python(COMPILE, tmp_path)


@needs_gpu
def test_kernel_in_a_cuda_graph(tmp_path: Path) -> None:
    run_python(GRAPH, tmp_path)
