"""Writes a model folder with random weights: for measurements without a checkpoint.

The weights are those that `janus_hpc.weights.random` gives for the names; a skew makes some experts popular.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from janus_hpc.errors import UsageError
from janus_hpc.models.config_file import ConfigFile
from janus_hpc.models.registry import spec_of
from janus_hpc.models.spec import ModelSpec, gate_name
from janus_hpc.weights import quantization
from janus_hpc.weights.checkpoint import INDEX_NAME
from janus_hpc.weights.random import RandomWeights

EMBEDDING = "model.embed_tokens.weight"
SHARD_BYTES = 500_000_000
SHARED = 1.0


def make_model(folder: Path, values: dict[str, Any], seed: int, skew: float) -> int:
    """Write config.json, shards and their index into a new folder; the number of weights.

    They are not quantised, whatever `values` say.

    skew S: the logit of an expert falls by about S * ln(r) of its rank r in a random order of its layer's
    experts, which makes the routing roughly Zipf's with exponent S. UsageError where the folder has a model.
    """
    spec = spec_of(ConfigFile(folder / "config.json", values))
    if (folder / "config.json").exists():
        raise UsageError(f"{folder} holds a model; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for number, shard in enumerate(_shards(spec, seed, skew)):
        name = f"model-{number:05d}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
        total_bytes += sum(its.nbytes for its in shard.values())
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=1) + "\n")
    written = {key: value for key, value in values.items() if key != quantization.KEY}
    (folder / "config.json").write_text(json.dumps(written, indent=1) + "\n")
    return total_bytes // _dtype(spec).itemsize


def _shards(spec: ModelSpec, seed: int, skew: float) -> Iterator[dict[str, torch.Tensor]]:
    """Tensors in portions of about SHARD_BYTES."""
    reader, shard, size = RandomWeights(seed, _dtype(spec)), dict[str, torch.Tensor](), 0
    gates = [gate_name(layer) for layer in spec.sparse_layers]
    for name, shape in spec.all_tensors().items():
        tensor = reader.read(name, shape)
        if skew and name == EMBEDDING:
            # A direction that all tokens share, beside one as large of their own, which outlasts what layers add.
            tensor = tensor * spec.hidden**0.5 + SHARED
        elif skew and name in gates:
            tensor = _falling(tensor, seed + gates.index(name), skew)
        shard[name] = tensor
        size += tensor.nbytes
        if size >= SHARD_BYTES:
            yield shard
            shard, size = {}, 0
    if shard:
        yield shard


def _falling(gate_ED: torch.Tensor, seed: int, skew: float) -> torch.Tensor:
    """The gate with logits along the shared direction that fall with the logarithm of a random rank."""
    generator = torch.Generator().manual_seed(seed)
    ranks_E1 = torch.randperm(len(gate_ED), generator=generator).unsqueeze(1) + 1
    own_ED = gate_ED.float() - gate_ED.float().mean(dim=1, keepdim=True)
    return (own_ED - skew * ranks_E1.log() / gate_ED.shape[1]).to(gate_ED.dtype)


def _dtype(spec: ModelSpec) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, spec.stored_dtype)
    return dtype
