"""Small random models in the hub's format, built and answered by transformers: the reference of the job tests."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    PreTrainedConfig,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

VOCAB = 300
KINDS = {
    "qwen3_moe": Qwen3MoeForCausalLM,
    "deepseek_v2": DeepseekV2ForCausalLM,
    "deepseek_v3": DeepseekV3ForCausalLM,
}


def qwen_config(**changes: Any) -> Qwen3MoeConfig:
    values: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 44,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "num_experts": 20,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 24,
        "mlp_only_layers": [1],
        "norm_topk_prob": True,
        "tie_word_embeddings": True,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "eos_token_id": None,
    }
    return Qwen3MoeConfig(**values | changes)


def _deepseek_values() -> dict[str, Any]:
    return {
        "vocab_size": VOCAB,
        "hidden_size": 45,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 5,
        "num_key_value_heads": 5,
        "n_routed_experts": 20,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 24,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
        "q_lora_rank": 20,
        "kv_lora_rank": 24,
        "qk_nope_head_dim": 12,
        "qk_rope_head_dim": 8,
        "v_head_dim": 10,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 1.7,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
        "bos_token_id": None,
        "eos_token_id": None,
    }


def deepseek_config(**changes: Any) -> DeepseekV2Config:
    values = _deepseek_values() | {"topk_method": "group_limited_greedy"}
    return DeepseekV2Config(**values | changes)


def deepseek_v3_config(**changes: Any) -> DeepseekV3Config:
    return DeepseekV3Config(**_deepseek_values() | {"num_experts_per_tok": 5} | changes)


YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 0.7,
    "mscale_all_dim": 0.7,
}


def variants() -> dict[str, PreTrainedConfig]:
    """Awkward sizes and every switch of all families."""
    return {
        "qwen": qwen_config(),
        "qwen-plain": qwen_config(
            norm_topk_prob=False,
            tie_word_embeddings=False,
            mlp_only_layers=[],
            decoder_sparse_step=2,
        ),
        "qwen-bias": qwen_config(attention_bias=True),
        "deepseek": deepseek_config(),
        "deepseek-greedy-yarn": deepseek_config(
            topk_method="greedy", q_lora_rank=None, rope_parameters=YARN
        ),
        "deepseek-v3": deepseek_v3_config(rope_parameters=YARN),
        "deepseek-v3-one-group": deepseek_v3_config(
            n_group=1, topk_group=1, norm_topk_prob=False, q_lora_rank=None, n_shared_experts=1
        ),
    }


def save_model(config: PreTrainedConfig, folder: Path) -> Any:
    """Random weights, saved in several shards; returns the model for reference answers."""
    torch.manual_seed(1)
    model: Any = KINDS[config.model_type](config).eval()
    model.set_experts_implementation("eager")  # the others refuse awkward widths
    for name, value in model.named_parameters():
        if "norm" in name:  # ones would hide a forgotten norm weight
            value.data = 1 + 0.1 * torch.randn_like(value)
        elif name.endswith("bias"):  # and zeros a forgotten bias
            value.data = 0.3 * torch.randn_like(value)
    for name, value in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            value.copy_(0.3 * torch.randn_like(value))
    model.save_pretrained(folder, max_shard_size="100KB")
    return model


def greedy(model: Any, prompt: list[int], num_new: int) -> tuple[list[int], torch.Tensor]:
    """Token ids and logits_NV of each generated position, one row alone."""
    with torch.inference_mode():
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=num_new,
            min_new_tokens=num_new,
            output_logits=True,
            return_dict_in_generate=True,
            pad_token_id=0,
        )
    return out.sequences[0, len(prompt) :].tolist(), torch.cat(out.logits)
