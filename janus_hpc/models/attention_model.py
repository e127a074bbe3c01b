"""All of a model but gates and routed experts: embedding, attention, norms, dense and shared MLPs, LM head.

Where a layer has routed experts it hands its tokens out and goes on when it is given the answer; it does not
know whether they are computed here or on another rank, nor what is done in the meantime.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass

import torch

from janus_hpc.kernels.ops import Ops
from janus_hpc.kvcache import KVCache
from janus_hpc.layers.gqa import GqaAttention
from janus_hpc.layers.mla import MlaAttention
from janus_hpc.layers.mlp import GatedMlp
from janus_hpc.layers.rope import rope_tables
from janus_hpc.layers.source import MatrixPart, WeightSource
from janus_hpc.layers.step import StepTokens
from janus_hpc.models.spec import GqaSpec, ModelSpec

# Legend: T tokens, D hidden, V vocabulary, S tokens whose logits are wanted, h rotated half.


@dataclass(frozen=True)
class Away:
    """A MoE layer's tokens, x_TD in the model's dtype, and the work to do while they are away: the shared
    expert's y_TD float32, None where the model has none."""

    layer: int
    x_TD: torch.Tensor
    meanwhile: Callable[[], torch.Tensor | None]


# Yields at each MoE layer, is sent its y_TD (float32, the shared expert's added), returns h_TD.
Forward = Generator[Away, torch.Tensor, torch.Tensor]


class Block:
    """One decoder layer without its routed experts."""

    def __init__(self, spec: ModelSpec, layer: int, ops: Ops, source: WeightSource) -> None:
        prefix = f"model.layers.{layer}."
        norm = (spec.hidden,)
        self.attention_norm_D = source.tensor(
            f"{prefix}input_layernorm.weight", norm, torch.float32
        )
        kind = GqaAttention if isinstance(spec.attention, GqaSpec) else MlaAttention
        self.attention: GqaAttention | MlaAttention = kind(spec, layer, ops, source)
        self.mlp_norm_D = source.tensor(
            f"{prefix}post_attention_layernorm.weight", norm, torch.float32
        )
        self.sparse = layer in spec.sparse_layers
        self.mlp: GatedMlp | None = None
        if not self.sparse:
            self.mlp = GatedMlp(f"{prefix}mlp.", spec.hidden, spec.dense_width, ops, source)
        elif spec.moe.shared_width:
            inner = f"{prefix}mlp.shared_experts."
            self.mlp = GatedMlp(inner, spec.hidden, spec.moe.shared_width, ops, source)


class AttentionModel:
    """The attention side of a model, on one device."""

    def __init__(self, spec: ModelSpec, ops: Ops, source: WeightSource, dtype: torch.dtype) -> None:
        self.spec = spec
        self.ops = ops
        self.dtype = dtype
        shape = (spec.vocab, spec.hidden)
        self.embed_VD: torch.Tensor | None = None
        head = "lm_head.weight"
        if spec.tie_embeddings:
            head = "model.embed_tokens.weight"
        else:
            self.embed_VD = source.tensor("model.embed_tokens.weight", shape, dtype)
        self.blocks = [Block(spec, layer, ops, source) for layer in range(spec.num_layers)]
        self.norm_D = source.tensor("model.norm.weight", (spec.hidden,), torch.float32)
        self.head = source.linear(MatrixPart(name=head, shape=shape))

    def prepare(self, device: torch.device, max_context: int) -> None:
        """Compute the rotary tables for positions below `max_context`."""
        cos_Ph, sin_Ph = rope_tables(self.spec.rope, max_context)
        self.cos_Ph, self.sin_Ph = cos_Ph.to(device), sin_Ph.to(device)

    def forward(self, step: StepTokens, cache: KVCache) -> Forward:
        """Hidden states h_TD after the last layer, float32. Zero tokens are a normal case.

        Several microbatches of a step may be under way, each the next layer in their order.
        """
        ops, eps = self.ops, self.spec.rms_eps
        h_TD = self._embed(step.token_ids_T)
        for layer, block in enumerate(self.blocks):
            if step.token_ids_T.numel():
                x_TD = ops.rms_norm(h_TD, block.attention_norm_D, eps)
                h_TD = h_TD + block.attention.forward(x_TD, step, cache)
            x_TD = ops.rms_norm(h_TD, block.mlp_norm_D, eps)
            if block.sparse:
                h_TD = h_TD + (yield Away(layer, x_TD.to(self.dtype), _meanwhile(block.mlp, x_TD)))
            elif block.mlp is not None:
                h_TD = h_TD + block.mlp.forward(x_TD)
        return h_TD

    def logits(self, h_TD: torch.Tensor, rows_S: torch.Tensor) -> torch.Tensor:
        """logits_SV, float32, of the chosen rows of h_TD."""
        x_SD = self.ops.rms_norm(h_TD[rows_S].contiguous(), self.norm_D, self.spec.rms_eps)
        return self.ops.linear(x_SD, self.head)

    def _embed(self, token_ids_T: torch.Tensor) -> torch.Tensor:
        if self.embed_VD is None:
            return self.ops.unpack_rows(self.head, token_ids_T).float()
        return self.embed_VD[token_ids_T].float()


def _meanwhile(shared: GatedMlp | None, x_TD: torch.Tensor) -> Callable[[], torch.Tensor | None]:
    return lambda: shared.forward(x_TD) if shared is not None else None
