"""The compute operations of the engine, as one interface.

`NativeOps` (C, CPU) and `TorchOps` (plain torch, any device) give the same results to rounding. Knows no model.

Legend: T tokens, K inputs, N outputs, H heads, G KV heads, d head dim, v value dim, E experts, J choices a
token, D hidden, I expert width, S sequences, M blocks a sequence.
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from janus_hpc.kernels.slot_map import Balanced, SlotMap
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


@dataclass(frozen=True)
class RouteRule:
    """How a gate turns logits into choices. `num_groups` of 0 means no group limit.

    `scoring` softmax: a group counts as its largest score (DeepSeek-V2, section 2.1.2: group_limited_greedy).
    sigmoid: as the sum of its two largest, and a bias may be added to the scores for the choice alone
    (DeepSeek-V3, section 2.1.2: noaux_tc).
    """

    top_k: int
    renormalize: bool
    scale: float
    num_groups: int = 0
    topk_groups: int = 0
    scoring: Literal["softmax", "sigmoid"] = "softmax"

    def check(self, num_experts: int) -> None:
        """Errors: AssertionError for a rule that so many experts cannot follow."""
        assert 0 < self.top_k <= num_experts, f"{self=} {num_experts=}"
        assert self.scoring in ("softmax", "sigmoid"), f"{self=}"
        if self.num_groups:
            assert num_experts % self.num_groups == 0, f"{self=} {num_experts=}"
            assert 0 < self.topk_groups <= self.num_groups, f"{self=}"
            size = num_experts // self.num_groups
            assert self.scoring == "softmax" or size > 1, f"two best of one: {self=} {num_experts=}"


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

    def balance(self, ids_TJ: Tensor, slot_map: SlotMap, policy: str, draw: int) -> Balanced:
        """The slot that serves each choice in ids_TJ (int32), by a policy of `assign.POLICIES`.

        The same on every rank and in every implementation that is given the same arguments. `draw` only
        matters to the policy random.
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

    def route(
        self, logits_TE: Tensor, rule: RouteRule, bias_E: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """ids_TJ int32 ascending and weights_TJ float32 of the best experts by score, both contiguous.

        Chosen by score + bias_E (float32), weighted by score alone. Ties go to the lower id. With groups
        only experts of the best groups count; where they are fewer than top_k the lowest others follow
        with weight 0. NaN ranks below every number, so that any logits give top_k distinct ids.
        """
        ...

    def gate(
        self, x_TD: Tensor, router: PackedLinear, rule: RouteRule, bias_E: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """`route` of x W^T in float32. x: float32, bfloat16 or float16; router: float32."""
        ...
