"""Named model shapes for benchmarks with random weights: a config.json each."""

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


def shapes() -> dict[str, dict[str, Any]]:
    """Name -> config.json. `moe-211m` is the shape docs/performance.md reports on; `moe-47m` has
    experts so narrow that attention takes about as long as they do; the qwen3 shapes are those of the
    published models.
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
