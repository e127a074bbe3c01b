"""The operations in plain torch: the twin the C kernels are compared with, and what runs on a GPU.

Clear before fast. Rows are independent in meaning; their last bits may vary with the batch (BLAS decides).
"""

import importlib
import importlib.util
from collections.abc import Callable

import torch
from janus_hpc.kernels.balance import balance
from janus_hpc.kernels.ops import PackedExperts, PackedLinear, RouteRule
from janus_hpc.kernels.route import route
from janus_hpc.kernels.slot_map import Balanced, SlotMap
from torch import Tensor

# The combine's quanta: see `Ops.experts`.
QUANTUM_BITS = 38
MAX_SCORES = 1 << 26

GateFn = Callable[[Tensor, PackedLinear, RouteRule, Tensor | None], tuple[Tensor, Tensor]]
ExpertsFn = Callable[[Tensor, Tensor, Tensor, PackedExperts, Tensor], None]


class TorchOps:
    """See `Ops`."""

    name = "torch"

    def __init__(self, device: torch.device, why: str = "") -> None:
        self.device = device
        self.why = why
        self._route = route
        self._gate: GateFn | None = None
        self._experts: ExpertsFn | None = None
        self._balance_aebs: Callable[[Tensor, SlotMap], Balanced] | None = None
        if device.type == "cuda":
            if importlib.util.find_spec("triton"):
                self._balance_aebs = importlib.import_module(
                    "janus_hpc.kernels.balance_triton"
                ).balance_aebs
                self._route = importlib.import_module("janus_hpc.kernels.route_triton").route
                self._gate = importlib.import_module("janus_hpc.kernels.gate_triton").gate
                self._experts = importlib.import_module("janus_hpc.kernels.experts_triton").experts
                self.name = "torch+triton"
            else:
                self.why = why or "triton is not installed: gate and experts run in plain torch"

    def packed_numel(self, num_out: int, num_in: int) -> int:
        return num_out * num_in

    def pack_linear(self, w_NK: Tensor, out: Tensor | None = None) -> PackedLinear:
        if out is None:
            out = torch.empty(w_NK.numel(), dtype=w_NK.dtype, device=w_NK.device)
        out.view(w_NK.shape).copy_(w_NK)
        return PackedLinear(out, *w_NK.shape)

    def linear(self, x_TK: Tensor, w: PackedLinear, bias_N: Tensor | None = None) -> Tensor:
        y_TN = _matmul(x_TK, w.data.view(w.num_out, w.num_in))
        return y_TN if bias_N is None else y_TN + bias_N

    def unpack_rows(self, w: PackedLinear, ids_T: Tensor) -> Tensor:
        return w.data.view(w.num_out, w.num_in)[ids_T]

    def alloc_experts(
        self, num_slots: int, hidden: int, inter: int, dtype: torch.dtype
    ) -> PackedExperts:
        gate_up = torch.empty(num_slots * 2 * inter * hidden, dtype=dtype, device=self.device)
        down = torch.empty(num_slots * hidden * inter, dtype=dtype, device=self.device)
        return PackedExperts(gate_up, down, num_slots, hidden, inter)

    def pack_expert(
        self, packed: PackedExperts, slot: int, gate_ID: Tensor, up_ID: Tensor, down_DI: Tensor
    ) -> None:
        gate_up = packed.gate_up.view(packed.num_slots, 2, packed.inter, packed.hidden)
        gate_up[slot, 0] = gate_ID
        gate_up[slot, 1] = up_ID
        packed.down.view(packed.num_slots, packed.hidden, packed.inter)[slot] = down_DI

    def experts(
        self,
        x_TD: Tensor,
        slots_TJ: Tensor,
        weights_TJ: Tensor,
        packed: PackedExperts,
        out_TD: Tensor,
    ) -> None:
        if self._experts is not None:
            self._experts(x_TD, slots_TJ, weights_TJ, packed, out_TD)
            return
        dtype = packed.down.dtype
        gate_up = packed.gate_up.view(packed.num_slots, 2, packed.inter, packed.hidden)
        down = packed.down.view(packed.num_slots, packed.hidden, packed.inter)
        carry_T1 = _carry(x_TD)
        for slot in slots_TJ.unique().tolist():
            if slot < 0:
                continue
            rows, choices = torch.where(slots_TJ == slot)
            x_RD = x_TD[rows]
            gate_RI = _matmul(x_RD, gate_up[slot, 0]).to(dtype)
            up_RI = _matmul(x_RD, gate_up[slot, 1]).to(dtype)
            inner_RI = torch.nn.functional.silu(gate_RI.float()).to(dtype) * up_RI
            o_RD = _matmul(inner_RI.float(), down[slot]).to(dtype).float()
            v_RD = (weights_TJ[rows, choices, None] * o_RD).double()
            carry_R1 = carry_T1[rows]
            # A row takes a slot once, so no two terms of this call meet in one sum.
            out_TD[rows] += (v_RD + carry_R1) - carry_R1

    def balance(self, ids_TJ: Tensor, slot_map: SlotMap, policy: str, draw: int) -> Balanced:
        if policy == "aebs" and self._balance_aebs is not None:
            return self._balance_aebs(ids_TJ, slot_map)
        return balance(ids_TJ, slot_map, policy, draw)

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
        num_tokens, num_heads = q_THd.shape[:2]
        block_size, kv_heads, v_dim = v_cache.shape[1:]
        out_THv = q_THd.new_empty((num_tokens, num_heads, v_dim))
        # Tokens are taken in portions that bound the memory of gathered keys and scores.
        length = block_tables_SM.shape[1] * block_size
        per_token = max(length * kv_heads * (q_THd.shape[2] + v_dim), 1)
        step = max(1, MAX_SCORES // per_token)
        for start in range(0, num_tokens, step):
            part = slice(start, start + step)
            tables_TM = block_tables_SM[sequence_ids_T[part].long()].long()
            k_TLGd = k_cache[tables_TM].flatten(1, 2).float()
            v_TLGv = v_cache[tables_TM].flatten(1, 2).float()
            q_TGhd = q_THd[part].unflatten(1, (kv_heads, num_heads // kv_heads))
            scores_TGhL = torch.einsum("tghd,tlgd->tghl", q_TGhd, k_TLGd) * scale
            # Slots beyond a token's position may hold anything, also NaN in values: both are masked.
            unseen_TL = torch.arange(length, device=q_THd.device) > positions_T[part, None]
            scores_TGhL.masked_fill_(unseen_TL[:, None, None], float("-inf"))
            v_TLGv.masked_fill_(unseen_TL[:, :, None, None], 0.0)
            o_TGhv = torch.einsum("tghl,tlgv->tghv", scores_TGhL.softmax(dim=-1), v_TLGv)
            out_THv[part] = o_TGhv.flatten(1, 2)
        return out_THv

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps))

    def rope(self, x_THd: Tensor, cos_Th: Tensor, sin_Th: Tensor, *, interleaved: bool) -> Tensor:
        cos_T1h, sin_T1h = cos_Th[:, None], sin_Th[:, None]
        if interleaved:
            a, b = x_THd[..., 0::2], x_THd[..., 1::2]
            return torch.stack(
                (a * cos_T1h - b * sin_T1h, b * cos_T1h + a * sin_T1h), dim=-1
            ).flatten(-2)
        a, b = x_THd.chunk(2, dim=-1)
        return torch.cat((a * cos_T1h - b * sin_T1h, b * cos_T1h + a * sin_T1h), dim=-1)

    def silu_mul(self, gate_TI: Tensor, up_TI: Tensor) -> Tensor:
        return torch.nn.functional.silu(gate_TI) * up_TI

    def route(
        self, logits_TE: Tensor, rule: RouteRule, bias_E: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self._route(logits_TE, rule, bias_E)

    def gate(
        self, x_TD: Tensor, router: PackedLinear, rule: RouteRule, bias_E: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if self._gate is not None:
            return self._gate(x_TD, router, rule, bias_E)
        return self.route(self.linear(x_TD.float(), router), rule, bias_E)


def _matmul(x_TK: Tensor, w_NK: Tensor) -> Tensor:
    """x W^T in float32: on a GPU half-precision weights multiply in their own dtype."""
    if w_NK.device.type == "cpu":
        return x_TK @ w_NK.float().T
    return (x_TK.to(w_NK.dtype) @ w_NK.T).float()


def _carry(x_TD: Tensor) -> Tensor:
    """[T, 1] float64: 1.5 * 2^52 quanta, where adding and subtracting rounds to a multiple of the quantum."""
    largest_T1 = x_TD.abs().amax(dim=1, keepdim=True).double()
    exponent_T1 = torch.frexp(largest_T1).exponent
    exponent_T1 = torch.where(largest_T1.isfinite(), exponent_T1, 128)
    # 1.5 * 2^n put together from its bits: exact on every device.
    bits_T1 = (exponent_T1.long() + (52 - QUANTUM_BITS + 1023)) << 52 | 1 << 51
    return bits_T1.view(torch.float64)
