"""Multi-head latent attention over a paged cache of latents (DeepSeek-V2, arXiv 2405.04434, section 2.1).

The key and value projections are absorbed into the query and output sides for every token, prompt tokens
too: a token's bits then do not depend on whether it was prefilled, decoded or recomputed after preemption.
"""

import torch

from janus_hpc.kernels.ops import Ops, PackedLinear
from janus_hpc.kvcache import KVCache
from janus_hpc.layers.source import MatrixPart, WeightSource
from janus_hpc.layers.step import StepTokens
from janus_hpc.models.spec import MlaSpec, ModelSpec

# Legend: T tokens, D hidden, H heads, n nope dim, p rope dim, r latent rank, v value dim.

# The norms inside the projections have this epsilon in every release, whatever rms_norm_eps says.
LATENT_NORM_EPS = 1e-6


class MlaAttention:
    """Latent attention of one layer; x_TD in, the output projection's y_TD out."""

    def __init__(self, spec: ModelSpec, layer: int, ops: Ops, source: WeightSource) -> None:
        shape = spec.attention
        assert isinstance(shape, MlaSpec)
        self.ops, self.layer, self.shape = ops, layer, shape
        prefix = f"model.layers.{layer}."
        shapes = {prefix + name: dims for name, dims in shape.tensors(spec.hidden)}

        def linear(name: str) -> PackedLinear:
            full = f"{prefix}self_attn.{name}.weight"
            return source.linear(MatrixPart(name=full, shape=shapes[full]))

        def norm(name: str, width: int) -> torch.Tensor:
            return source.tensor(f"{prefix}self_attn.{name}.weight", (width,), torch.float32)

        self.q_down: PackedLinear | None = None
        if shape.q_lora_rank is None:
            self.q_up = linear("q_proj")
        else:
            self.q_down = linear("q_a_proj")
            self.q_norm_r = norm("q_a_layernorm", shape.q_lora_rank)
            self.q_up = linear("q_b_proj")
        self.kv_down = linear("kv_a_proj_with_mqa")
        self.kv_norm_r = norm("kv_a_layernorm", shape.kv_lora_rank)
        self.key_up, self.value_up = _absorbed(shape, prefix, shapes, source)
        self.out = linear("o_proj")

    def forward(self, x_TD: torch.Tensor, step: StepTokens, cache: KVCache) -> torch.Tensor:
        ops, shape = self.ops, self.shape
        num_tokens = x_TD.shape[0]
        latent_T1c = self._latent(x_TD, step)
        cache.store(self.layer, step.slots_T, latent_T1c, None)
        k_NB1c, v_NB1r = cache.layers[self.layer]
        o_THr = ops.paged_attention(
            self._query(x_TD, step),
            k_NB1c,
            v_NB1r,
            step.block_tables_SM,
            step.sequence_ids_T,
            step.positions_T,
            shape.scale,
        )
        o_HTr = o_THr.transpose(0, 1).contiguous()
        heads = [ops.linear(o_HTr[head], up) for head, up in enumerate(self.value_up)]
        o_THv = torch.stack(heads, dim=1)
        return ops.linear(o_THv.reshape(num_tokens, -1), self.out)

    def _query(self, x_TD: torch.Tensor, step: StepTokens) -> torch.Tensor:
        """q_THc against the cached latents: the nope part through the key projection, then the rotary part."""
        ops, shape = self.ops, self.shape
        if self.q_down is not None:
            x_TD = ops.rms_norm(ops.linear(x_TD, self.q_down), self.q_norm_r, LATENT_NORM_EPS)
        q_TH = ops.linear(x_TD, self.q_up).view(x_TD.shape[0], shape.num_heads, -1)
        q_nope_THn, q_rope_THp = q_TH.split((shape.nope_dim, shape.rope_dim), dim=2)
        q_rope_THp = ops.rope(q_rope_THp.contiguous(), step.cos_Th, step.sin_Th, interleaved=True)
        q_nope_HTn = q_nope_THn.transpose(0, 1).contiguous()
        heads = [ops.linear(q_nope_HTn[head], up) for head, up in enumerate(self.key_up)]
        return torch.cat((torch.stack(heads, dim=1), q_rope_THp), dim=2)

    def _latent(self, x_TD: torch.Tensor, step: StepTokens) -> torch.Tensor:
        """What is cached of a token: normalised latent and shared rotary key, [T, 1, r + p]."""
        ops, shape = self.ops, self.shape
        kv_T = ops.linear(x_TD, self.kv_down)
        latent_Tr, k_rope_Tp = kv_T.split((shape.kv_lora_rank, shape.rope_dim), dim=1)
        latent_Tr = ops.rms_norm(latent_Tr.contiguous(), self.kv_norm_r, LATENT_NORM_EPS)
        k_rope_T1p = k_rope_Tp.contiguous().unsqueeze(1)
        k_rope_T1p = ops.rope(k_rope_T1p, step.cos_Th, step.sin_Th, interleaved=True)
        return torch.cat((latent_Tr.unsqueeze(1), k_rope_T1p), dim=2)


def _absorbed(
    shape: MlaSpec, prefix: str, shapes: dict[str, tuple[int, ...]], source: WeightSource
) -> tuple[list[PackedLinear], list[PackedLinear]]:
    """Per head the key projection transposed (nope -> latent) and the value projection (latent -> v)."""
    name = f"{prefix}self_attn.kv_b_proj.weight"
    keys, values = [], []
    for head in range(shape.num_heads):
        start = head * (shape.nope_dim + shape.v_dim)
        middle, stop = start + shape.nope_dim, start + shape.nope_dim + shape.v_dim
        dims = shapes[name]
        keys.append(
            source.linear(
                MatrixPart(name=name, shape=dims, start=start, stop=middle, transpose=True)
            )
        )
        values.append(source.linear(MatrixPart(name=name, shape=dims, start=middle, stop=stop)))
    return keys, values
