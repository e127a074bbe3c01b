"""The gate after its matrix product as one Triton kernel: softmax, optional groups, top-k, weights in id order.

Shapes are fixed and nothing waits for the device, so after a first call, which compiles, it may be captured
into a CUDA graph. Knows no model; the twin is in `TorchOps.route_softmax_topk`.

Legend: T tokens, E experts, J choices a token.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit  # type: ignore[untyped-decorator]
def _route_kernel(
    logits: Any,
    ids: Any,
    weights: Any,
    row_stride: Any,
    scale: Any,
    NUM_EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
    TOP_K: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    TOPK_GROUPS: tl.constexpr,
) -> None:
    """One program a token; a lane an expert, WIDTH being the power of two that holds them."""
    token = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, WIDTH)
    real = expert < NUM_EXPERTS
    x = tl.load(logits + token * row_stride + expert, mask=real, other=float("-inf"))
    x = x.to(tl.float32)
    score = tl.exp(x - tl.max(x, axis=0))
    score = score / tl.sum(score, axis=0)
    # NaN comes first, as in the twin's sort: a token of NaN still gets TOP_K different experts.
    key = tl.where(real, tl.where(score >= 0.0, score, 2.0), -1.0)
    if NUM_GROUPS > 0:
        group = expert // (NUM_EXPERTS // NUM_GROUPS)
        best = key
        for g in tl.static_range(NUM_GROUPS):
            top = tl.max(tl.where(group == g, key, -1.0), axis=0)
            best = tl.where(group == g, top, best)
        kept = expert < 0
        for _ in tl.static_range(TOPK_GROUPS):
            # The first lane with the largest value lies in the lowest of the tied groups.
            lead = tl.argmax(tl.where(kept, -2.0, best), axis=0)
            kept = kept | (group == lead // (NUM_EXPERTS // NUM_GROUPS))
        score = tl.where(kept, score, 0.0)
        key = tl.where(kept, key, tl.where(real, 0.0, -1.0))
    chosen = expert < 0
    for _ in tl.static_range(TOP_K):
        chosen = chosen | (expert == tl.argmax(tl.where(chosen, -2.0, key), axis=0))
    if RENORMALIZE:
        score = score / tl.sum(tl.where(chosen, score, 0.0), axis=0)
    place = token * TOP_K + tl.cumsum(chosen.to(tl.int32), axis=0) - 1
    tl.store(ids + place, expert, mask=chosen)
    tl.store(weights + place, score * scale, mask=chosen)


def route(
    logits_TE: Tensor,
    top_k: int,
    renormalize: bool,
    scale: float,
    num_groups: int = 0,
    topk_groups: int = 0,
) -> tuple[Tensor, Tensor]:
    """See `Ops.route_softmax_topk`: ids_TJ int32 and weights_TJ float32. logits_TE may have any row stride."""
    num_tokens, num_experts = logits_TE.shape
    assert 0 < top_k <= num_experts, f"{top_k=} {num_experts=}"
    assert topk_groups <= num_groups, f"{topk_groups=} {num_groups=}"
    assert not num_groups or num_experts % num_groups == 0, f"{num_experts=} {num_groups=}"
    assert logits_TE.stride(1) == 1, f"{logits_TE.stride()=}"
    ids_TJ = logits_TE.new_empty((num_tokens, top_k), dtype=torch.int32)
    weights_TJ = logits_TE.new_empty((num_tokens, top_k), dtype=torch.float32)
    if num_tokens:
        width = triton.next_power_of_2(num_experts)
        # Triton launches on the current device, which need not be that of the tensor.
        with torch.cuda.device_of(logits_TE):
            _route_kernel[(num_tokens,)](
                logits_TE,
                ids_TJ,
                weights_TJ,
                logits_TE.stride(0),
                scale,
                NUM_EXPERTS=num_experts,
                WIDTH=width,
                TOP_K=top_k,
                RENORMALIZE=renormalize,
                NUM_GROUPS=num_groups,
                TOPK_GROUPS=topk_groups,
                num_warps=1 if width <= 256 else 4,
            )
    return ids_TJ, weights_TJ
