"""The gate after its matrix product as one Triton kernel; route.py is its twin. Importing it needs triton.

`choose` is also the second half of gate_triton.py. Knows no model.

Legend: N rows, E experts, G groups, K choices a row. Columns: experts by group, groups and their sizes
padded to powers of two, so that a row folds into its groups; they ascend as the experts do.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from janus_hpc.kernels.ops import RouteRule
from torch import Tensor


@triton.jit  # type: ignore[untyped-decorator]
def experts_of_columns(  # type: ignore[no-untyped-def]
    num_experts, group_size, GROUPS: tl.constexpr, SIZE: tl.constexpr
):
    """The expert of each of GROUPS * SIZE columns, and whether there is one."""
    column = tl.arange(0, GROUPS * SIZE)
    expert = column // SIZE * group_size + column % SIZE
    return expert, (column % SIZE < group_size) & (expert < num_experts)


@triton.jit  # type: ignore[untyped-decorator]
def _is_best(keys, COUNT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Marks the COUNT largest of each row, ties by the lower column; keys are above -inf or no choice."""
    column = tl.arange(0, keys.shape[1])[None, :]
    taken = tl.zeros(keys.shape, tl.int1)
    for _ in tl.static_range(COUNT):
        best = column == tl.argmax(keys, axis=1)[:, None]
        taken = taken | best
        keys = tl.where(best, float("-inf"), keys)
    return taken


@triton.jit  # type: ignore[untyped-decorator]
def choose(  # type: ignore[no-untyped-def]
    logits,
    row,
    num_rows,
    expert,
    inside,
    bias_ptr,
    scale,
    ids_ptr,
    weights_ptr,
    BIASED: tl.constexpr,
    SIGMOID: tl.constexpr,
    RENORMALIZE: tl.constexpr,
    TOP_K: tl.constexpr,
    TOPK_GROUPS: tl.constexpr,
    GROUPS: tl.constexpr,
    SIZE: tl.constexpr,
):
    """Chooses for logits [rows, columns] and stores ids and weights. TOPK_GROUPS 0: no group limit."""
    if SIGMOID:
        scores = 1.0 / (1.0 + tl.exp(-logits))
    else:
        logits = tl.where(inside[None, :], logits, float("-inf"))
        scores = tl.exp(logits - tl.max(logits, axis=1)[:, None])
        scores = scores / tl.sum(scores, axis=1)[:, None]
    keys = scores
    if BIASED:
        keys += tl.load(bias_ptr + expert, mask=inside, other=0.0)[None, :]
    # What is chosen by, see route.py: NaN lowest, then groups not kept, then what is taken or no expert.
    keys = tl.where(keys >= -1e38, keys, -1e38)
    keys = tl.where(inside[None, :], keys, float("-inf"))
    if TOPK_GROUPS > 0:
        folded = tl.reshape(keys, (keys.shape[0], GROUPS, SIZE))
        group = tl.max(folded, axis=2)
        if SIGMOID:
            place = tl.arange(0, SIZE)[None, None, :]
            first = place == tl.argmax(folded, axis=2)[:, :, None]
            group += tl.max(tl.where(first, float("-inf"), folded), axis=2)
        kept = tl.broadcast_to(_is_best(group, TOPK_GROUPS)[:, :, None], folded.shape)
        kept = tl.reshape(kept, keys.shape)
        scores = tl.where(kept, scores, 0.0)
        keys = tl.where(kept | (inside == 0)[None, :], keys, -2e38)
    chosen = _is_best(keys, TOP_K)
    if RENORMALIZE:
        total = tl.sum(tl.where(chosen, scores, 0.0), axis=1)[:, None]
        if SIGMOID:
            total += 1e-20
        scores = scores / total
    place = tl.cumsum(chosen.to(tl.int32), axis=1) - 1
    at = row.to(tl.int64)[:, None] * TOP_K + place
    mask = chosen & (row < num_rows)[:, None]
    tl.store(ids_ptr + at, tl.broadcast_to(expert[None, :], chosen.shape), mask=mask)
    tl.store(weights_ptr + at, scores * scale, mask=mask)


@triton.jit(do_not_specialize=["num_rows"])  # type: ignore[untyped-decorator]
def route_kernel(  # type: ignore[no-untyped-def]
    logits_ptr,
    bias_ptr,
    ids_ptr,
    weights_ptr,
    num_rows,
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
):
    """One row a program."""
    row = tl.program_id(0) + tl.arange(0, 1)
    expert, inside = experts_of_columns(num_experts, group_size, GROUPS, SIZE)
    at = row.to(tl.int64)[:, None] * num_experts + expert[None, :]
    logits = tl.load(logits_ptr + at, mask=inside[None, :], other=0.0).to(tl.float32)
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


def settings_of(rule: RouteRule, num_experts: int, biased: bool) -> dict[str, Any]:
    """The compile-time arguments of `choose` for a rule."""
    rule.check(num_experts)
    groups = max(rule.num_groups, 1)
    return {
        "BIASED": biased,
        "SIGMOID": rule.scoring == "sigmoid",
        "RENORMALIZE": rule.renormalize,
        "TOP_K": rule.top_k,
        "TOPK_GROUPS": rule.topk_groups if rule.num_groups else 0,
        "GROUPS": triton.next_power_of_2(groups),
        "SIZE": triton.next_power_of_2(num_experts // groups),
    }


def empty_choices(num_rows: int, top_k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """ids_NK int32 and weights_NK float32 for a kernel to fill."""
    ids_NK = torch.empty((num_rows, top_k), dtype=torch.int32, device=device)
    return ids_NK, torch.empty((num_rows, top_k), dtype=torch.float32, device=device)


def route(
    logits_NE: Tensor, rule: RouteRule, bias_E: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """ids_NK int32, ascending, and weights_NK float32; see `Ops.route`."""
    num_rows, num_experts = logits_NE.shape
    settings = settings_of(rule, num_experts, bias_E is not None)
    ids_NK, weights_NK = empty_choices(num_rows, rule.top_k, logits_NE.device)
    if num_rows:
        # Triton launches on the current device, which need not be that of the tensor.
        with torch.cuda.device_of(logits_NE):
            route_kernel[(num_rows,)](
                logits_NE.contiguous(),
                ids_NK if bias_E is None else bias_E,
                ids_NK,
                weights_NK,
                num_rows,
                num_experts,
                num_experts // max(rule.num_groups, 1),
                rule.scale,
                num_warps=1 if settings["GROUPS"] * settings["SIZE"] <= 256 else 4,
                **settings,
            )
    return ids_NK, weights_NK
