"""The Qwen3-MoE family: grouped-query attention with q/k norms, softmax top-k, dense layers mixed in.

Only names and shapes; the layers are shared.
"""

from janus_hpc.models.config_file import ConfigFile
from janus_hpc.models.spec import GqaSpec, ModelSpec, MoeSpec, RopeSpec

ARCHITECTURE = "Qwen3MoeForCausalLM"


def spec(config: ConfigFile) -> ModelSpec:
    """Shapes from config.json. Errors: ModelError naming the key."""
    config.expect("hidden_act", "silu", ("silu",))
    config.expect("use_sliding_window", False, (False,))
    hidden = config.positive("hidden_size")
    num_heads = config.positive("num_attention_heads")
    head_dim = config.positive("head_dim", hidden // num_heads)
    num_layers = config.positive("num_hidden_layers")
    theta, yarn = config.rope()
    if "num_experts" in config.values:
        num_experts = config.positive("num_experts")
    else:
        num_experts = config.positive("num_local_experts")
    return ModelSpec(
        architecture=ARCHITECTURE,
        hidden=hidden,
        num_layers=num_layers,
        vocab=config.positive("vocab_size"),
        rms_eps=config.get("rms_norm_eps", float, 1e-6),
        max_context=config.positive("max_position_embeddings"),
        tie_embeddings=config.get("tie_word_embeddings", bool, False),
        stored_dtype=config.get("dtype", str, config.get("torch_dtype", str, "float32")),
        attention=GqaSpec(
            num_heads=num_heads,
            num_kv_heads=config.positive("num_key_value_heads", num_heads),
            head_dim=head_dim,
            qk_norm=True,
            bias=config.get("attention_bias", bool, False),
        ),
        rope=RopeSpec(theta=theta, dim=head_dim, interleaved=False, yarn=yarn),
        dense_width=config.positive("intermediate_size"),
        moe=MoeSpec(
            num_experts=num_experts,
            top_k=config.positive("num_experts_per_tok"),
            width=config.positive("moe_intermediate_size"),
            renormalize=config.get("norm_topk_prob", bool, False),
        ),
        sparse_layers=_sparse_layers(config, num_layers),
    )


def _sparse_layers(config: ConfigFile, num_layers: int) -> tuple[int, ...]:
    """Layers with experts: every `decoder_sparse_step`-th that is not listed in `mlp_only_layers`."""
    step = config.positive("decoder_sparse_step", 1)
    dense = config.values.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(isinstance(layer, int) for layer in dense):
        raise config.error("mlp_only_layers", "a list of layer indices")
    return tuple(i for i in range(num_layers) if i not in dense and (i + 1) % step == 0)
