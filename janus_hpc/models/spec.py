"""What a model is, as plain numbers: shapes, kinds of attention and layers, and the names of its tensors.

Pure data derived from config.json by a family; imports neither torch nor MPI, so that planners can use it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

Shape = tuple[int, ...]
# Of weights and caches that this package computes with: bytes a value.
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True)
class YarnSpec:
    """YaRN scaling of rotary frequencies (arXiv 2309.00071) with DeepSeek's two mscale factors."""

    factor: float
    original_max_context: int
    beta_fast: float
    beta_slow: float
    mscale: float
    mscale_all_dim: float
    attention_factor: float | None
    truncate: bool


@dataclass(frozen=True, kw_only=True)
class RopeSpec:
    """Rotary embedding over `dim` channels; `interleaved` pairs neighbours instead of halves."""

    theta: float
    dim: int
    interleaved: bool
    yarn: YarnSpec | None = None


@dataclass(frozen=True, kw_only=True)
class GqaSpec:
    """Grouped-query attention; `qk_norm` applies RMS norm to each head's query and key."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    qk_norm: bool
    bias: bool

    def tensors(self, hidden: int) -> Iterator[tuple[str, Shape]]:
        widths = {"q": self.num_heads, "k": self.num_kv_heads, "v": self.num_kv_heads}
        for letter, heads in widths.items():
            yield f"self_attn.{letter}_proj.weight", (heads * self.head_dim, hidden)
            if self.bias:
                yield f"self_attn.{letter}_proj.bias", (heads * self.head_dim,)
        yield "self_attn.o_proj.weight", (hidden, self.num_heads * self.head_dim)
        if self.bias:
            yield "self_attn.o_proj.bias", (hidden,)
        if self.qk_norm:
            yield "self_attn.q_norm.weight", (self.head_dim,)
            yield "self_attn.k_norm.weight", (self.head_dim,)

    def kv_width(self) -> int:
        """Cached numbers a token and layer."""
        return 2 * self.num_kv_heads * self.head_dim


@dataclass(frozen=True, kw_only=True)
class MlaSpec:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1)."""

    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    scale: float

    def tensors(self, hidden: int) -> Iterator[tuple[str, Shape]]:
        q_out = self.num_heads * (self.nope_dim + self.rope_dim)
        if self.q_lora_rank is None:
            yield "self_attn.q_proj.weight", (q_out, hidden)
        else:
            yield "self_attn.q_a_proj.weight", (self.q_lora_rank, hidden)
            yield "self_attn.q_a_layernorm.weight", (self.q_lora_rank,)
            yield "self_attn.q_b_proj.weight", (q_out, self.q_lora_rank)
        yield "self_attn.kv_a_proj_with_mqa.weight", (self.kv_lora_rank + self.rope_dim, hidden)
        yield "self_attn.kv_a_layernorm.weight", (self.kv_lora_rank,)
        kv_out = self.num_heads * (self.nope_dim + self.v_dim)
        yield "self_attn.kv_b_proj.weight", (kv_out, self.kv_lora_rank)
        yield "self_attn.o_proj.weight", (hidden, self.num_heads * self.v_dim)

    def kv_width(self) -> int:
        """Cached numbers a token and layer: the latent and the shared rotary key."""
        return self.kv_lora_rank + self.rope_dim


@dataclass(frozen=True, kw_only=True)
class MoeSpec:
    """Routed experts of a layer. `num_groups` of 0 means no group limit.

    `scoring` as in `kernels.ops.RouteRule`; `score_bias`: a gate has a bias that is added for the choice alone.
    """

    num_experts: int
    top_k: int
    width: int
    renormalize: bool
    scale: float = 1.0
    num_groups: int = 0
    topk_groups: int = 0
    shared_width: int = 0
    scoring: Literal["softmax", "sigmoid"] = "softmax"
    score_bias: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A whole model; `sparse_layers` are the indices of layers with routed experts, ascending.

    `num_extra_layers`: layers behind the last that a checkpoint may carry and that are not run (multi-token
    prediction).
    """

    architecture: str
    hidden: int
    num_layers: int
    vocab: int
    rms_eps: float
    max_context: int
    tie_embeddings: bool
    stored_dtype: str
    attention: GqaSpec | MlaSpec
    rope: RopeSpec
    dense_width: int
    moe: MoeSpec
    sparse_layers: tuple[int, ...]
    num_extra_layers: int = 0

    def attention_tensors(self) -> dict[str, Shape]:
        """Name -> shape of all that attention ranks hold: everything but gates and routed experts."""
        shapes: dict[str, Shape] = {"model.embed_tokens.weight": (self.vocab, self.hidden)}
        for layer in range(self.num_layers):
            prefix = f"model.layers.{layer}."
            shapes[prefix + "input_layernorm.weight"] = (self.hidden,)
            shapes[prefix + "post_attention_layernorm.weight"] = (self.hidden,)
            for name, shape in self.attention.tensors(self.hidden):
                shapes[prefix + name] = shape
            if layer not in self.sparse_layers:
                shapes.update(_mlp(prefix + "mlp.", self.hidden, self.dense_width))
            elif self.moe.shared_width:
                shapes.update(
                    _mlp(prefix + "mlp.shared_experts.", self.hidden, self.moe.shared_width)
                )
        shapes["model.norm.weight"] = (self.hidden,)
        if not self.tie_embeddings:
            shapes["lm_head.weight"] = (self.vocab, self.hidden)
        return shapes

    def gate_tensors(self) -> dict[str, Shape]:
        """Name -> shape of the routers, held by every expert rank (EGate), in float32."""
        num_experts = self.moe.num_experts
        shapes: dict[str, Shape] = {}
        for layer in self.sparse_layers:
            shapes[gate_name(layer)] = (num_experts, self.hidden)
            if self.moe.score_bias:
                shapes[score_bias_name(layer)] = (num_experts,)
        return shapes

    def expert_tensors(self, layer: int, expert: int) -> dict[str, Shape]:
        """Name -> shape of one routed expert's gate, up and down matrices, in that order."""
        return _mlp(f"model.layers.{layer}.mlp.experts.{expert}.", self.hidden, self.moe.width)

    def all_tensors(self) -> dict[str, Shape]:
        """Name -> shape of the whole checkpoint."""
        shapes = self.attention_tensors() | self.gate_tensors()
        for layer in self.sparse_layers:
            for expert in range(self.moe.num_experts):
                shapes.update(self.expert_tensors(layer, expert))
        return shapes

    def num_attention_params(self) -> int:
        return sum(prod(shape) for shape in self.attention_tensors().values())

    def num_expert_params(self) -> int:
        per_expert = 3 * self.hidden * self.moe.width
        return per_expert * self.moe.num_experts * len(self.sparse_layers)


def gate_name(layer: int) -> str:
    """The router's tensor of one layer."""
    return f"model.layers.{layer}.mlp.gate.weight"


def score_bias_name(layer: int) -> str:
    """What the router's scores of one layer are corrected by for the choice of experts."""
    return f"model.layers.{layer}.mlp.gate.e_score_correction_bias"


def _mlp(prefix: str, hidden: int, width: int) -> dict[str, Shape]:
    return {
        prefix + "gate_proj.weight": (width, hidden),
        prefix + "up_proj.weight": (width, hidden),
        prefix + "down_proj.weight": (hidden, width),
    }
