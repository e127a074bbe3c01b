"""The Triton experts: in the interpreter (and on a GPU) against torch and a plain loop; compiled for GPUs.

Triton fixes at its import whether it interprets, so each way runs in a process of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from janus_hpc.kernels.torch_ops import TorchOps
from torch import Tensor

from tests.kernels.helpers import (
    DTYPES,
    FLOAT32_EPS,
    ROUNDED_TOL,
    ExpertWeights,
    assert_close,
    normal,
    random_choices,
    same_bits,
)
from tests.kernels.test_route_triton import needs_gpu, run_python

pytest.importorskip("triton")

RUN = """
import sys, torch
from janus_hpc.kernels.experts_triton import experts
from janus_hpc.kernels.ops import PackedExperts
device, folder = sys.argv[1:]
results = []
for case in torch.load(folder + "/cases.pt"):
    x, slots, weights, gate_up, down, out = (its.to(device) for its in case["tensors"])
    experts(x, slots, weights, PackedExperts(gate_up, down, *case["sizes"]), out)
    results.append(out.cpu())
torch.save(results, folder + "/results.pt")
"""
COMPILE = """
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from janus_hpc.kernels import experts_triton as its

NAMES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}

def built(kernel, types, sizes, tiles):
    signature = {**types, **dict.fromkeys(sizes, "constexpr")}
    names = list(kernel.arg_names)
    aligned = [its for its in types if its.endswith("ptr") or its in ("x_stride", "hidden", "inter")]
    attrs = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    for arch, shared in ((80, 164), (90, 227)):
        binary = triton.compile(ASTSource(kernel, signature, sizes, attrs),
                                target=GPUTarget("cuda", arch, 32), options=tiles)
        assert binary.asm["cubin"][:4] == b"\\x7fELF"
        assert f".target sm_{arch}" in binary.asm["ptx"]
        assert binary.metadata.shared < shared * 1024, (kernel, sizes, binary.metadata.shared)
        yield arch, binary.asm["ptx"]

for dtype, w in NAMES.items():
    types = dict(x_ptr="*fp32", x_stride="i32", rounded_ptr=w, carry_ptr="*fp64", slots_ptr="*i32",
                 entries_ptr="*i32", ranges_ptr="*i32", num_slots="i32", num_entries="i32", hidden="i32")
    sizes = dict(ROUND=dtype != torch.float32, BLOCK_P=its.BLOCK_P, BLOCK_D=its.BLOCK_D)
    list(built(its.group_kernel, types, sizes, {}))
    for mean in (16, 64, 256, 1000):
        tiles = its.tiles_of(mean * 16, 16, dtype)
        sizes = dict(INTERPRETED=False, BLOCK_N=tiles.block_n, BLOCK_R=tiles.block_r, BLOCK_K=tiles.block_k)
        options = dict(num_warps=tiles.num_warps, num_stages=tiles.num_stages)
        lists = dict(entries_ptr="*i32", ranges_ptr="*i32")
        numbers = dict(top_k="i32", hidden="i32", inter="i32")
        types = dict(x_ptr=w, x_stride="i32", gate_up_ptr=w, **lists, act_ptr=w, **numbers)
        sources = list(built(its.gate_up_kernel, types, sizes, options))
        types = dict(act_ptr=w, down_ptr=w, **lists, weights_ptr="*fp32", carry_ptr="*fp64",
                     out_ptr="*fp64", **numbers)
        sizes["BLOCK_R"] = min(tiles.block_r, its.MAX_DOWN_R)
        for arch, ptx in built(its.down_kernel, types, sizes, options):
            assert "red.global.gpu.relaxed.add.f64" in ptx
            sources.append((arch, ptx))
        for arch, ptx in sources:
            # Weights are on their way while others are multiplied, and by the units meant for it.
            assert "cp.async" in ptx
            assert "tf32" not in ptx
            if dtype != torch.float32:
                assert ("wgmma" if arch == 90 else "mma.sync") in ptx
