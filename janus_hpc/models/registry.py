"""Which model families there are, and from a folder to its spec.

The only place that lists families; adding one is a file and a line here.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from janus_hpc.errors import ModelError
from janus_hpc.models import deepseek_v2, deepseek_v3, qwen3_moe
from janus_hpc.models.config_file import ConfigFile
from janus_hpc.models.spec import GqaSpec, ModelSpec
from janus_hpc.weights.quantization import fp8_blocks

# Names some checkpoints carry without needing them: rotary tables that older savers wrote out.
IGNORED_TENSORS = ("*rotary_emb.inv_freq",)


def families() -> dict[str, Callable[[ConfigFile], ModelSpec]]:
    """Architecture name in config.json -> the family's spec function."""
    return {family.ARCHITECTURE: family.spec for family in (qwen3_moe, deepseek_v2, deepseek_v3)}


def load_spec(model_dir: Path) -> ModelSpec:
    """The spec of a model folder. Errors: ModelError naming file, key, expected and found."""
    return spec_of(ConfigFile.load(model_dir))


def ignored_tensors(spec: ModelSpec) -> tuple[str, ...]:
    """Names a checkpoint may carry without use; `*` stands for anything."""
    names = [*IGNORED_TENSORS]
    if spec.tie_embeddings:
        names.append("lm_head.weight")
    for layer in range(spec.num_layers, spec.num_layers + spec.num_extra_layers):
        names.append(f"model.layers.{layer}.*")
    return tuple(names)


def spec_of(config: ConfigFile) -> ModelSpec:
    """The spec of a configuration. Errors: ModelError naming file, key, expected and found."""
    names = config.values.get("architectures")
    if not isinstance(names, list) or not names or not all(isinstance(its, str) for its in names):
        raise config.error("architectures", f"one of {sorted(families())}")
    for name in names:
        if name in families():
            return _checked(config, families()[name](config))
    raise ModelError(
        f"{config.path}: unknown architecture {names[0][:80]!r}; known are {', '.join(sorted(families()))}"
    )


def _checked(config: ConfigFile, spec: ModelSpec) -> ModelSpec:
    if fp8_blocks(config.path, config.values) is not None:
        # Stored in FP8, computed with in what the model was trained in.
        spec = replace(spec, stored_dtype="bfloat16")
    if spec.moe.top_k > spec.moe.num_experts:
        raise config.error("num_experts_per_tok", f"at most the {spec.moe.num_experts} experts")
    if not spec.sparse_layers:
        raise ModelError(f"{config.path}: no layer has routed experts; this is no MoE model")
    if spec.rms_eps < 0:
        raise config.error("rms_norm_eps", "a number of at least 0")
    if spec.rope.dim % 2:
        raise ModelError(
            f"{config.path}: heads rotate {spec.rope.dim} channels, expected an even number"
        )
    attention = spec.attention
    if isinstance(attention, GqaSpec) and attention.num_heads % attention.num_kv_heads:
        raise config.error("num_key_value_heads", f"a divisor of {attention.num_heads} heads")
    if spec.moe.topk_groups > max(spec.moe.num_groups, 0):
        raise config.error("topk_group", f"at most n_group = {spec.moe.num_groups}")
    return spec
