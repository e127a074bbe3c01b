"""Where a layer's constructor gets its weights from, in a fixed order of requests.

The same construction runs twice: a `SizingSource` adds up the bytes, then a `SlabSource` lays the weights
into one buffer, which several ranks of a node may share. Knows nothing of which layers there are.
"""

from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch

from janus_hpc.kernels.ops import Ops, PackedLinear

ALIGNMENT_BYTES = 64


@dataclass(frozen=True, kw_only=True)
class MatrixPart:
    """Rows `start:stop` of a stored tensor of `shape`, all when `stop` is None.

    `transpose` turns the selected rows [N, K] into [K, N], for products against the input side.
    """

    name: str
    shape: tuple[int, ...]
    start: int = 0
    stop: int | None = None
    transpose: bool = False

    def packed_shape(self) -> tuple[int, int]:
        rows = (self.shape[0] if self.stop is None else self.stop) - self.start
        columns = self.shape[1]
        return (columns, rows) if self.transpose else (rows, columns)


class Reader(Protocol):
    """Reads one stored tensor, checking its shape."""

    def read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor: ...

    def check_unchanged(self) -> None:
        """ModelError where what was read so far need not be what is stored."""


class WeightSource(Protocol):
    """Hands out weights; every implementation must be asked in the same order."""

    def linear(self, *parts: MatrixPart) -> PackedLinear:
        """Parts stacked along the output dimension, packed for `Ops.linear`."""
        ...

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor: ...


class SizingSource:
    """Reads nothing: adds up the bytes a `SlabSource` will need in `num_bytes`."""

    def __init__(self, ops: Ops, dtype: torch.dtype) -> None:
        self.ops = ops
        self.dtype = dtype
        self.num_bytes = 0

    def linear(self, *parts: MatrixPart) -> PackedLinear:
        num_out, num_in = _stacked_shape(parts)
        numel = self.ops.packed_numel(num_out, num_in)
        self._add(numel * self.dtype.itemsize)
        return PackedLinear(torch.empty(0, dtype=self.dtype), num_out, num_in)

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        self._add(prod(shape) * dtype.itemsize)
        return torch.empty(0, dtype=dtype)

    def _add(self, num_bytes: int) -> None:
        self.num_bytes += _aligned(num_bytes)


class SlabSource:
    """Lays weights one after another into `slab_bytes` (uint8). With `reader` None it only maps what
    another rank has laid there in the same order."""

    def __init__(
        self, ops: Ops, dtype: torch.dtype, slab_bytes: torch.Tensor, reader: Reader | None
    ) -> None:
        self.ops = ops
        self.dtype = dtype
        self.slab_bytes = slab_bytes
        self.reader = reader
        self._offset = 0
        self._last: tuple[str, torch.Tensor] | None = None

    def linear(self, *parts: MatrixPart) -> PackedLinear:
        num_out, num_in = _stacked_shape(parts)
        flat = self._take(self.ops.packed_numel(num_out, num_in), self.dtype)
        if self.reader is None:
            return PackedLinear(flat, num_out, num_in)
        stacked = torch.cat([self._part(part) for part in parts]).to(flat.device)
        return self.ops.pack_linear(stacked, out=flat)

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        view = self._take(prod(shape), dtype).view(shape)
        if self.reader is not None:
            view.copy_(self._read(name, shape))
        return view

    def _take(self, numel: int, dtype: torch.dtype) -> torch.Tensor:
        num_bytes = numel * dtype.itemsize
        view = self.slab_bytes[self._offset : self._offset + num_bytes].view(dtype)
        assert view.numel() == numel, f"weights slab too small: {self._offset=} {num_bytes=}"
        self._offset += _aligned(num_bytes)
        return view

    def _part(self, part: MatrixPart) -> torch.Tensor:
        matrix = self._read(part.name, part.shape)[part.start : part.stop].to(self.dtype)
        return matrix.T if part.transpose else matrix

    def _read(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """Parts of one tensor are asked for in a row (heads of one projection), so the last is kept."""
        assert self.reader is not None
        if self._last is None or self._last[0] != name:
            self._last = (name, self.reader.read(name, shape))
        return self._last[1]


def _stacked_shape(parts: tuple[MatrixPart, ...]) -> tuple[int, int]:
    shapes = [part.packed_shape() for part in parts]
    assert len({columns for _, columns in shapes}) == 1, f"{shapes=}"
    return sum(rows for rows, _ in shapes), shapes[0][1]


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
