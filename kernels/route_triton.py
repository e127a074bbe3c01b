"""The gate after its matrix product as one Triton kernel; route.py is its twin. Importing it needs triton.

Legend: N rows, E experts, K choices a row.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit  # type: ignore[untyped-decorator]
def route_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,
    ids_ptr,
    weights_ptr,
    num_experts,
    group_size,
    scale,
    TOP_K: tl.constexpr,
    TOPK_GROUPS: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    BLOCK_E: tl.constexpr,
):
    """One row a program. TOPK_GROUPS 0: no group limit."""
    row = tl.program_id(0).to(tl.int64)
    expert = tl.arange(0, BLOCK_E)
    inside = expert < num_experts
    logits = tl.load(logits_ptr + row * num_experts + expert, mask=inside, other=float("-inf"))
    scores = tl.exp(logits.to(tl.float32) - tl.max(logits.to(tl.float32), axis=0))
    scores = scores / tl.sum(scores, axis=0)
    # What is chosen by: NaN below every score, then what is taken, then what is no expert, so that
    # TOP_K distinct experts come out of any input.
    key = tl.where(inside, tl.where(scores >= 0.0, scores, -0.5), -2.0)
    if TOPK_GROUPS > 0:
        # A group counts as its best expert: the best expert outside the kept groups names the next.
        left = key
        kept = expert < 0
        for _ in tl.static_range(TOPK_GROUPS):
            best = tl.argmax(left, axis=0)
            member = (expert // group_size) == (best // group_size)
            kept = kept | member
            left = tl.where(member & inside, -1.0, left)
        scores = tl.where(kept, scores, 0.0)
        key = tl.where(inside & (kept == 0), 0.0, key)
    chosen = expert < 0
    for _ in tl.static_range(TOP_K):
        best = tl.argmax(key, axis=0)
        chosen = chosen | (expert == best)
        key = tl.where(expert == best, -1.0, key)
    place = tl.cumsum(chosen.to(tl.int32), axis=0) - 1
    if RENORMALIZE:
        scores = scores / tl.sum(tl.where(chosen, scores, 0.0), axis=0)
    tl.store(ids_ptr + row * TOP_K + place, expert, mask=chosen)
    tl.store(weights_ptr + row * TOP_K + place, scores * scale, mask=chosen)


def route_softmax_topk(
    logits_NE: Tensor,
    top_k: int,
    renormalize: bool,
    scale: float,
    *,
    num_groups: int = 0,
    topk_groups: int = 0,
) -> tuple[Tensor, Tensor]:
    """ids_NK int32, ascending, and weights_NK float32; see `Ops.route_softmax_topk`."""
    num_rows, num_experts = logits_NE.shape
    assert 0 < top_k <= num_experts, f"{top_k=} {num_experts=}"
    assert topk_groups <= num_groups, f"{topk_groups=} {num_groups=}"
    assert not num_groups or num_experts % num_groups == 0, f"{num_experts=} {num_groups=}"
    ids_NK = torch.empty((num_rows, top_k), dtype=torch.int32, device=logits_NE.device)
    weights_NK = torch.empty((num_rows, top_k), dtype=torch.float32, device=logits_NE.device)
    if num_rows:
        block = triton.next_power_of_2(num_experts)
        # Triton launches on the current device, which need not be that of the tensor.
        with torch.cuda.device_of(logits_NE):
            route_kernel[(num_rows,)](
                logits_NE.contiguous(),
                ids_NK,
                weights_NK,
                num_experts,
                num_experts // max(num_groups, 1),
                scale,
                TOP_K=top_k,
                TOPK_GROUPS=topk_groups if num_groups else 0,
                RENORMALIZE=renormalize,
                BLOCK_E=block,
                num_warps=1 if block <= 256 else 4,
            )
    return ids_NK, weights_NK