"""
GRAPH = """
import torch
from janus_hpc.kernels.torch_ops import TorchOps
from tests.kernels.helpers import ExpertWeights
device, cpu = torch.device("cuda"), TorchOps(torch.device("cpu"))
ops, made = TorchOps(device), ExpertWeights.random(6, 128, 96, torch.bfloat16)
packed = made.pack(ops, list(range(6)))
x, out = torch.randn(9, 128, device=device).bfloat16().float(), torch.zeros(9, 128, device=device).double()
slots = torch.zeros(9, 2, dtype=torch.int32, device=device)
weights = torch.rand(9, 2, device=device)
ops.experts(x, slots, weights, packed, out)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    ops.experts(x, slots, weights, packed, out)
for num_here in (0, 1, 6):
    # Other slots than at the time of capture, also none.
    slots.copy_(torch.rand(9, 6, device=device).argsort(dim=1)[:, :2].int())
    slots[slots >= num_here] = -1
    x.copy_(torch.randn_like(x).bfloat16())
    sums = []
    for _ in range(3):
        out.zero_()
        graph.replay()
        sums.append(out.cpu())
    want = torch.zeros(9, 128, dtype=torch.float64)
    cpu.experts(x.cpu(), slots.cpu(), weights.cpu(), made.pack(cpu, list(range(6))), want)
    assert torch.equal(sums[0], sums[1]) and torch.equal(sums[0], sums[2])
    assert (sums[0] - want).abs().max() <= 3e-2 * want.abs().max(), num_here
"""
# For tokens alone: no slot, no choice.
CARRIES = """
import math, sys, torch
from janus_hpc.kernels.group_triton import BLOCK_D, BLOCK_P, group_kernel
device = sys.argv[1]
exponents = [-149, -148, -140, -127, -126, -125, -24, -1, 0, 1, 5, 100, 127]
tops = [2.0**e for e in exponents] + [1.75 * 2.0**e for e in exponents[3:]]
tops = torch.tensor([0.0, *tops, 3.4028234663852886e38, float("inf"), float("nan")])
x = tops[:, None] * torch.zeros(1500).index_fill_(0, torch.tensor(1403), -1.0)
x = torch.where(x.isnan() & (torch.arange(1500) != 1403), 0.0, x).to(device)
carry, word = torch.empty(len(x), dtype=torch.float64, device=device), torch.zeros(2, dtype=torch.int32, device=device)
group_kernel[(len(x),)](x, x.stride(0), x, carry, word, word, word, 0, 0, x.shape[1], ROUND=False,
                        BLOCK_P=BLOCK_P, BLOCK_D=BLOCK_D)
want = [1.5 * 2.0 ** (14 + (math.frexp(top)[1] if math.isfinite(top) else 128)) for top in tops.tolist()]
assert carry.tolist() == want, (carry.tolist(), want)
"""
Run = Callable[["list[Case]"], list[Tensor]]


@dataclass
class Case:
    """One call; `x_TD` may have a row stride of its own."""

    experts: ExpertWeights
    x_TD: Tensor
    slots_TJ: Tensor
    weights_TJ: Tensor
    out_TD: Tensor

    @classmethod
    def random(
        cls, num_tokens: int, top_k: int, slots: int, hidden: int, inter: int, dtype: torch.dtype
    ) -> "Case":
        """x in the weights' dtype; one slot in four stays empty and its choices are of another rank."""
        slots_TJ = random_choices(num_tokens, top_k, slots)
        slots_TJ[slots_TJ % 4 == 3] = -1
        return cls(
            ExpertWeights.random(slots, hidden, inter, dtype),
            normal(num_tokens, hidden + 3).to(dtype).float()[:, :hidden],
            slots_TJ,
            normal(num_tokens, top_k, seed=9),
            torch.ones(num_tokens, hidden, dtype=torch.float64),
        )

    def rows(self, rows: Tensor) -> "Case":
        return Case(
            self.experts,
            self.x_TD[rows],
            self.slots_TJ[rows],
            self.weights_TJ[rows],
            self.out_TD[rows],
        )

    def plain(self, twin: TorchOps) -> dict[str, Any]:
        """What a process that interprets gets."""
        num_slots, hidden, inter = self.experts.down.shape
        packed = self.experts.pack(twin, list(range(num_slots)))
        # Kept as views of their own, or saving would lose the stride.
        tensors = (self.x_TD, self.slots_TJ, self.weights_TJ, packed.gate_up, packed.down)
        return {"tensors": (*tensors, self.out_TD), "sizes": (num_slots, hidden, inter)}

    def by_twin(self, twin: TorchOps) -> Tensor:
        out_TD = self.out_TD.clone()
        packed = self.experts.pack(twin, list(range(self.experts.down.shape[0])))
        twin.experts(self.x_TD, self.slots_TJ, self.weights_TJ, packed, out_TD)
        return out_TD


