"""Named model shapes for benchmarks with random weights, and to plan for: a config.json each."""

from typing import Any

from janus_hpc.errors import UsageError

_QWEN = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "hidden_act": "silu",
    "max_position_embeddings": 4096,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "torch_dtype": "float32",
}

_QWEN_LARGE = {
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000.0,
    "torch_dtype": "bfloat16",
}


# config.json of deepseek-ai/DeepSeek-V3 without its quantization_config: random weights are not quantised.
_DEEPSEEK_V3 = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "attention_bias": False,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000.0,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "v_head_dim": 128,
    "vocab_size": 129280,
}


def shapes() -> dict[str, dict[str, Any]]:
    """Name -> config.json. `moe-211m` is the shape docs/performance.md reports on; `moe-47m` has
    experts so narrow that attention takes about as long as they do; the qwen3 and deepseek shapes are
    those of the published models, `deepseek-v3-2m` is a small likeness of the last.
    """
    hidden_512 = {
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "vocab_size": 4096,
    }
    return {
        "moe-211m": _QWEN | hidden_512 | {"moe_intermediate_size": 256},
        "moe-47m": _QWEN | hidden_512 | {"moe_intermediate_size": 48},
        "moe-3m": _QWEN
        | {
            "hidden_size": 96,
            "intermediate_size": 192,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 24,
            "num_experts": 32,
            "num_experts_per_tok": 4,
            "moe_intermediate_size": 64,
            "vocab_size": 512,
        },
        "deepseek-v3": _DEEPSEEK_V3,
        "deepseek-v3-2m": _DEEPSEEK_V3
        | {
            "first_k_dense_replace": 1,
            "hidden_size": 96,
            "intermediate_size": 192,
            "kv_lora_rank": 32,
            "max_position_embeddings": 4096,
            "moe_intermediate_size": 64,
            "n_routed_experts": 32,
            "num_attention_heads": 4,
            "num_experts_per_tok": 4,
            "num_hidden_layers": 4,
            "num_key_value_heads": 4,
            "q_lora_rank": 48,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "rope_scaling": None,
            "torch_dtype": "float32",
            "v_head_dim": 16,
            "vocab_size": 512,
        },
        "qwen3-30b-a3b": _QWEN
        | _QWEN_LARGE
        | {
            "hidden_size": 2048,
            "intermediate_size": 6144,
            "num_hidden_layers": 48,
            "num_attention_heads": 32,
            "moe_intermediate_size": 768,
        },
        "qwen3-235b-a22b": _QWEN
        | _QWEN_LARGE
        | {
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 94,
            "num_attention_heads": 64,
            "moe_intermediate_size": 1536,
        },
    }


def shape_config(name: str) -> dict[str, Any]:
    """Errors: UsageError listing the known names."""
    known = shapes()
    if name not in known:
        raise UsageError(f"unknown shape {name!r}; known are {', '.join(sorted(known))}")
    return known[name]
