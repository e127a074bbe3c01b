"""What follows the logits: C, torch and Triton against a plain formula; Triton in its interpreter, compiled for GPUs.

Triton fixes at its import whether it interprets, so each way runs in a process of its own.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from janus_hpc.kernels.native_ops import NativeOps
from janus_hpc.kernels.ops import RouteRule
from janus_hpc.kernels.torch_ops import TorchOps
from torch import Tensor

from tests.kernels.helpers import assert_route, normal, tied_logits

# Logits, the rule, and the bias of the experts or None.
Case = tuple[Tensor, RouteRule, Tensor | None]

SHAPES = [(1, 1), (45, 45), *((e, k) for e in (8, 20, 64, 160, 256) for k in (1, 3, 6, 8))]
# The last keeps fewer experts than it chooses.
GROUPED = [(8, 3, 4, 2), (20, 6, 5, 2), (160, 6, 8, 3), (64, 8, 16, 1), (12, 5, 6, 1)]
RUN = """
import sys, torch
from janus_hpc.kernels.ops import RouteRule
from janus_hpc.kernels.route_triton import route
device, folder = sys.argv[1:]
results = []
for logits, settings, bias in torch.load(folder + "/cases.pt"):
    bias = None if bias is None else bias.to(device)
    results.append([its.cpu() for its in route(logits.to(device), RouteRule(*settings), bias)])
