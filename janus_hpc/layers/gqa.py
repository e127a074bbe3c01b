"""Grouped-query attention over the paged KV cache.

Knows its weights, its layer index in the cache and a step's tokens; nothing of rows, ranks or files.
"""

import torch

from janus_hpc.kernels.ops import Ops
from janus_hpc.kvcache import KVCache
from janus_hpc.layers.source import MatrixPart, WeightSource
from janus_hpc.layers.step import StepTokens
from janus_hpc.models.spec import GqaSpec, ModelSpec

# Legend: T tokens, D hidden, H query heads, G KV heads, d head dim.


class GqaAttention:
    """Attention of one layer; x_TD in, the output projection's y_TD out."""

    def __init__(self, spec: ModelSpec, layer: int, ops: Ops, source: WeightSource) -> None:
        attention = spec.attention
        assert isinstance(attention, GqaSpec)
        self.ops = ops
        self.layer = layer
        self.rms_eps = spec.rms_eps
        self.shape = attention
        self.scale = attention.head_dim**-0.5
        prefix = f"model.layers.{layer}."
        shapes = {prefix + name: shape for name, shape in attention.tensors(spec.hidden)}
        names = [f"{prefix}self_attn.{letter}_proj" for letter in "qkv"]
        self.qkv = source.linear(
            *(MatrixPart(name=f"{n}.weight", shape=shapes[f"{n}.weight"]) for n in names)
        )
        out = f"{prefix}self_attn.o_proj"
        self.out = source.linear(MatrixPart(name=f"{out}.weight", shape=shapes[f"{out}.weight"]))
        self.qkv_bias: torch.Tensor | None = None
        self.out_bias: torch.Tensor | None = None
        if attention.bias:
            biases = [source.tensor(f"{n}.bias", shapes[f"{n}.bias"], torch.float32) for n in names]
            self.qkv_bias = torch.cat(biases)
            self.out_bias = source.tensor(f"{out}.bias", shapes[f"{out}.bias"], torch.float32)
        self.q_norm_d, self.k_norm_d = (
            source.tensor(
                f"{prefix}self_attn.{letter}_norm.weight", (attention.head_dim,), torch.float32
            )
            for letter in "qk"
        )

    def forward(self, x_TD: torch.Tensor, step: StepTokens, cache: KVCache) -> torch.Tensor:
        ops, shape = self.ops, self.shape
        num_tokens = x_TD.shape[0]
        heads = (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads)
        qkv_T = ops.linear(x_TD, self.qkv, self.qkv_bias).view(num_tokens, sum(heads), -1)
        q_THd, k_TGd, v_TGd = qkv_T.split(heads, dim=1)
        q_THd = ops.rms_norm(q_THd.contiguous(), self.q_norm_d, self.rms_eps)
        k_TGd = ops.rms_norm(k_TGd.contiguous(), self.k_norm_d, self.rms_eps)
        q_THd = ops.rope(q_THd, step.cos_Th, step.sin_Th, interleaved=False)
        k_TGd = ops.rope(k_TGd, step.cos_Th, step.sin_Th, interleaved=False)
        cache.store(self.layer, step.slots_T, k_TGd, v_TGd)
        k_NBGd, v_NBGd = cache.layers[self.layer]
        o_THd = ops.paged_attention(
            q_THd,
            k_NBGd,
            v_NBGd,
            step.block_tables_SM,
            step.sequence_ids_T,
            step.positions_T,
            self.scale,
        )
        return ops.linear(o_THd.reshape(num_tokens, -1), self.out, self.out_bias)
