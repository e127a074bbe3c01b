"""The operations in C on the CPU: thin calls through ctypes, which gives up the interpreter lock meanwhile.

Every result row depends on its own input row alone, to the bit; native/*.h say how.
"""

import ctypes
from pathlib import Path

import torch
from janus_hpc.kernels.native.balance_library import BalanceLibrary
from janus_hpc.kernels.ops import PackedExperts, PackedLinear, RouteRule
from janus_hpc.kernels.slot_map import Balanced, SlotMap
from torch import Tensor

LANES = 16
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}

_P, _L, _I, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_SIGNATURES = {
    "janus_pack": [_P, _L, _L, _L, _I, _P, _L],
    "janus_linear": [_P, _L, _L, _P, _I, _L, _L, _P, _P, _L, _I],
    "janus_experts": [
        _P, _L, _L, _L, _P, _P, _P, _P, _I, _L, _L, _L, _P, _P, _I,
    ],
    "janus_attention": [
        _P, _P, _P, _L, _L, _L, _L, _L, _L, _I, _P, _L, _P, _P, _L, _L, _L, _L, _L, _L, _F, _P, _P, _I,
    ],
    "janus_route": [_P, _L, _L, _I, _P, _L, _I, _F, _L, _L, _P, _P, _I],
    "janus_rms_norm": [_P, _L, _P, _P, _P, _L, _L, _F, _P, _I],
    "janus_rope": [_P, _L, _L, _P, _P, _L, _L, _L, _I, _I],
    "janus_silu_mul": [_P, _L, _P, _L, _L, _L, _P, _I],
}  # fmt: skip