@pytest.fixture(scope="module", params=["interpreter", pytest.param("cuda", marks=[needs_gpu])])
def run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, twin: TorchOps
) -> Run:
    """Runs the kernels on cases, in one process for all of them."""

    def run_cases(cases: list[Case]) -> list[Tensor]:
        folder, interpret = tmp_path_factory.mktemp("experts"), request.param == "interpreter"
        torch.save([case.plain(twin) for case in cases], folder / "cases.pt")
        device = "cpu" if interpret else "cuda"
        run_python(RUN, folder / "triton", device, str(folder), interpret=interpret)
        results: list[Tensor] = torch.load(folder / "results.pt")
        return results

    return run_cases


def assert_whole_quanta(case: Case, out_TD: Tensor) -> None:
    exponent_T1 = torch.frexp(case.x_TD.abs().amax(dim=1, keepdim=True)).exponent
    quanta_TD = torch.ldexp(out_TD - case.out_TD, 38 - exponent_T1.double())
    assert bool((quanta_TD == quanta_TD.round()).all())


# Tokens, choices, slots, hidden, width. The last two take more than one tile of rows, and larger ones.
SHAPES = [
    (1, 1, 1, 44, 24),
    (1, 4, 6, 128, 64),
    (7, 3, 5, 44, 24),
    (13, 2, 9, 200, 136),
    (40, 3, 4, 96, 70),
    (90, 2, 2, 130, 40),
]


def test_kernels_give_the_twin_and_the_plain_loop(run: Run, twin: TorchOps) -> None:
    cases = [Case.random(*shape, dtype) for shape in SHAPES for dtype in DTYPES]
    for case, out_TD in zip(cases, run(cases), strict=True):
        dtype = case.experts.down.dtype
        added_TD = out_TD - case.out_TD
        plain_TD = case.experts.plain(case.x_TD, case.slots_TJ, case.weights_TJ)
        assert_close(added_TD, plain_TD, ROUNDED_TOL[dtype])
        assert_whole_quanta(case, out_TD)
        # Both round at the same places: but for sums that fall on either side of a step, all is equal.
        same = (out_TD - case.by_twin(twin)).abs() <= 64 * FLOAT32_EPS * plain_TD.abs().amax()
        assert same.float().mean() >= (1.0 if dtype == torch.float32 else 0.9)


@pytest.mark.parametrize("mean", [1, 20, 100])
@pytest.mark.parametrize("dtype", DTYPES)
def test_exact_products_give_the_twins_bits(
    run: Run, twin: TorchOps, dtype: torch.dtype, mean: int
) -> None:
    """Whole numbers, and gates beyond 32, where silu(x) is x: nothing but what is meant to round does."""
    num_slots, num_tokens, hidden, inter = 3, 3 * mean, 72, 40
    generator = torch.Generator().manual_seed(mean)

    def whole(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator).to(dtype)

    experts = ExpertWeights(
        whole(1, 3, num_slots, inter, hidden),
        whole(-2, 3, num_slots, inter, hidden),
        whole(-2, 3, num_slots, hidden, inter) / 8,
    )
    case = Case(
        experts,
        whole(1, 4, num_tokens, hidden).float(),
        random_choices(num_tokens, 1, num_slots),
        normal(num_tokens, 1),
        torch.zeros(num_tokens, hidden, dtype=torch.float64),
    )
    case.slots_TJ[::5] = -1
    assert same_bits(run([case])[0], case.by_twin(twin))


