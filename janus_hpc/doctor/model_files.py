"""Files of a model folder by themselves: pointers instead of files, broken headers, missing bytes.

Reads headers, no tensor data. Knows no model family.
"""

import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

_LFS = b"version https://git-lfs"
# The format's own limit.
_MAX_HEADER = 100_000_000
_ITEM_BITS = {
    "F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16,
    "U16": 16, "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "C64": 64, "F4": 4,
}  # fmt: skip


class BrokenFile(Exception):
    """What is wrong with a file: the message names file, what was expected and what was found."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """Of one safetensors file: tensor name -> (dtype code, shape), and the bytes of all of them."""

    tensors: dict[str, tuple[str, tuple[int, ...]]]
    num_bytes: int


def check_is_real(path: Path) -> None:
    """BrokenFile for a file that is absent, empty or a Git LFS pointer."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS))
    except FileNotFoundError as error:
        raise BrokenFile(f"{path} is missing") from error
    except OSError as error:
        raise BrokenFile(f"{path} cannot be read: {error.strerror}") from error
    if not start:
        raise BrokenFile(f"{path} is empty")
    if start == _LFS:
        raise BrokenFile(f"{path} is a Git LFS pointer, not the file itself")


def read_header(path: Path) -> Header:
    """The header of a safetensors file, compared with the file's size. BrokenFile."""
    check_is_real(path)
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        length_bytes = file.read(8)
        if len(length_bytes) < 8:
            raise BrokenFile(f"{path}: {file_bytes} bytes are less than a safetensors header")
        (length,) = struct.unpack("<Q", length_bytes)
        if length > min(_MAX_HEADER, file_bytes - 8):
            raise BrokenFile(
                f"{path}: the header is to have {length} bytes, the file has {file_bytes}: "
                "truncated, or no safetensors file"
            )
        text = file.read(length)
    tensors = _tensors(path, text)
    return Header(
        tensors={name: (its["dtype"], tuple(its["shape"])) for name, its in tensors.items()},
        num_bytes=_check_ranges(path, tensors, file_bytes - 8 - length),
    )


def _tensors(path: Path, text: bytes) -> dict[str, dict[str, Any]]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise BrokenFile(f"{path}: the header is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise BrokenFile(f"{path}: the header is no JSON object")
    found.pop("__metadata__", None)
    for name, its in found.items():
        if not _is_entry(its):
            raise BrokenFile(
                f"{path}: header entry {name!r} lacks dtype, shape or data_offsets: {its!r}"
            )
    return found


def _is_entry(its: object) -> bool:
    if not isinstance(its, dict) or not isinstance(its.get("dtype"), str):
        return False
    shape, offsets = its.get("shape"), its.get("data_offsets")
    lists = [shape, offsets]
    if not all(isinstance(x, list) and all(type(n) is int and n >= 0 for n in x) for x in lists):
        return False
    return isinstance(offsets, list) and len(offsets) == 2


def _check_ranges(path: Path, tensors: dict[str, dict[str, Any]], data_bytes: int) -> int:
    """The ranges follow each other without gaps, fit their shapes, and end where the file ends."""
    end = 0
    for name, its in sorted(tensors.items(), key=lambda item: tuple(item[1]["data_offsets"])):
        first, last = its["data_offsets"]
        bits = _ITEM_BITS.get(its["dtype"])
        if bits is not None and (last - first) * 8 != prod(its["shape"]) * bits:
            raise BrokenFile(
                f"{path}: tensor {name} of shape {its['shape']} and dtype {its['dtype']} is to take "
                f"{last - first} bytes"
            )
        if first != end:
            raise BrokenFile(
                f"{path}: tensor {name} starts at byte {first} of the data, expected {end}"
            )
        end = last
    if end > data_bytes:
        raise BrokenFile(f"{path} is truncated: {end - data_bytes} bytes of {end} are missing")
    if end < data_bytes:
        raise BrokenFile(f"{path} has {data_bytes - end} bytes after its last tensor")
    return end


def weight_files(folder: Path, index_name: str, single_name: str) -> dict[str, list[str]]:
    """File -> the tensors that the index says are in it; of a folder without an index [] for its one file.

    BrokenFile naming all files that the index names and that are absent.
    """
    index = folder / index_name
    if not index.exists():
        if not (folder / single_name).exists():
            raise BrokenFile(f"{folder}: neither {index_name} nor {single_name} found")
        return {single_name: []}
    check_is_real(index)
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        listed = [(str(name), str(file)) for name, file in weight_map.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenFile(f"{index}: not a safetensors index: {error!r}") from error
    files: dict[str, list[str]] = {}
    for name, file in listed:
        files.setdefault(file, []).append(name)
    missing = sorted(file for file in files if not (folder / file).exists())
    if missing:
        raise BrokenFile(
            f"{index} names {len(missing)} files that are missing: {', '.join(missing[:6])}"
        )
    return files
