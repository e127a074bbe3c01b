"""The gate against the routers of transformers, with random weights: C, torch, and the fused Triton kernel."""

from pathlib import Path
from typing import Any

import pytest
import torch
from janus_hpc.kernels.native_ops import NativeOps
from janus_hpc.kernels.ops import RouteRule
from janus_hpc.kernels.torch_ops import TorchOps
from torch import Tensor

from tests.kernels.helpers import assert_route, normal
from tests.kernels.test_route_triton import needs_gpu, run_python

HIDDEN = 44
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# x, router, the rule and the bias or None.
Case = tuple[Tensor, Tensor, RouteRule, Tensor | None]

RUN = """
import sys, torch
from janus_hpc.kernels.gate_triton import gate
from janus_hpc.kernels.ops import PackedLinear, RouteRule
device, folder = sys.argv[1:]
results = []
for x, router, settings, bias in torch.load(folder + "/cases.pt"):
    packed = PackedLinear(router.flatten().to(device), *router.shape)
    bias = None if bias is None else bias.to(device)
    results.append([its.cpu() for its in gate(x.to(device), packed, RouteRule(*settings), bias)])
torch.save(results, folder + "/results.pt")
"""
COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from janus_hpc.kernels.gate_triton import block_columns, block_rows, gate_kernel
from janus_hpc.kernels.ops import RouteRule
from janus_hpc.kernels.route_triton import settings_of

types = dict(x_ptr="*fp32", x_stride="i32", router_ptr="*fp32", bias_ptr="*fp32", ids_ptr="*i32",
             weights_ptr="*fp32", num_rows="i32", hidden="i32", num_experts="i32", group_size="i32",
             scale="fp32")
names = list(gate_kernel.arg_names)
aligned = [names.index(its) for its in types if its.endswith("ptr") or its in ("x_stride", "hidden")]
attrs = {(at,): [["tt.divisibility", 16]] for at in aligned}
# The rule, experts, rows, and the dtype of x.
cases = [
    (RouteRule(8, True, 1.0), 128, 64, "*bf16"),
    (RouteRule(8, True, 1.0), 128, 4096, "*fp16"),
    (RouteRule(6, False, 16.0, 8, 3), 160, 1, "*fp32"),
    (RouteRule(8, True, 2.5, 8, 4, "sigmoid"), 256, 64, "*bf16"),
    (RouteRule(10, True, 1.0), 512, 64, "*bf16"),
]
for rule, num_experts, num_rows, x in cases:
    sizes = settings_of(rule, num_experts, rule.scoring == "sigmoid")
    sizes |= dict(BLOCK_N=block_rows(num_rows), BLOCK_K=block_columns(sizes))
    signature = {**types, "x_ptr": x, **dict.fromkeys(sizes, "constexpr")}
    for arch, shared in ((80, 164), (90, 227)):
        kernel = triton.compile(ASTSource(gate_kernel, signature, sizes, attrs),
                                target=GPUTarget("cuda", arch, 32),
                                options={"num_warps": 8, "num_stages": 3})
        assert kernel.asm["cubin"][:4] == b"\\x7fELF"
        assert f".target sm_{arch}" in kernel.asm["ptx"]
        assert kernel.metadata.shared < shared * 1024, kernel.metadata.shared
        # float32 products, not those of rounded inputs.
        assert "tf32" not in kernel.asm["ptx"]
