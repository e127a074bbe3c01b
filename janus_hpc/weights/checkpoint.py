"""A model folder's safetensors files: which tensors there are, their shapes, and reading them one by one.

Where config.json says that weights are in FP8, a weight and its factors are one tensor to the caller. Knows
nothing of roles or layers: who needs what is the caller's affair. Counts every stored byte it reads.
"""

import json
import os
from fnmatch import fnmatchcase
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from janus_hpc.errors import ModelError
from janus_hpc.weights.fp8 import SCALES_SUFFIX, STORED, dequantised
from janus_hpc.weights.quantization import Fp8Blocks, read_fp8_blocks

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
# As a file's header spells them.
PLAIN_DTYPES = ("F32", "BF16", "F16", "F64")
FP8_DTYPE = "F8_E4M3"
_MAX_SHOWN = 300


class Checkpoint:
    """Tensors of one model folder, opened lazily file by file; `bytes_read` counts as they are stored."""

    def __init__(self, model_dir: Path) -> None:
        self.model_dir = model_dir
        self.bytes_read = 0
        self.names_read: list[str] = []
        self._handles: dict[Path, Any] = {}
        self._states: dict[Path, tuple[int, int]] = {}
        self._bytes_checked = 0
        self._names_in: dict[Path, frozenset[str]] = {}
        self._file_of = _locate(model_dir)
        self._blocks = read_fp8_blocks(model_dir)

    def names(self) -> list[str]:
        """All tensor names, in the index's order."""
        return list(self._file_of)

    def file_of(self, name: str) -> Path:
        return self._file_of[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape from the file's header; reads no data."""
        return tuple(self._handle(name).get_slice(name).get_shape())

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor in the dtype it is stored in; of a weight in FP8 the numbers it stands for, in float32.

        Errors: ModelError with file, expected and found shape for a missing, misshapen or unreadable tensor.
        """
        stored = self._read(name, shape)
        if stored.dtype != STORED:
            return stored
        blocks = self._fp8_blocks(name, shape)
        scales = self._read(name + SCALES_SUFFIX, blocks.scales_shape(shape))
        return dequantised(stored, scales, blocks)

    def _fp8_blocks(self, name: str, shape: tuple[int, ...]) -> Fp8Blocks:
        if self._blocks is None or len(shape) != 2:
            raise ModelError(
                f"{self.file_of(name)}: tensor {name} is stored as {FP8_DTYPE}, expected so of matrices "
                f"alone, and with a quantization_config in {self.model_dir / 'config.json'}"
            )
        return self._blocks

    def _read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        if name not in self._file_of:
            raise ModelError(
                f"{self.model_dir}: tensor {name} is missing (expected shape {list(shape)})"
            )
        try:
            tensor: torch.Tensor = self._handle(name).get_tensor(name)
        except SafetensorError as error:
            raise ModelError(f"{self.file_of(name)}: cannot read tensor {name}: {error}") from error
        if tuple(tensor.shape) != shape:
            raise ModelError(_misshapen(self.file_of(name), name, shape, tuple(tensor.shape)))
        self.bytes_read += tensor.numel() * tensor.element_size()
        self.names_read.append(name)
        return tensor

    def check(self, expected: dict[str, tuple[int, ...]], ignored: tuple[str, ...]) -> None:
        """Compare every header with `expected` (name -> shape); reads no tensor data.

        `ignored` lists names that may be present without use, `*` in them stands for anything. Errors:
        ModelError naming the first few missing, extra or misshapen tensors with their file, expected and
        found shape, and those in a dtype that is not read.
        """
        problems = [
            f"{self.model_dir}: tensor {name} is missing (expected shape {list(shape)})"
            for name, shape in expected.items()
            if name not in self._file_of
        ]
        for name in self._file_of:
            if name in expected:
                self._check_present(name, expected[name], problems)
            elif not self._is_scales(name) and not any(fnmatchcase(name, its) for its in ignored):
                found = f"shape {list(self.shape(name))}" if self._in_file(name) else "no data"
                problems.append(f"{self.file_of(name)}: unexpected tensor {name} ({found})")
        if problems:
            more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
            raise ModelError("; ".join(problems[:5]) + more)

    def _check_present(self, name: str, shape: tuple[int, ...], problems: list[str]) -> None:
        if not self._in_file(name):
            problems.append(f"{self.file_of(name)}: tensor {name}, named by the index, is missing")
        elif self.shape(name) != shape:
            problems.append(_misshapen(self.file_of(name), name, shape, self.shape(name)))
        else:
            self._check_dtype(name, shape, problems)

    def _check_dtype(self, name: str, shape: tuple[int, ...], problems: list[str]) -> None:
        dtype, path = self._stored_dtype(name), self._file_of[name]
        if dtype == FP8_DTYPE:
            scales = name + SCALES_SUFFIX
            wanted = self._fp8_blocks(name, shape).scales_shape(shape)
            if scales not in self._file_of:
                problems.append(
                    f"{path}: tensor {scales}, the factors of {name}, is missing (expected shape {list(wanted)})"
                )
            elif self._in_file(scales) and self.shape(scales) != wanted:
                problems.append(
                    _misshapen(self.file_of(scales), scales, wanted, self.shape(scales))
                )
        elif dtype not in PLAIN_DTYPES:
            known = ", ".join((*PLAIN_DTYPES, FP8_DTYPE))
            problems.append(f"{path}: tensor {name} is stored as {dtype}, expected one of {known}")

    def _is_scales(self, name: str) -> bool:
        """Whether these are the factors of a weight that is stored in FP8."""
        weight = name.removesuffix(SCALES_SUFFIX)
        is_known = weight != name and weight in self._file_of and self._in_file(weight)
        return is_known and self._stored_dtype(weight) == FP8_DTYPE

    def _stored_dtype(self, name: str) -> str:
        """As the file's header spells it."""
        return str(self._handle(name).get_slice(name).get_dtype())

    def _in_file(self, name: str) -> bool:
        handle, path = self._handle(name), self._file_of[name]
        if path not in self._names_in:  # asking the handle again and again copies all names
            self._names_in[path] = frozenset(handle.keys())
        return name in self._names_in[path]

    def _handle(self, name: str) -> Any:
        path = self._file_of[name]
        if path not in self._handles:
            # Before it is opened: a change from here on is seen.
            state = _state(path)
            self._handles[path] = _open(path)
            self._states[path] = state
        return self._handles[path]

    def check_unchanged(self) -> None:
        """ModelError where something was read since the last call, and a file was written or cut since it was
        opened: of a mapped file's lost end the system may give out zeros.
        """
        if self.bytes_read == self._bytes_checked:
            return
        self._bytes_checked = self.bytes_read
        for path, state in self._states.items():
            found = _state(path)
            if found != state:
                raise ModelError(
                    f"{path}: changed while it was read, from {state[0]} to {found[0]} bytes; "
                    "restore it, and the same command resumes"
                )

    def close(self) -> None:
        """Drop the mapped files."""
        self._handles.clear()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _misshapen(path: Path, name: str, expected: tuple[int, ...], found: tuple[int, ...]) -> str:
    return f"{path}: tensor {name} has shape {list(found)}, expected {list(expected)}"


def _state(path: Path) -> tuple[int, int]:
    """Size in bytes and time of the last change in ns; zeros for a file that is not there."""
    try:
        stats = path.stat()
    except OSError:
        return 0, 0
    return stats.st_size, stats.st_mtime_ns


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path}: not a readable safetensors file: {error}") from error


def _locate(model_dir: Path) -> dict[str, Path]:
    """Name -> file, from the index file or from the one file there is."""
    index_path = model_dir / INDEX_NAME
    if index_path.is_file():
        try:
            weight_map = json.loads(index_path.read_text(encoding="utf-8"))["weight_map"]
            located = {str(name): model_dir / str(file) for name, file in weight_map.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelError(f"{index_path}: not a safetensors index: {error!r}") from error
        # `os.path` also takes names that no file can have.
        missing = sorted({str(path) for path in located.values() if not os.path.isfile(path)})
        if missing:
            shown = ", ".join(its[:_MAX_SHOWN] for its in missing[:5])
            more = f" (and {len(missing) - 5} more)" if len(missing) > 5 else ""
            raise ModelError(f"{index_path}: names files that do not exist: {shown}{more}")
        return located
    single = model_dir / SINGLE_NAME
    if not single.is_file():
        raise ModelError(f"{model_dir}: neither {INDEX_NAME} nor {SINGLE_NAME} found")
    return dict.fromkeys(_open(single).keys(), single)
