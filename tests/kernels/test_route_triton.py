"""The Triton gate: in the interpreter (and on a GPU) against the twin and a plain formula; compiled for GPUs.

Triton fixes at its import whether it interprets, so each way runs in a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from janus_hpc.kernels.torch_ops import TorchOps
from torch import Tensor

from tests.kernels.helpers import assert_route, normal, tied_logits

pytest.importorskip("triton")

SHAPES = [(e, k, 0, 0) for e in (8, 20, 64, 160, 256) for k in (1, 3, 6, 8)]
GROUPED = [(8, 3, 4, 2), (20, 6, 5, 2), (160, 6, 8, 3), (64, 8, 16, 1)]
SETTINGS = [
    (*shape, renormalize, scale)
    for shape in SHAPES + GROUPED
    for renormalize, scale in ((False, 1.0), (True, 2.5))
]
RUN = """
import sys, torch
from janus_hpc.kernels.route_triton import route_softmax_topk
device, folder = sys.argv[1:]
cases = torch.load(folder + "/cases.pt")
results = []
for logits, (e, k, groups, kept, renormalize, scale) in cases:
    ids, weights = route_softmax_topk(
        logits.to(device), k, renormalize, scale, num_groups=groups, topk_groups=kept)
    results.append((ids.cpu(), weights.cpu()))
torch.save(results, folder + "/results.pt")
"""
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from janus_hpc.kernels.route_triton import route_kernel

types = dict(logits_ptr="*fp32", ids_ptr="*i32", weights_ptr="*fp32", num_experts="i32",
             group_size="i32", scale="fp32")
for kept in (0, 3):
    sizes = dict(TOP_K=6, TOPK_GROUPS=kept, RENORMALIZE=True, BLOCK_E=256)
    signature = {**types, **dict.fromkeys(sizes, "constexpr")}
    for arch in (80, 90):
        kernel = triton.compile(ASTSource(route_kernel, signature, sizes),
                                target=GPUTarget("cuda", arch, 32), options={"num_warps": 1})
        assert kernel.asm["cubin"][:4] == b"\\x7fELF"
        assert f".target sm_{arch}" in kernel.asm["ptx"]
"""
GRAPH = """
import torch
from janus_hpc.kernels.torch_ops import TorchOps
ops = TorchOps(torch.device("cuda"))
logits = torch.randn(5, 160, device="cuda")
ops.route_softmax_topk(logits, 6, True, 1.0)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    ids, weights = ops.route_softmax_topk(logits, 6, True, 1.0)
logits.copy_(torch.randn(5, 160, device="cuda"))
graph.replay()
want_ids, want_weights = TorchOps(torch.device("cpu")).route_softmax_topk(logits.cpu(), 6, True, 1.0)
assert torch.equal(ids.cpu(), want_ids)
torch.testing.assert_close(weights.cpu(), want_weights)
"""
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def run_python(code: str, cache: Path, *arguments: str, interpret: bool = False) -> None:
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(cache)} | ({"TRITON_INTERPRET": "1"} if interpret else {})
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def cases() -> list[tuple[Tensor, tuple[Any, ...]]]:
    """Every setting with one of the token counts in turn, bad logits, and a row stride of its own."""
    made: list[tuple[Tensor, tuple[Any, ...]]] = []
    for i, setting in enumerate(SETTINGS):
        num_tokens = (0, 33, 1, 5)[(i + i // 8) % 4]
        made.append((tied_logits(num_tokens, setting[0]), setting))
    bad = torch.zeros(3, 20)
    bad[0, 7], bad[1, 7], bad[2] = float("nan"), float("inf"), float("-inf")
    wide = normal(5, 70)[:, :64]
    return [*made, (bad, (20, 3, 0, 0, True, 1.0)), (wide, (64, 6, 0, 0, True, 1.0))]


@pytest.fixture(scope="module", params=["interpreter", pytest.param("cuda", marks=[needs_gpu])])
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[Tensor, Tensor]]:
    """What the kernel gives for `cases()`."""
    folder = tmp_path_factory.mktemp("route")
    interpret = request.param == "interpreter"
    torch.save(cases(), folder / "cases.pt")
    device = "cpu" if interpret else "cuda"
    run_python(RUN, folder / "triton", device, str(folder), interpret=interpret)
    loaded: list[tuple[Tensor, Tensor]] = torch.load(folder / "results.pt")
    return loaded


def test_kernel_gives_the_plain_formula_and_the_twin(
    results: list[tuple[Tensor, Tensor]], twin: TorchOps
) -> None:
    for got, (logits_TE, setting) in zip(results, cases(), strict=True):
        _, top_k, num_groups, topk_groups, renormalize, scale = setting
        ids_TJ, weights_TJ = twin.route_softmax_topk(
            logits_TE, top_k, renormalize, scale, num_groups=num_groups, topk_groups=topk_groups
        )
        assert torch.equal(got[0], ids_TJ), setting
        torch.testing.assert_close(
            got[1], weights_TJ, rtol=2e-6, atol=1e-30, equal_nan=True, msg=str(setting)
        )
        if bool(logits_TE.isfinite().all()):
            assert_route(got, logits_TE, top_k, renormalize, scale, num_groups, topk_groups)


def test_kernel_compiles_for_gpus_without_one(tmp_path: Path) -> None:
    run_python(COMPILE, tmp_path)


@needs_gpu
def test_kernel_in_a_cuda_graph(tmp_path: Path) -> None:
    run_python(GRAPH, tmp_path)


def test_a_cpu_does_not_import_triton(tmp_path: Path) -> None:
    code = """
import sys, torch
from janus_hpc.kernels.torch_ops import TorchOps
TorchOps(torch.device("cpu")).route_softmax_topk(torch.zeros(2, 8), 2, True, 1.0)
assert "triton" not in sys.modules
"""
    run_python(code, tmp_path)