"""
GRAPH = """
import torch
from janus_hpc.kernels.ops import RouteRule
from janus_hpc.kernels.torch_ops import TorchOps
device = torch.device("cuda")
ops, rule = TorchOps(device), RouteRule(6, True, 1.0)
# Whole numbers: logits are exact in any order.
x = torch.randint(-8, 9, (37, 512), device=device).bfloat16()
router = torch.randint(-8, 9, (160, 512), device=device).float() / 64
packed = ops.pack_linear(router)
ops.gate(x, packed, rule)
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    ids, weights = ops.gate(x, packed, rule)
x.copy_(torch.randint(-8, 9, x.shape, device=device))
graph.replay()
cpu = TorchOps(torch.device("cpu"))
want_ids, want_weights = cpu.gate(x.cpu(), cpu.pack_linear(router.cpu()), rule)
assert torch.equal(ids.cpu(), want_ids)
torch.testing.assert_close(weights.cpu(), want_weights)
"""


def qwen3(top_k: int, renormalize: bool) -> tuple[Any, RouteRule]:
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeTopKRouter

    config = Qwen3MoeConfig(
        num_experts=128, num_experts_per_tok=top_k, norm_topk_prob=renormalize, hidden_size=HIDDEN
    )
    return Qwen3MoeTopKRouter(config), RouteRule(top_k, renormalize, 1.0)


def deepseek_v2(top_k: int, num_groups: int, topk_groups: int) -> tuple[Any, RouteRule]:
    from transformers import DeepseekV2Config
    from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2TopkRouter

    config = DeepseekV2Config(
        n_routed_experts=160,
        num_experts_per_tok=top_k,
        n_group=num_groups,
        topk_group=topk_groups,
        topk_method="group_limited_greedy" if num_groups else "greedy",
        routed_scaling_factor=16.0,
        hidden_size=HIDDEN,
        num_attention_heads=4,
    )
    return DeepseekV2TopkRouter(config), RouteRule(top_k, False, 16.0, num_groups, topk_groups)


def deepseek_v3(
    top_k: int, num_groups: int, topk_groups: int, renormalize: bool
) -> tuple[Any, RouteRule]:
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3TopkRouter

    config = DeepseekV3Config(
        n_routed_experts=256,
        num_experts_per_tok=top_k,
        n_group=num_groups,
        topk_group=topk_groups,
        norm_topk_prob=renormalize,
        routed_scaling_factor=2.5,
        hidden_size=HIDDEN,
        num_attention_heads=4,
    )
    router = DeepseekV3TopkRouter(config)
    # As large as the scores' own differences: some choices turn on it.
    router.e_score_correction_bias.copy_(normal(256, seed=9) / 4)
    return router, RouteRule(top_k, renormalize, 2.5, num_groups, topk_groups, "sigmoid")


@pytest.fixture(scope="module")
def peers() -> list[tuple[Any, RouteRule]]:
    """Routers with weights of their own, and what they do as a rule."""
    pytest.importorskip("transformers")
    made = [
        qwen3(8, True),
        qwen3(5, False),
        deepseek_v2(6, 0, 0),
        deepseek_v2(6, 8, 3),
        deepseek_v3(8, 8, 4, True),
        deepseek_v3(6, 1, 1, False),
    ]
    for seed, (router, _) in enumerate(made):
        router.weight.data.copy_(normal(*router.weight.shape, seed=seed) / 4)
    return made


@pytest.fixture(scope="module")
def cases(peers: list[tuple[Any, RouteRule]]) -> list[Case]:
    """Every peer with one of the dtypes and token counts in turn, some rows with a stride of their own."""
    made: list[Case] = []
    for at, (router, rule) in enumerate(peers):
        for num_tokens in (1, 5, 40):
            x_TD = normal(num_tokens, HIDDEN + 4, seed=at, dtype=DTYPES[len(made) % 3])[:, :HIDDEN]
            bias = getattr(router, "e_score_correction_bias", None)
            made.append((x_TD, router.weight.detach().clone(), rule, bias))
    return made


def peer_choices(router: Any, x_TD: Tensor) -> tuple[Tensor, Tensor]:
    """What the router says, in the order of ids."""
    with torch.no_grad():
        _, weights_TJ, ids_TJ = router(x_TD.float().contiguous())
    order_TJ = ids_TJ.argsort(dim=1)
    return ids_TJ.gather(1, order_TJ), weights_TJ.gather(1, order_TJ)


def assert_like_peers(
    results: list[tuple[Tensor, Tensor]], peers: list[tuple[Any, RouteRule]], cases: list[Case]
) -> None:
    for at, ((ids_TJ, weights_TJ), (x_TD, *_)) in enumerate(zip(results, cases, strict=True)):
        want_ids_TJ, want_weights_TJ = peer_choices(peers[at // 3][0], x_TD)
        assert ids_TJ.dtype == torch.int32 and weights_TJ.dtype == torch.float32
        assert torch.equal(ids_TJ.long(), want_ids_TJ), cases[at][2]
        # Logits of either side are sums of HIDDEN products in an order of their own.
        torch.testing.assert_close(weights_TJ, want_weights_TJ, rtol=2e-5, atol=1e-30)


def test_c_and_torch_choose_as_transformers_does(
    native: NativeOps, twin: TorchOps, peers: list[tuple[Any, RouteRule]], cases: list[Case]
) -> None:
    for ops in (native, twin):
        results = [
            ops.gate(x_TD, ops.pack_linear(router), rule, bias)
            for x_TD, router, rule, bias in cases
        ]
        assert_like_peers(results, peers, cases)


@pytest.fixture(scope="module", params=["interpreter", pytest.param("cuda", marks=[needs_gpu])])
def run_kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Runs the fused kernel on cases."""
    pytest.importorskip("triton")

    def run(cases: list[Case]) -> list[tuple[Tensor, Tensor]]:
        folder, interpret = tmp_path_factory.mktemp("gate"), request.param == "interpreter"
        plain = [(x, router, tuple(vars(rule).values()), bias) for x, router, rule, bias in cases]
        torch.save(plain, folder / "cases.pt")
        device = "cpu" if interpret else "cuda"
        run_python(RUN, folder / "triton", device, str(folder), interpret=interpret)
        loaded: list[tuple[Tensor, Tensor]] = torch.load(folder / "results.pt")
        return loaded

    return run


def test_kernel_chooses_as_transformers_does(
    run_kernel: Any, peers: list[tuple[Any, RouteRule]], cases: list[Case]
) -> None:
    assert_like_peers(run_kernel(cases), peers, cases)


def test_all_give_the_plain_formula_of_exact_logits(
    run_kernel: Any, native: NativeOps, twin: TorchOps
) -> None:
    """Whole numbers: no order of adding rounds, so that ties are ties everywhere."""
    made: list[Case] = []
    for at, num_tokens in enumerate((0, 3, 70)):
        generator = torch.Generator().manual_seed(at)
        x_TD = torch.randint(-3, 4, (num_tokens, 100), generator=generator).to(DTYPES[at])
        router = torch.randint(-2, 3, (20, 100), generator=generator).float() / 8
        made.append((x_TD, router, RouteRule(6, True, 2.5, 5, 2), None))
        made.append((x_TD, router, RouteRule(20, False, 1.0), None))
        made.append((x_TD, router, RouteRule(1, True, 1.0, scoring="sigmoid"), normal(20)))
    for got, (x_TD, router, rule, bias) in zip(run_kernel(made), made, strict=True):
        logits_TE = x_TD.float() @ router.T
        assert_route((got[0], got[1]), logits_TE, rule, bias)
        for ops in (native, twin):
            assert_route(ops.gate(x_TD, ops.pack_linear(router), rule, bias), logits_TE, rule, bias)


def test_kernel_compiles_for_gpus_without_one(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    run_python(COMPILE, tmp_path)


@needs_gpu
def test_kernel_in_a_cuda_graph(tmp_path: Path) -> None:
    run_python(GRAPH, tmp_path)
