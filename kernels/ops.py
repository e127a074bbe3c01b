"""The compute operations of the engine, as one interface.

`NativeOps` (C, CPU) and `TorchOps` (plain torch, any device) give the same results to rounding. Knows no model.

Legend: T tokens, K inputs, N outputs, H heads, G KV heads, d head dim, v value dim, E experts, J choices a
token, D hidden, I expert width, S sequences, M blocks a sequence.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class PackedLinear:
    """A weight matrix [num_out, num_in] in an implementation's own order; `data` is flat."""

    data: Tensor
    num_out: int
    num_in: int


@dataclass(frozen=True)
class PackedExperts:
    """The experts of one layer's slots: flat gate-and-up and down weights, in an implementation's order."""

    gate_up: Tensor
    down: Tensor
    num_slots: int
    hidden: int
    inter: int


class Ops(Protocol):
    """Activations are float32 in and out; weights float32, bfloat16 or float16.

    A row of a result depends on its own row of the input, the weights and nothing else: `NativeOps` keeps
    that to the bit for any batch, thread count and chunking of a prompt. `name` says which implementation
    this is; `why` is empty, or the reason for falling back to it.
    """

    name: str
    why: str

    def packed_numel(self, num_out: int, num_in: int) -> int:
        """Elements `pack_linear` fills for a matrix of this shape."""
        ...

    def pack_linear(self, w_NK: Tensor, out: Tensor | None = None) -> PackedLinear:
        """Pack into `out` (flat, of the wanted dtype) or into new memory."""
        ...

    def linear(self, x_TK: Tensor, w: PackedLinear, bias_N: Tensor | None = None) -> Tensor:
        """y_TN = x W^T + bias. x may have any row stride."""
        ...

    def unpack_rows(self, w: PackedLinear, ids_T: Tensor) -> Tensor:
        """Rows of the packed matrix, [T, K] in its dtype: an embedding tied to the LM head."""
        ...

    def alloc_experts(
        self, num_slots: int, hidden: int, inter: int, dtype: torch.dtype
    ) -> PackedExperts:
        """Room for the experts of `num_slots` slots."""
        ...

    def pack_expert(
        self, packed: PackedExperts, slot: int, gate_ID: Tensor, up_ID: Tensor, down_DI: Tensor
    ) -> None:
        """Put one expert into a slot."""
        ...

    def experts(
        self,
        x_TD: Tensor,
        slots_TJ: Tensor,
        weights_TJ: Tensor,
        packed: PackedExperts,
        out_TD: Tensor,
    ) -> None:
        """Add weight * down(silu(gate x) * up x) of each choice with slot >= 0 into out_TD (float64).

        Each term is first rounded to a multiple of 2^(e - 38), 2^e bounding the token's largest |x|, so that
        sums stay exact and their bits do not depend on how experts are grouped over ranks.
        """
        ...

    def paged_attention(
        self,
        q_THd: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        block_tables_SM: Tensor,
        sequence_ids_T: Tensor,
        positions_T: Tensor,
        scale: float,
    ) -> Tensor:
        """o_THv: token t attends to positions 0..positions_T[t] of its sequence.

        k_cache [blocks, block size, G, d], v_cache [blocks, block size, G, v], which may be a view of
        k_cache; query head h reads KV head h // (H / G).
        """
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Root mean square norm over the last axis of a contiguous x."""
        ...

    def rope(self, x_THd: Tensor, cos_Th: Tensor, sin_Th: Tensor, *, interleaved: bool) -> Tensor:
        """Rotary embedding of a contiguous x_THd, which may be changed in place and returned."""
        ...

    def silu_mul(self, gate_TI: Tensor, up_TI: Tensor) -> Tensor:
        """silu(gate) * up; the inputs may have any row stride."""
        ...

    def route_softmax_topk(
        self,
        logits_TE: Tensor,
        top_k: int,
        renormalize: bool,
        scale: float,
        *,
        num_groups: int = 0,
        topk_groups: int = 0,
    ) -> tuple[Tensor, Tensor]:
        """ids_TJ int32 ascending and weights_TJ float32 of the best experts by softmax score.

        Ties go to the lower id. With `num_groups` only experts of the `topk_groups` groups with the largest
        single scores count (DeepSeek-V2's group_limited_greedy).
        """
        ...
