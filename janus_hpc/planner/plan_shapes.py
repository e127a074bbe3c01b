"""Models one can plan for by name, without a folder: published shapes, and the two that Janus is evaluated on.

Shapes only, in bfloat16. Those it shares with `model make` are in `models.shapes`.
"""

from pathlib import Path
from typing import Any

from janus_hpc.errors import UsageError
from janus_hpc.models.config_file import ConfigFile
from janus_hpc.models.registry import spec_of
from janus_hpc.models.shapes import shapes
from janus_hpc.models.spec import ModelSpec
from janus_hpc.planner.profile_data import ModelShape, shape_of

DTYPE, ITEM_BYTES = "bfloat16", 2

# config.json of deepseek-ai/DeepSeek-V2.
_DEEPSEEK_V2: dict[str, Any] = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "hidden_size": 5120,
    "num_hidden_layers": 60,
    "first_k_dense_replace": 1,
    "intermediate_size": 12288,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "n_routed_experts": 160,
    "num_experts_per_tok": 6,
    "moe_intermediate_size": 1536,
    "n_shared_experts": 2,
    "topk_method": "group_limited_greedy",
    "n_group": 8,
    "topk_group": 3,
    "vocab_size": 102400,
    "max_position_embeddings": 163840,
    "torch_dtype": DTYPE,
}


def plan_configs() -> dict[str, dict[str, Any]]:
    """Name -> config.json. The scaled models are DeepSeek-V2 with other experts (Janus, evaluation)."""
    return shapes() | {
        "deepseek-v2": _DEEPSEEK_V2,
        "scaled-ds-1": _DEEPSEEK_V2
        | {"n_routed_experts": 160, "num_experts_per_tok": 8, "moe_intermediate_size": 1024},
        "scaled-ds-2": _DEEPSEEK_V2
        | {"n_routed_experts": 200, "num_experts_per_tok": 8, "moe_intermediate_size": 1536},
    }


def plan_spec(name: str) -> ModelSpec:
    """Errors: UsageError listing the known names."""
    known = plan_configs()
    if name not in known:
        raise UsageError(f"unknown shape {name!r}; known are {', '.join(sorted(known))}")
    return spec_of(ConfigFile(Path(name), known[name]))


def plan_shape(name: str) -> ModelShape:
    """Weights and KV cache in bfloat16. Errors: UsageError listing the known names."""
    return shape_of(plan_spec(name), DTYPE, ITEM_BYTES, name)
