"""Copies the columns of several results files behind each other into one, in bounded memory.

Knows what numbers must move when tables are put one after the other, nothing of which files fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import h5py
import numpy as np
import numpy.typing as npt

from janus_hpc.results.access import Columns
from janus_hpc.results.columns import Column
from janus_hpc.results.schema import (
    OFFSET,
    PLACEMENT_SLOTS,
    SLOT,
    TABLES,
    TOP_OFFSETS,
    TOP_VALUES,
)
from janus_hpc.results.writer import padded_slots
from janus_hpc.routing.storage import write_array

_BLOCK_ITEMS = 1 << 17

# Columns that number launches, placements or shards of their own file.
_RENUMBERED = {
    "rows/launch": "launch",
    "launches/number": "launch",
    "batches/epoch": "epoch",
    "placements/epoch": "epoch",
    "batches/shard": "shard",
    "placements/shard": "shard",
    "launches/shard": "shard",
}


@dataclass(frozen=True, kw_only=True)
class Part:
    """An open results file, and what is added to its numbers of launches, placements and shards."""

    columns: Columns
    launch: int
    epoch: int
    shard: int

    def length(self, name: str) -> int:
        """The items of a dataset."""
        return len(self.columns.dataset(name))


def number_parts(files: Sequence[Columns], num_shards: Sequence[int]) -> list[Part]:
    """Each file's numbers follow those of the files before it; `num_shards` are in each."""
    parts: list[Part] = []
    launch = epoch = shard = 0
    for columns, count in zip(files, num_shards, strict=True):
        parts.append(Part(columns=columns, launch=launch, epoch=epoch, shard=shard))
        launch += _next_number(columns, "launches/number", "rows/launch")
        epoch += _next_number(columns, "placements/epoch", "batches/epoch")
        shard += count
    return parts


def _next_number(columns: Columns, *names: str) -> int:
    """One more than the largest value of any of the datasets."""
    most = 0
    for name in names:
        count = len(columns.dataset(name))
        for start in range(0, count, _BLOCK_ITEMS):
            values = columns.read(name, start, min(start + _BLOCK_ITEMS, count))
            most = max(most, int(values.max()) + 1)
    return most


def copy_tables(file: h5py.File, parts: Sequence[Part]) -> None:
    """Writes all tables of the parts into `file`. Raises JournalError for a damaged part."""
    for group, (plain, ragged) in TABLES.items():
        file.create_group(group)
        for name, dtype in plain.items():
            _copy_values(file, parts, f"{group}/{name}", dtype)
        for name, dtype in ragged.items():
            _copy_values(file, parts, f"{group}/{name}_values", dtype)
            _copy_offsets(file, parts, f"{group}/{name}_offsets")
    _copy_offsets(file, parts, "rows/sample_offsets")
    _copy_offsets(file, parts, f"samples/{TOP_OFFSETS}")
    for name, dtype in TOP_VALUES.items():
        _copy_values(file, parts, f"samples/{name}", dtype)
    for name in ("rows", "samples"):
        for key, value in parts[0].columns.file[name].attrs.items():
            file[name].attrs[key] = value
    write_array(file["placements"], PLACEMENT_SLOTS, SLOT, _slots(parts))


def _copy_values(file: h5py.File, parts: Sequence[Part], name: str, dtype: str) -> None:
    column = _column(file, name, dtype)
    numbered = _RENUMBERED.get(name)
    for part in parts:
        shift = 0 if numbered is None else getattr(part, numbered)
        count = part.length(name)
        for start in range(0, count, _BLOCK_ITEMS):
            values = part.columns.read(name, start, min(start + _BLOCK_ITEMS, count))
            column.extend_array(values + values.dtype.type(shift) if shift else values)
    column.finish()


def _copy_offsets(file: h5py.File, parts: Sequence[Part], name: str) -> None:
    """Every part's offsets without its first, which is 0, count from the end of the part before."""
    column = _column(file, name, OFFSET)
    column.append(0)
    total = 0
    for part in parts:
        count = part.length(name)
        last = total
        for start in range(1, count, _BLOCK_ITEMS):
            offsets = part.columns.read(name, start, min(start + _BLOCK_ITEMS, count))
            column.extend_array(offsets + np.uint64(total))
            last = total + int(offsets[-1])
        total = last
    column.finish()


def _column(file: h5py.File, name: str, dtype: str) -> Column:
    group, _, own = name.partition("/")
    return Column(file[group], own, dtype)


def _slots(parts: Sequence[Part]) -> npt.NDArray[np.int32]:
    """All parts' placements as one array [P, L, R, C]; smaller ones are filled up as empty."""
    files = (part.columns.dataset(f"placements/{PLACEMENT_SLOTS}")[()] for part in parts)
    return padded_slots([slots_LRC for slots_PLRC in files for slots_LRC in slots_PLRC])
