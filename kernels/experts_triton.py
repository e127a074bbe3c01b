"""The routed experts of one rank as three Triton kernels of fixed shape; torch_ops.py is their twin.

Importing it needs triton. No call waits for the GPU, so all of it can be captured in a CUDA graph.
Knows no model.

Legend: T tokens, J choices a token, S slots, P = T * J entries (token, choice), D hidden, I expert width.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from janus_hpc.kernels.group_triton import BLOCK_D, BLOCK_P, group_kernel, rounded
from janus_hpc.kernels.ops import PackedExperts
from torch import Tensor

# Tokens a tile of `down_kernel`: with more, its float64 terms leave the registers.
MAX_DOWN_R = 64


@dataclass(frozen=True)
class Tiles:
    """Tile of both matrix products: `block_n` rows of weights, `block_r` tokens, `block_k` inputs a step."""

    block_n: int
    block_r: int
    block_k: int
    num_warps: int
    num_stages: int


def tiles_of(num_entries: int, num_slots: int, dtype: torch.dtype) -> Tiles:
    """Tiles by the mean number of entries a slot, of which those of other ranks (-1) are a part.

    Weights stand where the matrix units want 64 rows and tokens where they want 8, so that 16 tokens
    waste nothing. Up to some hundred tokens an expert the time is that of reading weights. 64 rows of
    them (32 of gate, 32 of up) make enough programs to keep all multiprocessors reading; three stages
    of 128 inputs are some 60 KB a program, so three programs fit a multiprocessor. A slot with more than
    `block_r` tokens reads its weights again, from the L2 cache; a `block_r` too large only computes
    zeros. Choices of other ranks are not known apart, hence the mean is rather too large. float32 has no
    matrix units that keep its inputs whole: small tiles stay in registers. `block_k` depends on the
    dtype alone, so that a term's products are added up in the same steps whatever the batch.
    """
    mean = num_entries / max(num_slots, 1)
    if dtype == torch.float32:
        return Tiles(64, 16 if mean <= 16 else 32, 32, 4, 3)
    if mean <= 16:
        return Tiles(64, 16, 128, 4, 3)
    if mean <= 64:
        return Tiles(64, 32, 128, 4, 3)
    if mean <= 256:
        return Tiles(64, 64, 128, 4, 3)
    return Tiles(128, 128, 128, 8, 3)


@triton.jit  # type: ignore[untyped-decorator]
def _dot(w, x, acc, INTERPRETED: tl.constexpr):  # type: ignore[no-untyped-def]
    """acc + w x. The interpreter cannot multiply bfloat16; widened values give the same products."""
    if INTERPRETED:
        w = w.to(tl.float32)
        x = x.to(tl.float32)
    return tl.dot(w, x, acc, input_precision="ieee")


@triton.jit(do_not_specialize=["top_k"])  # type: ignore[untyped-decorator]
def gate_up_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    x_stride,
    gate_up_ptr,
    entries_ptr,
    ranges_ptr,
    act_ptr,
    top_k,
    hidden,
    inter,
    INTERPRETED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """act_PI = silu(gate x) * up x: one program a slot and BLOCK_N / 2 rows of gate and of up alike."""
    dtype = gate_up_ptr.dtype.element_ty
    slot = tl.program_id(1)
    first = tl.load(ranges_ptr + 2 * slot)
    end = tl.load(ranges_ptr + 2 * slot + 1)
    row = tl.arange(0, BLOCK_N)
    i = tl.program_id(0) * (BLOCK_N // 2) + row % (BLOCK_N // 2)
    k = tl.arange(0, BLOCK_K)
    w_ptr = gate_up_ptr + slot.to(tl.int64) * 2 * inter * hidden
    w_ptr += ((row // (BLOCK_N // 2) * inter + i) * hidden)[:, None] + k[None, :]
    column = tl.program_id(0) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    for start in range(first, end, BLOCK_R):
        at = start + tl.arange(0, BLOCK_R)
        entry = tl.load(entries_ptr + at, mask=at < end, other=0)
        row_ptr = x_ptr + ((entry // top_k).to(tl.int64) * x_stride)[:, None] + k[None, :]
        acc = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
        for done in range(0, hidden, BLOCK_K):
            deep = (done + k < hidden)[None, :]
            w = tl.load(w_ptr + done, mask=(i < inter)[:, None] & deep, other=0.0)
            x = tl.load(row_ptr + done, mask=(at < end)[:, None] & deep, other=0.0)
            acc = _dot(w, tl.trans(x), acc, INTERPRETED)
        pairs = tl.permute(tl.reshape(acc, (2, BLOCK_N // 2, BLOCK_R)), (2, 1, 0))
        gate, up = tl.split(pairs)
        gate = rounded(gate, dtype)
        inner = rounded(gate / (1.0 + tl.exp(-gate)), dtype) * rounded(up, dtype)
        out_ptr = act_ptr + at.to(tl.int64)[:, None] * inter + column[None, :]
        mask = (at < end)[:, None] & (column < inter)[None, :]
        tl.store(out_ptr, rounded(inner, dtype).to(dtype), mask=mask)


@triton.jit(do_not_specialize=["top_k"])  # type: ignore[untyped-decorator]
def down_kernel(  # type: ignore[no-untyped-def]
    act_ptr,
    down_ptr,
    entries_ptr,
    ranges_ptr,
    weights_ptr,
    carry_ptr,
    out_ptr,
    top_k,
    hidden,
    inter,
    INTERPRETED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out_TD += the entries' terms: one program a slot and BLOCK_N rows of down.

    All of I in one program: a term is rounded to the weights' dtype and then to its quantum, and
    neither can be done to a part of its sum.
    """
    dtype = down_ptr.dtype.element_ty
    slot = tl.program_id(1)
    first = tl.load(ranges_ptr + 2 * slot)
    end = tl.load(ranges_ptr + 2 * slot + 1)
    column = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    w_ptr = down_ptr + slot.to(tl.int64) * hidden * inter
    w_ptr += (column * inter)[:, None] + k[None, :]
    for start in range(first, end, BLOCK_R):
        at = start + tl.arange(0, BLOCK_R)
        row_ptr = act_ptr + at.to(tl.int64)[:, None] * inter + k[None, :]
        acc = tl.zeros((BLOCK_N, BLOCK_R), tl.float32)
        for done in range(0, inter, BLOCK_K):
            deep = (done + k < inter)[None, :]
            w = tl.load(w_ptr + done, mask=(column < hidden)[:, None] & deep, other=0.0)
            x = tl.load(row_ptr + done, mask=(at < end)[:, None] & deep, other=0.0)
            acc = _dot(w, tl.trans(x), acc, INTERPRETED)
        entry = tl.load(entries_ptr + at, mask=at < end, other=0)
        token = entry // top_k
        weight = tl.load(weights_ptr + entry, mask=at < end, other=0.0)
        carry = tl.load(carry_ptr + token, mask=at < end, other=0.0)[:, None]
        term = (weight[:, None] * rounded(tl.trans(acc), dtype)).to(tl.float64)
        term = (term + carry) - carry
        # A token's terms are multiples of one quantum, which float64 adds exactly: the order in
        # which programs come does not show, and atomic adds are deterministic.
        sum_ptr = out_ptr + token.to(tl.int64)[:, None] * hidden + column[None, :]
        mask = (at < end)[:, None] & (column < hidden)[None, :]
        tl.atomic_add(sum_ptr, term, mask=mask, sem="relaxed")