torch.save(results, folder + "/results.pt")
"""
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from janus_hpc.kernels.ops import RouteRule
from janus_hpc.kernels.route_triton import route_kernel, settings_of

types = dict(logits_ptr="*fp32", bias_ptr="*fp32", ids_ptr="*i32", weights_ptr="*fp32",
             num_rows="i32", num_experts="i32", group_size="i32", scale="fp32")
rules = [RouteRule(8, True, 1.0), RouteRule(6, False, 16.0, 8, 3), RouteRule(8, True, 2.5, 8, 4, "sigmoid")]
for rule, num_experts in zip(rules, (128, 160, 256), strict=True):
    sizes = settings_of(rule, num_experts, rule.scoring == "sigmoid")
    signature = {**types, **dict.fromkeys(sizes, "constexpr")}
    for arch in (80, 90):
        kernel = triton.compile(ASTSource(route_kernel, signature, sizes),
                                target=GPUTarget("cuda", arch, 32), options={"num_warps": 1})
        assert kernel.asm["cubin"][:4] == b"\\x7fELF"
        assert f".target sm_{arch}" in kernel.asm["ptx"]
"""
GRAPH = """
import torch
from janus_hpc.kernels.ops import RouteRule
from janus_hpc.kernels.torch_ops import TorchOps
ops, rule = TorchOps(torch.device("cuda")), RouteRule(6, True, 1.0)
logits = torch.randn(5, 160, device="cuda")
ops.route(logits, rule)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    ids, weights = ops.route(logits, rule)
logits.copy_(torch.randn(5, 160, device="cuda"))
graph.replay()
want_ids, want_weights = TorchOps(torch.device("cpu")).route(logits.cpu(), rule)
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


def finite_cases() -> list[Case]:
    """Both scorings with and without groups and bias, one of the token counts in turn."""
    made: list[Case] = []
    shapes = [*((*shape, 0, 0) for shape in SHAPES), *GROUPED]
    for num_experts, top_k, num_groups, topk_groups in shapes:
        for renormalize, scale in ((False, 1.0), (True, 2.5)):
            num_tokens = (0, 33, 1, 5)[(len(made) + len(made) // 8) % 4]
            logits = tied_logits(num_tokens, num_experts, seed=len(made))
            rule = RouteRule(top_k, renormalize, scale, num_groups, topk_groups)
            made.append((logits, rule, None))
            rule = replace(rule, scoring="sigmoid")
            # Of one sign: sigmoids of x and -x add up to 1 for every x, to rounding.
            made.append((logits.abs() if num_groups else logits, rule, None))
            made.append((normal(5, num_experts), rule, normal(num_experts, seed=8) / 4))
    made.append((normal(5, 70)[:, :64], RouteRule(6, True, 1.0), None))
    return made


def bad_logits() -> Tensor:
    logits = torch.zeros(4, 20)
    logits[0, 7], logits[1, 7], logits[2], logits[3, :17] = torch.tensor(
        [float("nan"), float("inf"), float("-inf"), float("nan")]
    )
    return logits


def bad_cases() -> list[Case]:
    infinite = normal(20)
    infinite[3], infinite[5], infinite[6] = float("inf"), float("-inf"), float("nan")
    rules = [
        replace(rule, num_groups=num_groups, topk_groups=2)
        for rule in (RouteRule(4, True, 1.0), RouteRule(4, True, 1.0, scoring="sigmoid"))
        for num_groups in (0, 5)
    ]
    return [(bad_logits(), rule, bias) for rule in rules for bias in (None, infinite)]


def cases() -> list[Case]:
    return finite_cases() + bad_cases()


@pytest.fixture(scope="module", params=["interpreter", pytest.param("cuda", marks=[needs_gpu])])
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[tuple[Tensor, Tensor]]:
    """What the kernel gives for `cases()`."""
    pytest.importorskip("triton")
    folder = tmp_path_factory.mktemp("route")
    interpret = request.param == "interpreter"
    plain = [(logits, tuple(vars(rule).values()), bias) for logits, rule, bias in cases()]
    torch.save(plain, folder / "cases.pt")
    device = "cpu" if interpret else "cuda"
    run_python(RUN, folder / "triton", device, str(folder), interpret=interpret)
    loaded: list[tuple[Tensor, Tensor]] = torch.load(folder / "results.pt")
    return loaded


def test_c_and_torch_give_the_plain_formula(native: NativeOps, twin: TorchOps) -> None:
    for logits_TE, rule, bias_E in finite_cases():
        for ops in (native, twin):
            assert_route(ops.route(logits_TE.contiguous(), rule, bias_E), logits_TE, rule, bias_E)


def test_kernel_gives_the_plain_formula_and_the_twin(
    results: list[tuple[Tensor, Tensor]], twin: TorchOps
) -> None:
    for got, (logits_TE, rule, bias_E) in zip(results, cases(), strict=True):
        ids_TJ, weights_TJ = twin.route(logits_TE, rule, bias_E)
        assert torch.equal(got[0], ids_TJ), rule
        torch.testing.assert_close(
            got[1], weights_TJ, rtol=2e-6, atol=1e-30, equal_nan=True, msg=str(rule)
        )
        if bool(logits_TE.isfinite().all()):
            assert_route((got[0], got[1]), logits_TE, rule, bias_E)


def test_bad_logits_still_name_experts(native: NativeOps, twin: TorchOps) -> None:
    for logits_TE, rule, bias_E in bad_cases():
        both = [ops.route(logits_TE, rule, bias_E) for ops in (native, twin)]
        assert torch.equal(both[0][0], both[1][0]), rule
        torch.testing.assert_close(both[0][1], both[1][1], rtol=2e-6, atol=0, equal_nan=True)
        ids_TJ = both[0][0]
        assert bool((ids_TJ.diff(dim=1) > 0).all()), "distinct and ascending"
        assert bool((ids_TJ >= 0).all()) and bool((ids_TJ < 20).all())
        if rule.scoring == "softmax" and bias_E is None:
            assert ids_TJ.tolist() == [[0, 1, 2, 3]] * 4
            assert bool(both[0][1].isnan().all())
    ids_TJ, weights_TJ = native.route(bad_logits(), RouteRule(4, True, 1.0, scoring="sigmoid"))
    assert ids_TJ[:, -1].tolist() == [3, 7, 3, 19], (
        "a number comes before NaN, infinity is the best"
    )
    assert weights_TJ[2].tolist() == [0.0] * 4, "of scores that are all 0"


@pytest.mark.parametrize(
    ("num_experts", "rule"),
    [
        (4, RouteRule(5, True, 1.0)),
        (6, RouteRule(2, True, 1.0, 4, 2)),
        (8, RouteRule(2, True, 1.0, 4, 5)),
        (8, RouteRule(2, True, 1.0, 8, 5, "sigmoid")),
        (8, RouteRule(2, True, 1.0, scoring="tanh")),  # type: ignore[arg-type]
    ],
)
def test_rules_that_cannot_be_followed(
    native: NativeOps, twin: TorchOps, num_experts: int, rule: RouteRule
) -> None:
    for ops in (native, twin):
        with pytest.raises(AssertionError, match="RouteRule"):
            ops.route(torch.zeros(2, num_experts), rule)


def test_kernel_compiles_for_gpus_without_one(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    run_python(COMPILE, tmp_path)


@needs_gpu
def test_kernel_in_a_cuda_graph(tmp_path: Path) -> None:
    run_python(GRAPH, tmp_path)


def test_a_cpu_does_not_import_triton(tmp_path: Path) -> None:
    code = """
import sys, torch
from janus_hpc.kernels.ops import RouteRule
from janus_hpc.kernels.torch_ops import TorchOps
TorchOps(torch.device("cpu")).route(torch.zeros(2, 8), RouteRule(2, True, 1.0))
assert "triton" not in sys.modules
"""
    run_python(code, tmp_path)
