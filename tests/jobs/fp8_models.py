"""FP8 checkpoints as DeepSeek-V3 is released, made from plain ones, and the plain ones they stand for."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

INDEX = "model.safetensors.index.json"
# What the release keeps in the model's own dtype.
UNTOUCHED = ("embed_tokens", "lm_head", "norm", "gate.weight", "e_score_correction_bias")
MOST = 448.0


def load_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a folder's safetensors files, in the dtype it is stored in."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def blocks_of(weight_NK: Tensor, rows: int, columns: int) -> Iterator[tuple[int, int, Tensor]]:
    """Block row, block column and the block itself, a view."""
    for n, start in enumerate(range(0, weight_NK.shape[0], rows)):
        for k, first in enumerate(range(0, weight_NK.shape[1], columns)):
            yield n, k, weight_NK[start : start + rows, first : first + columns]


def quantised(weight_NK: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """float8_e4m3fn, and the factors, float32, that make the largest of every block the largest there is."""
    scaled_NK = weight_NK.float().clone()
    shape = (-(-weight_NK.shape[0] // rows), -(-weight_NK.shape[1] // columns))
    scales_nk = torch.zeros(shape)
    for n, k, block in blocks_of(scaled_NK, rows, columns):
        scales_nk[n, k] = block.abs().max() / MOST
        block.div_(scales_nk[n, k])
    return scaled_NK.to(torch.float8_e4m3fn), scales_nk


def plain(stored_NK: Tensor, scales_nk: Tensor, rows: int, columns: int) -> Tensor:
    """float32, block by block."""
    out_NK = stored_NK.float()
    for n, k, block in blocks_of(out_NK, rows, columns):
        block.mul_(scales_nk[n, k])
    return out_NK


def save_fp8(source: Path, folder: Path, rows: int = 128, columns: int = 128) -> None:
    """An FP8 checkpoint of a plain one, factors in a file apart, with tensors of a layer behind the last."""
    weights: dict[str, Tensor] = {}
    scales: dict[str, Tensor] = {}
    for name, tensor in load_tensors(source).items():
        if any(part in name for part in UNTOUCHED):
            kept = torch.float32 if "bias" in name else torch.bfloat16
            weights[name] = tensor.to(kept)
        else:
            weights[name], scales[f"{name}_scale_inv"] = quantised(tensor, rows, columns)
    values = json.loads((source / "config.json").read_text())
    values["quantization_config"] = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [rows, columns],
    }
    extra = f"model.layers.{values['num_hidden_layers']}"
    eh_proj = torch.randn(40, 60)
    weights[f"{extra}.eh_proj.weight"], scales[f"{extra}.eh_proj.weight_scale_inv"] = quantised(
        eh_proj, rows, columns
    )
    weights[f"{extra}.enorm.weight"] = torch.ones(40)
    _save(folder, values | {"num_nextn_predict_layers": 1}, {"a": weights, "b": scales})


def save_plain(source: Path, folder: Path, dtype: torch.dtype) -> None:
    """The weights that an FP8 checkpoint stands for, in `dtype`; those that were not in FP8 as they are."""
    values = json.loads((source / "config.json").read_text())
    rows, columns = values.pop("quantization_config")["weight_block_size"]
    tensors, weights = load_tensors(source), {}
    for name, tensor in tensors.items():
        if name.endswith("_scale_inv") or f"layers.{values['num_hidden_layers']}." in name:
            continue
        if tensor.dtype == torch.float8_e4m3fn:
            weights[name] = plain(tensor, tensors[f"{name}_scale_inv"], rows, columns).to(dtype)
        else:
            weights[name] = tensor if "bias" in name else tensor.to(dtype)
    _save(folder, values | {"dtype": str(dtype).removeprefix("torch.")}, {"a": weights})


def _save(folder: Path, values: dict[str, object], files: dict[str, dict[str, Tensor]]) -> None:
    folder.mkdir()
    weight_map: dict[str, str] = {}
    for stem, tensors in files.items():
        save_file(tensors, folder / f"{stem}.safetensors", metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, f"{stem}.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(values))
