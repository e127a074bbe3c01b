"""The peer of the end-to-end benchmark: transformers' `generate` on the same shape, in the same process."""

import time
from typing import Any

import torch

EXPERT_KINDS = ("grouped_mm", "eager")


class TransformersPeer:
    """A Qwen3-MoE or DeepSeek-V2 model with random weights; importing transformers takes seconds."""

    def __init__(self, config_values: dict[str, Any], dtype: str, num_threads: int) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM

        self.num_threads = num_threads
        values = {k: v for k, v in config_values.items() if k != "model_type"}
        config = AutoConfig.for_model(config_values["model_type"], **values)
        torch.manual_seed(0)
        if dtype == "auto":
            dtype = config_values.get("dtype") or config_values.get("torch_dtype") or "float32"
        self.model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()

    def seconds(self, prompts: list[list[int]], num_new_tokens: int, expert_kind: str) -> float:
        """Wall time of one greedy `generate` over the whole batch."""
        torch.set_num_threads(self.num_threads)
        self.model.set_experts_implementation(expert_kind)
        ids = torch.tensor(prompts)
        started_s = time.perf_counter()
        with torch.inference_mode():
            self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=num_new_tokens,
                max_new_tokens=num_new_tokens,
                pad_token_id=0,
            )
        return time.perf_counter() - started_s
