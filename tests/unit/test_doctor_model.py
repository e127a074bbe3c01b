"""Model folders that are really broken, each in one way, found by the check that reads them."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from janus_hpc.demo import demo_model_dir
from janus_hpc.doctor.finding import Finding, Level
from janus_hpc.doctor.model import examine
from janus_hpc.doctor.model_files import BrokenFile, read_header

SHARD = "model-00002-of-00003.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the demo model."""
    for path in demo_model_dir().iterdir():
        if path.suffix in (".json", ".safetensors"):
            shutil.copy(path, tmp_path / path.name)
    return tmp_path


def found(folder: Path, level: Level = Level.ERROR) -> Finding:
    findings, _ = examine(folder)
    assert [its.level for its in findings] == [level], findings
    assert findings[0].why and findings[0].fix
    return findings[0]


def test_a_whole_folder_has_no_finding(folder: Path) -> None:
    findings, summary = examine(folder)
    assert findings == []
    assert "Qwen3MoeForCausalLM, 422 tensors in 3 files, 7.36 MB" in summary


def test_the_header_is_what_the_library_reads(folder: Path) -> None:
    header = read_header(folder / SHARD)
    with safe_open(folder / SHARD, framework="pt") as file:
        names = file.keys()
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
    assert {name: shape for name, (_, shape) in header.tensors.items()} == shapes


def _truncate(folder: Path) -> None:
    with (folder / SHARD).open("r+b") as file:
        file.truncate((folder / SHARD).stat().st_size - 1000)


def _grow(folder: Path) -> None:
    with (folder / SHARD).open("ab") as file:
        file.write(b"x" * 7)


def _cut_in_header(folder: Path) -> None:
    with (folder / SHARD).open("r+b") as file:
        file.truncate(100)


def _break_header(folder: Path) -> None:
    with (folder / SHARD).open("r+b") as file:
        file.seek(8)
        file.write(b"#")


def _empty(folder: Path) -> None:
    (folder / SHARD).write_bytes(b"")


def _pointer(folder: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3004040\n"
    (folder / SHARD).write_text(text)


def _html(folder: Path) -> None:
    (folder / SHARD).write_text("<!DOCTYPE html><title>Sign in</title>" * 20)


def _lose_shard(folder: Path) -> None:
    (folder / SHARD).unlink()


def _break_index(folder: Path) -> None:
    (folder / INDEX).write_text("{")


def _lose_index(folder: Path) -> None:
    (folder / INDEX).unlink()


def _swap_shards(folder: Path) -> None:
    shutil.copy(folder / "model-00003-of-00003.safetensors", folder / SHARD)


def _lose_tensor(folder: Path) -> None:
    values = json.loads((folder / INDEX).read_text())
    del values["weight_map"]["model.norm.weight"]
    (folder / INDEX).write_text(json.dumps(values))


def _reshape(folder: Path) -> None:
    tensors = load_file(folder / SHARD)
    name = next(its for its in sorted(tensors) if its.endswith("q_proj.weight"))
    tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, folder / SHARD)


def _integers(folder: Path) -> None:
    tensors = load_file(folder / SHARD)
    name = next(its for its in sorted(tensors) if its.endswith("q_proj.weight"))
    tensors[name] = tensors[name].to(torch.int8)
    save_file(tensors, folder / SHARD)


def _gap(folder: Path) -> None:
    data = (folder / SHARD).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    name = max(header, key=lambda its: header[its].get("data_offsets", [0])[0])
    header[name]["data_offsets"] = [its + 4 for its in header[name]["data_offsets"]]
    text = json.dumps(header).encode()
    (folder / SHARD).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :] + b"0000")


SHARD_FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (_truncate, "is truncated: 1000 bytes"),
    (_grow, "has 7 bytes after its last tensor"),
    (_cut_in_header, "truncated, or no safetensors file"),
    (_break_header, "the header is no JSON"),
    (_empty, "is empty"),
    (_pointer, "is a Git LFS pointer"),
    (_html, "truncated, or no safetensors file"),
    (_gap, "of the data, expected"),
]


@pytest.mark.parametrize(("fault", "text"), SHARD_FAULTS)
def test_a_broken_shard(folder: Path, fault: Callable[[Path], None], text: str) -> None:
    fault(folder)
    with pytest.raises(SafetensorError):
        safe_open(folder / SHARD, framework="pt")
    its = found(folder)
    assert text in its.what and SHARD in its.what


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (_lose_shard, f"names 1 files that are missing: {SHARD}"),
        (_break_index, "not a safetensors index"),
        (_lose_index, "neither model.safetensors.index.json nor model.safetensors"),
        (_swap_shards, f"{SHARD} lacks tensors"),
        (_lose_tensor, "tensor model.norm.weight is missing"),
        (_reshape, "q_proj.weight has shape"),
        (_integers, "stored as I8"),
    ],
)
def test_a_folder_that_is_not_whole(folder: Path, fault: Callable[[Path], None], text: str) -> None:
    fault(folder)
    assert text in found(folder).what


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("architectures", ["LlamaForCausalLM"], "unknown architecture 'LlamaForCausalLM'"),
        ("num_experts", "many", "'num_experts'"),
        ("torch_dtype", "int4", "dtype 'int4' is not one of"),
        ("vocab_size", 100, "embeddings"),
        ("num_experts", 16, "unexpected tensor"),
    ],
)
def test_a_config_that_does_not_fit(folder: Path, key: str, value: object, text: str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    findings, _ = examine(folder)
    assert any(text in its.what and its.level == Level.ERROR for its in findings), findings


def test_small_files(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert "does not exist" in found(folder / "nowhere").what
    assert "config.json is missing" in found(tmp_path_factory.mktemp("empty")).what
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text[:-40])
    assert "not a tokenizer" in found(folder).what
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "Git LFS pointer" in found(folder).what
    (folder / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in found(folder, Level.WARNING).what
    (folder / "config.json").write_text("{")
    assert "cannot be read as JSON" in found(folder).what


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2]},
        {"dtype": 3, "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "F32", "shape": [2], "data_offsets": [True, 8]},
        {"dtype": "F32", "shape": None, "data_offsets": [0, 8]},
        [],
    ],
)
def test_header_entries_of_any_kind(tmp_path: Path, entry: object) -> None:
    text = json.dumps({"x": entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(BrokenFile, match=r"x\.safetensors"):
        read_header(path)
