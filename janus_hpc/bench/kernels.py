"""Each compute kernel against its plain torch twin, and against a library's where there is one; one process.

Knows the operations by their interface alone; sizes are those of a named shape.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention

from janus_hpc.bench.expert_peers import Layout, PeerExperts
from janus_hpc.bench.experts import Sizes, pack, uniform_slots
from janus_hpc.bench.timing import Call, times_us
from janus_hpc.kernels.ops import Ops, RouteRule
from janus_hpc.kernels.torch_ops import TorchOps
from janus_hpc.models.shapes import shape_config

# Legend: T tokens, J choices a token, S slots, D hidden, N outputs, H heads, G KV heads, d head dim,
# L positions, P entries (token, choice).

BLOCK_SIZE = 16
EPS = 1e-6
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class KernelsOptions:
    """`num_slots`: experts on this rank; `context`: positions each token attends to."""

    kernels: Sequence[str]
    shape: str
    num_slots: int
    context: int
    tokens: Sequence[int]
    dtype: torch.dtype
    repeats: int


@dataclass(frozen=True)
class Setting:
    """What a kernel is timed with: both implementations, and where and how large."""

    ops: Ops
    twin: TorchOps
    device: torch.device
    options: KernelsOptions
    values: dict[str, Any]
    num_tokens: int

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        generator = torch.Generator().manual_seed(len(shape))
        return torch.randn(shape, generator=generator).to(self.device, dtype)


# The calls by name: janus, twin, and the library's under its own name.
Calls = dict[str, Call]


def run_kernels(ops: Ops, device: torch.device, options: KernelsOptions) -> list[Record]:
    """A record a kernel and token count. Errors: UsageError for an unknown shape."""
    values = shape_config(options.shape)
    # Plain torch, wherever the tensors are.
    twin = TorchOps(torch.device("cpu"))
    records = []
    with torch.inference_mode():
        for name in options.kernels:
            for num_tokens in options.tokens:
                setting = Setting(ops, twin, device, options, values, num_tokens)
                records.append(_record(name, setting))
    return records


def _record(name: str, setting: Setting) -> Record:
    options = setting.options
    found = times_us(KERNELS[name](setting), setting.device, options.repeats)
    janus_us, twin_us = found.pop("janus"), found.pop("twin", None)
    return {
        "kernel": name,
        "shape": options.shape,
        "tokens": setting.num_tokens,
        "dtype": str(options.dtype).removeprefix("torch."),
        "kernels": setting.ops.name,
        "device": str(setting.device),
        "time_us": janus_us,
        "twin_us": twin_us,
        "ratio": None if twin_us is None else twin_us / janus_us,
        "others_us": found,
        "ratio_to_others": {other: time / janus_us for other, time in found.items()},
    }


def _rule(setting: Setting) -> RouteRule:
    return RouteRule(setting.values["num_experts_per_tok"], True, 1.0)


def _gate(setting: Setting) -> Calls:
    values, rule = setting.values, _rule(setting)
    x_TD = setting.normal(setting.num_tokens, values["hidden_size"], dtype=setting.options.dtype)
    router_ED = setting.normal(values["num_experts"], values["hidden_size"]) / 50
    router, plain = (ops.pack_linear(router_ED) for ops in (setting.ops, setting.twin))

    def library() -> tuple[Tensor, Tensor]:
        weights_TJ, ids_TJ = linear(x_TD.float(), router_ED).softmax(dim=1).topk(rule.top_k)
        return ids_TJ, weights_TJ / weights_TJ.sum(dim=1, keepdim=True)

    def in_two() -> tuple[Tensor, Tensor]:
        return setting.ops.route(setting.ops.linear(x_TD.float(), router), rule)

    return {
        "janus": lambda: setting.ops.gate(x_TD, router, rule),
        "twin": lambda: setting.twin.gate(x_TD, plain, rule),
        "torch softmax and topk": library,
        "linear, then route": in_two,
    }


def _route(setting: Setting) -> Calls:
    rule = _rule(setting)
    logits_TE = setting.normal(setting.num_tokens, setting.values["num_experts"])
    return {
        "janus": lambda: setting.ops.route(logits_TE, rule),
        "twin": lambda: setting.twin.route(logits_TE, rule),
        "torch softmax and topk": lambda: logits_TE.softmax(dim=1).topk(rule.top_k),
    }


def _linear(setting: Setting) -> Calls:
    num_in, dtype = setting.values["hidden_size"], setting.options.dtype
    num_out = setting.values["num_attention_heads"] * setting.values["head_dim"]
    x_TD, w_ND = (
        setting.normal(setting.num_tokens, num_in),
        setting.normal(num_out, num_in, dtype=dtype),
    )
    packed, plain, rounded_TD = (
        setting.ops.pack_linear(w_ND),
        setting.twin.pack_linear(w_ND),
        x_TD.to(dtype),
    )
    return {
        "janus": lambda: setting.ops.linear(x_TD, packed),
        "twin": lambda: setting.twin.linear(x_TD, plain),
        "torch matmul": lambda: linear(rounded_TD, w_ND),
    }


def _experts(setting: Setting) -> Calls:
    options, num_tokens = setting.options, setting.num_tokens
    sizes = Sizes.of_shape(options.shape, options.num_slots)
    peers = PeerExperts.random(
        sizes.num_slots, sizes.hidden, sizes.inter, options.dtype, setting.device
    )
    slots_TJ = uniform_slots(sizes, num_tokens).to(setting.device)
    x_TD = setting.normal(num_tokens, sizes.hidden)
    weights_TJ = torch.rand_like(slots_TJ, dtype=torch.float32)
    sums_TD = torch.zeros(x_TD.shape, dtype=torch.float64, device=setting.device)
    rounded_TD = x_TD.to(options.dtype)
    num_entries = len(Layout.sorted(slots_TJ, sizes.num_slots).entries_P)

    def of(ops: Ops) -> Call:
        packed = pack(ops, peers)
        return lambda: ops.experts(x_TD, slots_TJ, weights_TJ, packed, sums_TD)

    calls: Calls = {
        "janus": of(setting.ops),
        "torch grouped_mm": lambda: peers.sorting(rounded_TD, slots_TJ, weights_TJ, num_entries),
    }
    # The twin's loop asks which slots are activated, which no CUDA graph can hold.
    return calls if setting.device.type == "cuda" else {**calls, "twin": of(setting.twin)}


def _attention(setting: Setting) -> Calls:
    values, num_tokens, length = setting.values, setting.num_tokens, setting.options.context
    heads, kv_heads, dim = (
        values[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    blocks = -(-length // BLOCK_SIZE)
    shape = (num_tokens * blocks, BLOCK_SIZE, kv_heads, dim)
    k_cache, v_cache = (setting.normal(*shape, dtype=setting.options.dtype) for _ in range(2))
    every = torch.arange(num_tokens, dtype=torch.int32, device=setting.device)
    tables_SM = torch.arange(num_tokens * blocks, dtype=torch.int32, device=setting.device)
    positions_T = torch.full_like(every, length - 1)
    q_THd, scale = setting.normal(num_tokens, heads, dim), dim**-0.5
    # Dense copies, so that the library need not gather.
    k_TGLd, v_TGLd = (
        cache.view(num_tokens, -1, kv_heads, dim)[:, :length].transpose(1, 2).contiguous()
        for cache in (k_cache, v_cache)
    )
    q_TH1d = q_THd.unsqueeze(2).to(setting.options.dtype)

    def of(ops: Ops) -> Call:
        tables = tables_SM.view(num_tokens, blocks)
        return lambda: ops.paged_attention(
            q_THd, k_cache, v_cache, tables, every, positions_T, scale
        )

    return {
        "janus": of(setting.ops),
        "twin": of(setting.twin),
        "torch scaled_dot_product_attention, dense": lambda: scaled_dot_product_attention(
            q_TH1d, k_TGLd, v_TGLd, scale=scale, enable_gqa=True
        ),
    }


def _rms_norm(setting: Setting) -> Calls:
    dim = setting.values["hidden_size"]
    x_TD, weight_D = setting.normal(setting.num_tokens, dim), setting.normal(dim)
    return {
        "janus": lambda: setting.ops.rms_norm(x_TD, weight_D, EPS),
        "twin": lambda: setting.twin.rms_norm(x_TD, weight_D, EPS),
        "torch rms_norm": lambda: rms_norm(x_TD, (dim,), weight_D, EPS),
    }


def _rope(setting: Setting) -> Calls:
    heads, dim = setting.values["num_attention_heads"], setting.values["head_dim"]
    x_THd = setting.normal(setting.num_tokens, heads, dim)
    angle_Th = setting.normal(setting.num_tokens, dim // 2)
    cos_Th, sin_Th = angle_Th.cos(), angle_Th.sin()
    return {
        "janus": lambda: setting.ops.rope(x_THd, cos_Th, sin_Th, interleaved=False),
        "twin": lambda: setting.twin.rope(x_THd, cos_Th, sin_Th, interleaved=False),
    }


def _silu_mul(setting: Setting) -> Calls:
    width = setting.values["moe_intermediate_size"]
    gate_TI, up_TI = setting.normal(setting.num_tokens, 2 * width).chunk(2, dim=1)
    return {
        "janus": lambda: setting.ops.silu_mul(gate_TI, up_TI),
        "twin": lambda: setting.twin.silu_mul(gate_TI, up_TI),
    }


KERNELS: dict[str, Callable[[Setting], Calls]] = {
    "gate": _gate,
    "route": _route,
    "linear": _linear,
    "attention": _attention,
    "rms_norm": _rms_norm,
    "rope": _rope,
    "silu_mul": _silu_mul,
    "experts": _experts,
}
