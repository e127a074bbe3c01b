"""The DeepSeek-V2 family: latent attention, first layers dense, shared experts, group-limited top-k.

Only names and shapes; the layers are shared. What later DeepSeek families have in common with it is `latent_spec`.
"""

from math import log

from janus_hpc.models.config_file import ConfigFile
from janus_hpc.models.spec import MlaSpec, ModelSpec, MoeSpec, RopeSpec, YarnSpec

ARCHITECTURE = "DeepseekV2ForCausalLM"


def spec(config: ConfigFile) -> ModelSpec:
    """Shapes from config.json. Errors: ModelError naming the key."""
    config.expect("scoring_func", "softmax", ("softmax",))
    return latent_spec(config, ARCHITECTURE, _moe(config))


def latent_spec(config: ConfigFile, architecture: str, moe: MoeSpec) -> ModelSpec:
    """All but the routing of a DeepSeek model. Errors: ModelError naming the key."""
    config.expect("hidden_act", "silu", ("silu",))
    config.expect("attention_bias", False, (False,))
    config.expect("mlp_bias", False, (False,))
    num_layers = config.positive("num_hidden_layers")
    rope_dim = config.positive("qk_rope_head_dim")
    theta, yarn = config.rope()
    first_dense = config.get("first_k_dense_replace", int, 0)
    # The reference implementation knows no other frequency.
    config.expect("moe_layer_freq", 1, (1,))
    return ModelSpec(
        architecture=architecture,
        hidden=config.positive("hidden_size"),
        num_layers=num_layers,
        vocab=config.positive("vocab_size"),
        rms_eps=config.get("rms_norm_eps", float, 1e-6),
        max_context=config.positive("max_position_embeddings"),
        tie_embeddings=config.get("tie_word_embeddings", bool, False),
        stored_dtype=config.get("dtype", str, config.get("torch_dtype", str, "float32")),
        attention=_attention(config, rope_dim, yarn),
        rope=RopeSpec(theta=theta, dim=rope_dim, interleaved=True, yarn=yarn),
        dense_width=config.positive("intermediate_size"),
        moe=moe,
        sparse_layers=tuple(i for i in range(num_layers) if i >= first_dense),
    )


def _attention(config: ConfigFile, rope_dim: int, yarn: YarnSpec | None) -> MlaSpec:
    nope_dim = config.positive("qk_nope_head_dim")
    scale = float((nope_dim + rope_dim) ** -0.5)
    if yarn is not None and yarn.mscale_all_dim and yarn.factor > 1:
        mscale = 0.1 * yarn.mscale_all_dim * log(yarn.factor) + 1.0
        scale *= mscale * mscale
    q_lora_rank = config.get("q_lora_rank", int, None)
    return MlaSpec(
        num_heads=config.positive("num_attention_heads"),
        q_lora_rank=q_lora_rank,
        kv_lora_rank=config.positive("kv_lora_rank"),
        nope_dim=nope_dim,
        rope_dim=rope_dim,
        v_dim=config.positive("v_head_dim"),
        scale=scale,
    )


def _moe(config: ConfigFile) -> MoeSpec:
    width = config.positive("moe_intermediate_size")
    method = config.get("topk_method", str, "greedy")
    config.expect("topk_method", "greedy", ("greedy", "group_limited_greedy"))
    limited = method == "group_limited_greedy"
    num_experts = config.positive("n_routed_experts")
    num_groups = config.positive("n_group") if limited else 0
    if limited and num_experts % num_groups:
        raise config.error("n_group", f"a divisor of n_routed_experts = {num_experts}")
    return MoeSpec(
        num_experts=num_experts,
        top_k=config.positive("num_experts_per_tok"),
        width=width,
        # The reference implementation ignores norm_topk_prob for this family; so do we.
        renormalize=False,
        scale=config.get("routed_scaling_factor", float, 1.0),
        num_groups=num_groups,
        topk_groups=config.positive("topk_group") if limited else 0,
        shared_width=width * (config.get("n_shared_experts", int, 0) or 0),
    )
