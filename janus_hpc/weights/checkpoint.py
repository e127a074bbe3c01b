"""A model folder's safetensors files: which tensors there are, their shapes, and reading them one by one.

Knows nothing of roles or layers: who needs what is the caller's affair. Counts every byte it hands out.
"""

import json
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from janus_hpc.errors import ModelError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"


class Checkpoint:
    """Tensors of one model folder, opened lazily file by file; `bytes_read` counts what was handed out."""

    def __init__(self, model_dir: Path) -> None:
        self.model_dir = model_dir
        self.bytes_read = 0
        self.names_read: list[str] = []
        self._handles: dict[Path, Any] = {}
        self._names_in: dict[Path, frozenset[str]] = {}
        self._file_of = _locate(model_dir)

    def names(self) -> list[str]:
        """All tensor names, in the index's order."""
        return list(self._file_of)

    def file_of(self, name: str) -> Path:
        return self._file_of[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape from the file's header; reads no data."""
        return tuple(self._handle(name).get_slice(name).get_shape())

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """The tensor in the dtype it is stored in.

        Errors: ModelError with file, expected and found shape for a missing, misshapen or unreadable tensor.
        """
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

        `ignored` lists names that may be present without use. Errors: ModelError naming the first few
        missing, extra or misshapen tensors with their file, expected and found shape.
        """
        problems = [
            f"{self.model_dir}: tensor {name} is missing (expected shape {list(shape)})"
            for name, shape in expected.items()
            if name not in self._file_of
        ]
        for name in self._file_of:
            if name in expected:
                self._check_present(name, expected[name], problems)
            elif not name.endswith(ignored):
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

    def _in_file(self, name: str) -> bool:
        handle, path = self._handle(name), self._file_of[name]
        if path not in self._names_in:  # asking the handle again and again copies all names
            self._names_in[path] = frozenset(handle.keys())
        return name in self._names_in[path]

    def _handle(self, name: str) -> Any:
        path = self._file_of[name]
        if path not in self._handles:
            self._handles[path] = _open(path)
        return self._handles[path]

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
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"{index_path}: not a safetensors index: {error!r}") from error
        missing = sorted({str(path) for path in located.values() if not path.is_file()})
        if missing:
            raise ModelError(f"{index_path}: names files that do not exist: {', '.join(missing)}")
        return located
    single = model_dir / SINGLE_NAME
    if not single.is_file():
        raise ModelError(f"{model_dir}: neither {INDEX_NAME} nor {SINGLE_NAME} found")
    return dict.fromkeys(_open(single).keys(), single)