def experts(
    x_TD: Tensor, slots_TJ: Tensor, weights_TJ: Tensor, packed: PackedExperts, out_TD: Tensor
) -> None:
    """See `Ops.experts`; `packed` in the order of `TorchOps`, all tensors on one device.

    Takes T * J * I elements of the weights' dtype for activations. For the same bits in any grouping
    out_TD holds multiples of its tokens' quanta. Which of slots_TJ (int32, -1: elsewhere) are here is
    not known to the host: the grid is that of all slots, and those without entries end at once.
    """
    num_tokens, top_k = slots_TJ.shape
    num_slots, hidden, inter = packed.num_slots, packed.hidden, packed.inter
    assert x_TD.dtype == torch.float32 and x_TD.stride(1) == 1, f"{x_TD.dtype=} {x_TD.stride()=}"
    assert x_TD.shape == out_TD.shape == (num_tokens, hidden), f"{x_TD.shape=} {out_TD.shape=}"
    assert out_TD.dtype == torch.float64 and out_TD.is_contiguous(), f"{out_TD.dtype=}"
    assert slots_TJ.dtype == torch.int32, f"{slots_TJ.dtype=}"
    assert weights_TJ.dtype == torch.float32 and weights_TJ.shape == slots_TJ.shape
    if not (slots_TJ.numel() and num_slots):
        return
    dtype, device, num_entries = packed.down.dtype, x_TD.device, slots_TJ.numel()
    tiles = tiles_of(num_entries, num_slots, dtype)
    rows_TD = x_TD
    if dtype != torch.float32:
        rows_TD = torch.empty((num_tokens, hidden), dtype=dtype, device=device)
    carry_T = torch.empty(num_tokens, dtype=torch.float64, device=device)
    entries_P = torch.empty(num_entries, dtype=torch.int32, device=device)
    ranges_S2 = torch.empty((num_slots, 2), dtype=torch.int32, device=device)
    act_PI = torch.empty((num_entries, inter), dtype=dtype, device=device)
    same = {
        "INTERPRETED": not x_TD.is_cuda,
        "BLOCK_N": tiles.block_n,
        "BLOCK_R": tiles.block_r,
        "BLOCK_K": tiles.block_k,
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
    }
    # Triton launches on the current device, which need not be that of the tensors.
    with torch.cuda.device_of(x_TD):
        group_kernel[(num_slots + num_tokens,)](
            x_TD,
            x_TD.stride(0),
            rows_TD,
            carry_T,
            slots_TJ.contiguous(),
            entries_P,
            ranges_S2,
            num_slots,
            num_entries,
            hidden,
            ROUND=rows_TD is not x_TD,
            BLOCK_P=BLOCK_P,
            BLOCK_D=BLOCK_D,
        )
        gate_up_kernel[(triton.cdiv(2 * inter, tiles.block_n), num_slots)](
            rows_TD,
            rows_TD.stride(0),
            packed.gate_up,
            entries_P,
            ranges_S2,
            act_PI,
            top_k,
            hidden,
            inter,
            **same,
        )
        down_kernel[(triton.cdiv(hidden, tiles.block_n), num_slots)](
            act_PI,
            packed.down,
            entries_P,
            ranges_S2,
            weights_TJ.contiguous(),
            carry_T,
            out_TD,
            top_k,
            hidden,
            inter,
            **same | {"BLOCK_R": min(tiles.block_r, MAX_DOWN_R)},
        )
