"""The whole gate as one Triton kernel: logits, choice and weights. Importing it needs triton.

What follows the logits is `choose` of route_triton.py. Knows no model.

Legend: N rows, D hidden, E experts, K choices a row.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from janus_hpc.kernels.ops import PackedLinear, RouteRule
from janus_hpc.kernels.route_triton import choose, empty_choices, experts_of_columns, settings_of
from torch import Tensor


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
def gate_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    x_stride,
    router_ptr,
    bias_ptr,
    ids_ptr,
    weights_ptr,
    num_rows,
    hidden,
    num_experts,
    group_size,
    scale,
    BIASED: tl.constexpr,
    SIGMOID: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    TOP_K: tl.constexpr,
    TOPK_GROUPS: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """BLOCK_N rows a program and all experts: the logits stay in registers."""
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    expert, inside = experts_of_columns(num_experts, group_size, GROUPS, SIZE)
    k = tl.arange(0, BLOCK_K)
    row_ptr = x_ptr + row.to(tl.int64)[:, None] * x_stride + k[None, :]
    w_ptr = router_ptr + expert[:, None] * hidden + k[None, :]
    logits = tl.zeros((BLOCK_N, GROUPS * SIZE), tl.float32)
    for done in range(0, hidden, BLOCK_K):
        deep = (done + k < hidden)[None, :]
        x = tl.load(row_ptr + done, mask=(row < num_rows)[:, None] & deep, other=0.0)
        w = tl.load(w_ptr + done, mask=inside[:, None] & deep, other=0.0)
        logits = tl.dot(x.to(tl.float32), tl.trans(w), logits, input_precision="ieee")
    choose(
        logits,
        row,
        num_rows,
        expert,
        inside,
        bias_ptr,
        scale,
        ids_ptr,
        weights_ptr,
        BIASED,
        SIGMOID,
        RENORMALIZE,
        TOP_K,
        TOPK_GROUPS,
        GROUPS,
        SIZE,
    )


def block_rows(num_rows: int) -> int:
    """Rows a program: 2 until these make some 256 programs, then more, up to 16.

    A program reads the whole router through its multiprocessor, which takes longer than computing two
    rows with it: more rows a program only pay where there would be more programs than multiprocessors.
    """
    return int(min(16, max(2, triton.next_power_of_2(triton.cdiv(num_rows, 256)))))


def block_columns(settings: dict[str, Any]) -> int:
    """Inputs a step for settings of `settings_of`: 32 KB of the router are on the way at a time."""
    columns: int = settings["GROUPS"] * settings["SIZE"]
    return min(64, max(16, 8192 // columns))


def gate(
    x_ND: Tensor, router: PackedLinear, rule: RouteRule, bias_E: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """ids_NK int32, ascending, and weights_NK float32; see `Ops.gate`. `router` as `TorchOps` packs it."""
    num_rows, num_experts = x_ND.shape[0], router.num_out
    assert x_ND.stride(1) == 1 and x_ND.shape[1] == router.num_in, f"{x_ND.shape=} {x_ND.stride()=}"
    assert router.data.dtype == torch.float32, f"{router.data.dtype=}"
    settings = settings_of(rule, num_experts, bias_E is not None)
    ids_NK, weights_NK = empty_choices(num_rows, rule.top_k, x_ND.device)
    if num_rows:
        block = block_rows(num_rows)
        # Triton launches on the current device, which need not be that of the tensors.
        with torch.cuda.device_of(x_ND):
            gate_kernel[(triton.cdiv(num_rows, block),)](
                x_ND,
                x_ND.stride(0),
                router.data,
                ids_NK if bias_E is None else bias_E,
                ids_NK,
                weights_NK,
                num_rows,
                router.num_in,
                num_experts,
                num_experts // max(rule.num_groups, 1),
                rule.scale,
                BLOCK_N=block,
                BLOCK_K=block_columns(settings),
                num_warps=8,
                num_stages=3,
                **settings,
            )
    return ids_NK, weights_NK