def test_rows_that_are_not_finite_spoil_no_others(run: Run, twin: TorchOps) -> None:
    case = Case.random(6, 1, 2, 44, 24, torch.float32)
    case.slots_TJ[:] = torch.tensor([0, 1, 0, 1, 0, 1])[:, None]
    case.x_TD[0] = 0.0
    case.x_TD[1] *= 1e15
    case.x_TD[2, 3] = float("inf")
    case.x_TD[3, 3] = float("nan")
    case.out_TD.zero_()
    out_TD, twin_TD = run([case])[0], case.by_twin(twin)
    assert not out_TD[2:4].isfinite().any()
    for row in (0, 1, 4, 5):
        assert_close(out_TD[row], twin_TD[row], 1e-5)
    assert not out_TD[0].any()


@pytest.mark.parametrize(
    ("device", "interpret"), [("cpu", True), pytest.param("cuda", False, marks=[needs_gpu])]
)
def test_carries_at_the_ends(device: str, interpret: bool, tmp_path: Path) -> None:
    run_python(CARRIES, tmp_path, device, interpret=interpret)


def test_none_here_leaves_the_sums_alone(run: Run) -> None:
    elsewhere, empty = (Case.random(t, 2, 3, 44, 24, torch.bfloat16) for t in (4, 0))
    elsewhere.slots_TJ[:] = -1
    for case, out_TD in zip((elsewhere, empty), run([elsewhere, empty]), strict=True):
        assert same_bits(out_TD, case.out_TD)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_do_not_depend_on_the_company(run: Run, dtype: torch.dtype) -> None:
    """One slot over several tiles; rows alone, in parts, in another order; slots apart as if on ranks.

    In products that no order of adding changes: numpy's, which the interpreter takes, depend on the
    place in a tile.
    """
    whole = Case.random(60, 2, 6, 96, 56, dtype)
    generator = torch.Generator().manual_seed(2)
    for w in (whole.experts.gate, whole.experts.up):
        w.copy_(torch.randint(-4, 5, w.shape, generator=generator) / 16)
    whole.x_TD = torch.randint(-8, 9, whole.x_TD.shape, generator=generator) / 8
    one = torch.randint(0, 56, (6, 96, 1), generator=generator)
    whole.experts.down = torch.zeros(6, 96, 56, dtype=dtype).scatter_(
        2, one, normal(6, 96, 1).to(dtype)
    )
    whole.slots_TJ[:, 0] = 4
    whole.slots_TJ[:, 1][whole.slots_TJ[:, 1] == 4] = 2
    whole.out_TD.zero_()
    order = torch.randperm(60, generator=generator)
    parts = [torch.arange(60)[its] for its in (slice(0, 1), slice(1, 18), slice(18, None))]
    here, there = whole.rows(torch.arange(60)), whole.rows(torch.arange(60))
    here.slots_TJ[here.slots_TJ % 2 == 1] = -1
    there.slots_TJ[there.slots_TJ % 2 == 0] = -1
    cases = [whole, whole.rows(order), *[whole.rows(rows) for rows in parts], here, there]
    out_TD, shuffled_TD, *parts_TD, here_TD, there_TD = run(cases)
    assert same_bits(out_TD[order], shuffled_TD)
    assert same_bits(torch.cat(parts_TD), out_TD)
    assert same_bits(here_TD + there_TD, out_TD)


def test_kernels_compile_for_gpus_without_one(tmp_path: Path) -> None:
    run_python(COMPILE, tmp_path)


@needs_gpu
def test_kernels_in_a_cuda_graph(tmp_path: Path) -> None:
    run_python(GRAPH, tmp_path)
