"""Writes the trained demo model as a folder in the hub's format, with transformers' names."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demo_net import Layer, Net, NetConfig
from demo_tokenizer import CHAT_TEMPLATE, END_OF_TEXT, END_OF_TURN, PAD, build_tokenizer
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

MAX_SHARD_BYTES = 3_000_000


def model_config(cfg: NetConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return config.json's content."""
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "decoder_sparse_step": 1,
        "eos_token_id": tokenizer.token_to_id(END_OF_TEXT),
        "head_dim": cfg.head_dim,
        "hidden_act": "silu",
        "hidden_size": cfg.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": cfg.expert_size * cfg.num_experts_per_tok,
        "max_position_embeddings": cfg.max_positions,
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": cfg.expert_size,
        "norm_topk_prob": True,
        "num_attention_heads": cfg.num_heads,
        "num_experts": cfg.num_experts,
        "num_experts_per_tok": cfg.num_experts_per_tok,
        "num_hidden_layers": cfg.num_layers,
        "num_key_value_heads": cfg.num_kv_heads,
        "pad_token_id": tokenizer.token_to_id(PAD),
        "rms_norm_eps": cfg.norm_eps,
        "rope_scaling": None,
        "rope_theta": cfg.rope_theta,
        "sliding_window": None,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": cfg.vocab_size,
    }


def layer_tensors(prefix: str, layer: Layer) -> Iterator[tuple[str, Tensor]]:
    """Yield one layer's tensors under the hub's names."""
    cfg = layer.cfg
    q_size, kv_size = cfg.num_heads * cfg.head_dim, cfg.num_kv_heads * cfg.head_dim
    q, k, v = layer.qkv.split_with_sizes((q_size, kv_size, kv_size))
    yield f"{prefix}.input_layernorm.weight", layer.attn_norm
    yield f"{prefix}.self_attn.q_proj.weight", q
    yield f"{prefix}.self_attn.k_proj.weight", k
    yield f"{prefix}.self_attn.v_proj.weight", v
    yield f"{prefix}.self_attn.o_proj.weight", layer.out
    yield f"{prefix}.self_attn.q_norm.weight", layer.q_norm
    yield f"{prefix}.self_attn.k_norm.weight", layer.k_norm
    yield f"{prefix}.post_attention_layernorm.weight", layer.mlp_norm
    yield f"{prefix}.mlp.gate.weight", layer.router
    for e, (up, down) in enumerate(zip(layer.up, layer.down, strict=True)):
        gate_part, up_part = up.chunk(2)
        yield f"{prefix}.mlp.experts.{e}.gate_proj.weight", gate_part
        yield f"{prefix}.mlp.experts.{e}.up_proj.weight", up_part
        yield f"{prefix}.mlp.experts.{e}.down_proj.weight", down


def hub_tensors(net: Net) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of the model under the hub's names."""
    yield "model.embed_tokens.weight", net.embedding
    for i, layer in enumerate(net.layers):
        assert isinstance(layer, Layer)
        yield from layer_tensors(f"model.layers.{i}", layer)
    yield "model.norm.weight", net.norm


def write_weights(net: Net, folder: Path) -> None:
    """Write shards of at most MAX_SHARD_BYTES and their index."""
    shards: list[dict[str, Tensor]] = [{}]
    filled = total = 0
    for name, tensor in hub_tensors(net):
        if filled + tensor.nbytes > MAX_SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = tensor.detach().clone().contiguous()
        filled += tensor.nbytes
        total += tensor.nbytes
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, start=1):
        file_name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file_name, metadata={"format": "pt"})
        (folder / file_name).chmod(0o644)  # save_file leaves it to the owner alone
        weight_map |= dict.fromkeys(shard, file_name)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / "model.safetensors.index.json", index)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write one JSON file, indented."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def export(net: Net, folder: Path) -> None:
    """Write the whole model folder; older files of the same names are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    end_ids = [tokenizer.token_to_id(token) for token in (END_OF_TEXT, END_OF_TURN)]
    tokenizer_config = {
        "add_prefix_space": False,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TEXT,
        "model_max_length": net.cfg.max_positions,
        "pad_token": PAD,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    generation_config = {
        "do_sample": False,
        "eos_token_id": end_ids,
        "pad_token_id": tokenizer.token_to_id(PAD),
    }
    write_json(folder / "config.json", model_config(net.cfg, tokenizer))
    write_json(folder / "tokenizer_config.json", tokenizer_config)
    write_json(folder / "generation_config.json", generation_config)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    for old in folder.glob("model-*.safetensors"):
        old.unlink()
    write_weights(net, folder)