def _padded(count: int) -> int:
    return -(-count // LANES) * LANES


class NativeOps:
    """See `Ops`. `num_threads` is the most a call may use."""

    why = ""

    def __init__(self, library: Path, num_threads: int) -> None:
        self.num_threads = num_threads
        self._lib = ctypes.CDLL(str(library))
        self.balance_library = BalanceLibrary(library)
        for name, arguments in _SIGNATURES.items():
            function = getattr(self._lib, name)
            function.argtypes = arguments
            function.restype = None
        self._lib.janus_isa.restype = ctypes.c_char_p
        self._lib.janus_attention_scratch.argtypes = [_L, _L]
        self._lib.janus_attention_scratch.restype = _L
        self.name = f"native-{self._lib.janus_isa().decode()}"

    def packed_numel(self, num_out: int, num_in: int) -> int:
        return _padded(num_out) * num_in

    def pack_linear(self, w_NK: Tensor, out: Tensor | None = None) -> PackedLinear:
        num_out, num_in = w_NK.shape
        if out is None:
            out = torch.empty(self.packed_numel(num_out, num_in), dtype=w_NK.dtype)
        assert out.numel() == self.packed_numel(num_out, num_in) and out.is_contiguous()
        self._pack(w_NK.to(out.dtype), out, LANES * num_in)
        return PackedLinear(out, num_out, num_in)

    def linear(self, x_TK: Tensor, w: PackedLinear, bias_N: Tensor | None = None) -> Tensor:
        num_rows = x_TK.shape[0]
        assert x_TK.shape[1] == w.num_in and x_TK.stride(1) == 1 and x_TK.dtype == torch.float32
        y_TN = torch.empty((num_rows, w.num_out))
        self._lib.janus_linear(
            x_TK.data_ptr(),
            x_TK.stride(0),
            num_rows,
            w.data.data_ptr(),
            DTYPES[w.data.dtype],
            w.num_out,
            w.num_in,
            None if bias_N is None else bias_N.data_ptr(),
            y_TN.data_ptr(),
            w.num_out,
            self.num_threads,
        )
        return y_TN

    def unpack_rows(self, w: PackedLinear, ids_T: Tensor) -> Tensor:
        return w.data.view(-1, w.num_in, LANES)[ids_T // LANES, :, ids_T % LANES]

    def alloc_experts(
        self, num_slots: int, hidden: int, inter: int, dtype: torch.dtype
    ) -> PackedExperts:
        gate_up = torch.empty(num_slots * 2 * _padded(inter) * hidden, dtype=dtype)
        down = torch.empty(num_slots * _padded(hidden) * inter, dtype=dtype)
        return PackedExperts(gate_up, down, num_slots, hidden, inter)

    def pack_expert(
        self, packed: PackedExperts, slot: int, gate_ID: Tensor, up_ID: Tensor, down_DI: Tensor
    ) -> None:
        gate_up = packed.gate_up.view(packed.num_slots, -1)[slot]
        panel = LANES * packed.hidden
        self._pack(gate_ID, gate_up, 2 * panel)
        self._pack(up_ID, gate_up[panel:], 2 * panel)
        self._pack(down_DI, packed.down.view(packed.num_slots, -1)[slot], LANES * packed.inter)

    def _pack(self, w_NK: Tensor, out: Tensor, panel_elements: int) -> None:
        w_NK = w_NK if w_NK.stride(1) == 1 else w_NK.contiguous()
        assert w_NK.dtype == out.dtype, f"{w_NK.dtype=} {out.dtype=}"
        num_out, num_in = w_NK.shape
        self._lib.janus_pack(
            w_NK.data_ptr(),
            num_out,
            num_in,
            w_NK.stride(0),
            DTYPES[out.dtype],
            out.data_ptr(),
            panel_elements,
        )

    def experts(
        self,
        x_TD: Tensor,
        slots_TJ: Tensor,
        weights_TJ: Tensor,
        packed: PackedExperts,
        out_TD: Tensor,
    ) -> None:
        num_rows, top_k = slots_TJ.shape
        assert slots_TJ.dtype == torch.int32 and slots_TJ.is_contiguous()
        assert weights_TJ.is_contiguous() and out_TD.is_contiguous() and x_TD.stride(1) == 1
        assert out_TD.dtype == torch.float64 and x_TD.dtype == torch.float32
        pairs = num_rows * top_k
        # The four parts that experts_job names, in words of four bytes.
        scratch = torch.empty(
            2 * num_rows + pairs * (_padded(packed.inter) + 1) + packed.num_slots + 1
        )
        self._lib.janus_experts(
            x_TD.data_ptr(),
            x_TD.stride(0),
            num_rows,
            top_k,
            slots_TJ.data_ptr(),
            weights_TJ.data_ptr(),
            packed.gate_up.data_ptr(),
            packed.down.data_ptr(),
            DTYPES[packed.gate_up.dtype],
            packed.num_slots,
            packed.hidden,
            packed.inter,
            out_TD.data_ptr(),
            scratch.data_ptr(),
            self.num_threads,
        )

    def balance(self, ids_TJ: Tensor, slot_map: SlotMap, policy: str, draw: int) -> Balanced:
        assert ids_TJ.dtype == torch.int32 and ids_TJ.is_contiguous()
        lists = slot_map.lists
        num_experts, num_ranks = lists.num_experts, lists.num_ranks
        slots_TJ = torch.empty_like(ids_TJ)
        # Counts, loads, then scratch.
        words = torch.empty(3 * num_experts + num_ranks, dtype=torch.int32)
        start = words.data_ptr()
        self.balance_library.balance(
            policy,
            (ids_TJ.data_ptr(), ids_TJ.numel()),
            (num_experts, num_ranks, slot_map.hosts_EW.shape[1]),
            (
                slot_map.slot_of_ER.data_ptr(),
                slot_map.hosts_EW.data_ptr(),
                slot_map.primary_E.data_ptr(),
            ),
            draw,
            (
                slots_TJ.data_ptr(),
                start,
                start + 4 * num_experts,
                start + 4 * (num_experts + num_ranks),
            ),
        )
        counts_E = words[:num_experts]
        return Balanced(slots_TJ, counts_E, words[num_experts : num_experts + num_ranks])

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
        num_tokens, num_heads, head_dim = q_THd.shape
        block_size, kv_heads, v_dim = v_cache.shape[1:]
        assert q_THd.is_contiguous() and block_tables_SM.is_contiguous()
        assert k_cache.stride(3) == 1 and v_cache.stride(3) == 1 and k_cache.dtype == v_cache.dtype
        assert q_THd.dtype == torch.float32 and block_tables_SM.dtype == torch.int32
        assert sequence_ids_T.dtype == positions_T.dtype == torch.int32
        out_THv = torch.empty((num_tokens, num_heads, v_dim))
        # Each thread's part, then the runs of tokens, in words of four bytes.
        scratch = torch.empty(
            self.num_threads * self._lib.janus_attention_scratch(head_dim, v_dim) + num_tokens + 1
        )
        self._lib.janus_attention(
            q_THd.data_ptr(),
            k_cache.data_ptr(),
            v_cache.data_ptr(),
            *k_cache.stride()[:3],
            *v_cache.stride()[:3],
            DTYPES[k_cache.dtype],
            block_tables_SM.data_ptr(),
            block_tables_SM.shape[1],
            sequence_ids_T.data_ptr(),
            positions_T.data_ptr(),
            num_tokens,
            num_heads,
            kv_heads,
            head_dim,
            v_dim,
            block_size,
            scale,
            out_THv.data_ptr(),
            scratch.data_ptr(),
            self.num_threads,
        )
        return out_THv

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        assert x.is_contiguous() and x.dtype == torch.float32 and weight.dtype == torch.float32
        y = torch.empty_like(x)
        dim = x.shape[-1]
        num_rows = x.numel() // dim
        self._lib.janus_rms_norm(
            x.data_ptr(),
            dim,
            None,
            None,
            weight.data_ptr(),
            num_rows,
            dim,
            eps,
            y.data_ptr(),
            self.num_threads,
        )
        return y

    def rope(self, x_THd: Tensor, cos_Th: Tensor, sin_Th: Tensor, *, interleaved: bool) -> Tensor:
        assert x_THd.stride(2) == 1 and cos_Th.is_contiguous() and sin_Th.is_contiguous()
        num_tokens, num_heads, head_dim = x_THd.shape
        self._lib.janus_rope(
            x_THd.data_ptr(),
            x_THd.stride(0),
            x_THd.stride(1),
            cos_Th.data_ptr(),
            sin_Th.data_ptr(),
            num_tokens,
            num_heads,
            head_dim // 2,
            int(interleaved),
            self.num_threads,
        )
        return x_THd

    def silu_mul(self, gate_TI: Tensor, up_TI: Tensor) -> Tensor:
        assert gate_TI.stride(1) == 1 and up_TI.stride(1) == 1
        num_rows, dim = gate_TI.shape
        y_TI = torch.empty((num_rows, dim))
        self._lib.janus_silu_mul(
            gate_TI.data_ptr(),
            gate_TI.stride(0),
            up_TI.data_ptr(),
            up_TI.stride(0),
            num_rows,
            dim,
            y_TI.data_ptr(),
            self.num_threads,
        )
        return y_TI

    def route(
        self, logits_TE: Tensor, rule: RouteRule, bias_E: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        assert logits_TE.is_contiguous() and logits_TE.dtype == torch.float32
        assert bias_E is None or (bias_E.is_contiguous() and bias_E.dtype == torch.float32)
        num_rows, num_experts = logits_TE.shape
        rule.check(num_experts)
        ids_TJ = torch.empty((num_rows, rule.top_k), dtype=torch.int32)
        weights_TJ = torch.empty((num_rows, rule.top_k))
        self._lib.janus_route(
            logits_TE.data_ptr(),
            num_rows,
            num_experts,
            int(rule.scoring == "sigmoid"),
            None if bias_E is None else bias_E.data_ptr(),
            rule.top_k,
            int(rule.renormalize),
            rule.scale,
            rule.num_groups,
            rule.topk_groups,
            ids_TJ.data_ptr(),
            weights_TJ.data_ptr(),
            self.num_threads,
        )
        return ids_TJ, weights_TJ

    def gate(
        self, x_TD: Tensor, router: PackedLinear, rule: RouteRule, bias_E: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return self.route(self.linear(x_TD.float(), router), rule, bias_E)
