"""Writes growing one-dimensional datasets: buffered to whole chunks, compressed, checksummed,
hashed.

Knows nothing of what the columns mean.
"""

import hashlib
from array import array
from collections.abc import Iterable
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from janus_hpc.results.schema import OFFSET
from janus_hpc.routing.storage import STORAGE, write_hash

CHUNK_BYTES = 1 << 20

_TYPECODES = {"<u1": "B", "<u4": "I", "<u8": "Q", "<i4": "i", "<f4": "f", "<f8": "d"}


class Column:
    """One dataset that is appended to; `finish` writes the rest and its sha256."""

    def __init__(self, group: h5py.Group, name: str, dtype: str) -> None:
        self._group = group
        self._name = name
        self._dtype = np.dtype(dtype)
        self._chunk_items = CHUNK_BYTES // self._dtype.itemsize
        self._buffer: array[Any] = array(_TYPECODES[dtype])
        self._dataset: h5py.Dataset | None = None
        self._sha256 = hashlib.sha256()

    def append(self, value: float) -> None:
        """Adds one value."""
        self._buffer.append(value)
        if len(self._buffer) >= self._chunk_items:
            self._write(self._chunk_items)

    def extend(self, values: Iterable[float]) -> None:
        """Adds values; for a byte column `bytes` are values."""
        self._buffer.extend(values)
        while len(self._buffer) >= self._chunk_items:
            self._write(self._chunk_items)

    def extend_array(self, values: npt.NDArray[Any]) -> None:
        """Adds the values of a one-dimensional array of the column's type."""
        assert values.dtype == self._dtype, f"{self._name}: {values.dtype=}"
        self._buffer.frombytes(values.tobytes())
        while len(self._buffer) >= self._chunk_items:
            self._write(self._chunk_items)

    def finish(self) -> None:
        """Writes what is left; the column takes no more."""
        if self._buffer or self._dataset is None:
            self._write(len(self._buffer))
        assert self._dataset is not None
        write_hash(self._dataset, self._sha256.hexdigest())

    def _write(self, count: int) -> None:
        data = np.array(self._buffer[:count], self._dtype)
        del self._buffer[:count]
        self._sha256.update(data.data)
        if self._dataset is None:
            self._dataset = self._group.create_dataset(
                self._name,
                shape=(0,),
                maxshape=(None,),
                dtype=self._dtype,
                chunks=(max(count, 1),),
                **STORAGE,
            )
        start = len(self._dataset)
        self._dataset.resize(start + count, axis=0)
        self._dataset[start:] = data


class Ragged:
    """One ragged column: values and offsets."""

    def __init__(self, group: h5py.Group, name: str, dtype: str) -> None:
        self.values = Column(group, f"{name}_values", dtype)
        self.offsets = Offsets(group, f"{name}_offsets")

    def append(self, values: bytes | list[int] | list[float]) -> None:
        """Adds one item."""
        self.values.extend(values)
        self.offsets.append_count(len(values))

    def finish(self) -> None:
        """Writes what is left."""
        self.values.finish()
        self.offsets.finish()


class Offsets:
    """The running sum of item lengths, from 0: one value more than there are items."""

    def __init__(self, group: h5py.Group, name: str) -> None:
        self._column = Column(group, name, OFFSET)
        self._column.append(0)
        self._total = 0

    def append_count(self, count: int) -> None:
        """Adds an item of `count` values."""
        self._total += count
        self._column.append(self._total)

    def finish(self) -> None:
        """Writes what is left."""
        self._column.finish()
