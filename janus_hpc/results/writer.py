"""Writes the groups of the results file, one row after the other, in input order. Knows nothing of
journals.
"""

import math
from collections.abc import Sequence
from typing import Any

import h5py
import msgspec
import numpy as np
import numpy.typing as npt

from janus_hpc.core import RowResult, SampleResult, TokenLogprobs
from janus_hpc.results.columns import Column, Offsets, Ragged
from janus_hpc.results.schema import (
    EMPTY_SLOT,
    FINISH_REASONS,
    LAYER_ARRAYS,
    PLACEMENT_SLOTS,
    SLOT,
    STATUS_NAMES,
    TABLES,
    TOP_OFFSETS,
    TOP_VALUES,
)
from janus_hpc.results.stats import (
    BatchStats,
    LayerStats,
    PlacementStats,
    RunStats,
    tpot_s,
    ttft_s,
)
from janus_hpc.routing.storage import write_array
from janus_hpc.routing.trace_file import write_routing

# Legend: P placements, L MoE layers, R expert ranks, C slots of a rank.

_FINISH_CODES = {name: code for code, name in enumerate(FINISH_REASONS)}


class _Table:
    """The columns of one group; a subclass says what an item adds to them."""

    def __init__(self, file: h5py.File, name: str) -> None:
        columns, ragged = TABLES[name]
        self.group = file.create_group(name)
        self.columns = {key: Column(self.group, key, dtype) for key, dtype in columns.items()}
        self.ragged = {key: Ragged(self.group, key, dtype) for key, dtype in ragged.items()}

    def add(self, columns: dict[str, Any], ragged: dict[str, Any]) -> None:
        """Adds one item; every column must be named."""
        assert columns.keys() == self.columns.keys(), f"{columns.keys()=}"
        assert ragged.keys() == self.ragged.keys(), f"{ragged.keys()=}"
        for key, value in columns.items():
            self.columns[key].append(value)
        for key, values in ragged.items():
            self.ragged[key].append(values)

    def finish(self) -> None:
        for column in self.columns.values():
            column.finish()
        for ragged in self.ragged.values():
            ragged.finish()


class _TopLogprobs:
    """The best tokens at every position that has log probabilities."""

    def __init__(self, group: h5py.Group) -> None:
        self._offsets = Offsets(group, TOP_OFFSETS)
        self._ids, self._logprobs = (Column(group, name, TOP_VALUES[name]) for name in TOP_VALUES)

    def append(self, position: TokenLogprobs) -> None:
        assert len(position.top_ids) == len(position.top_logprobs), f"{position=}"
        self._offsets.append_count(len(position.top_ids))
        self._ids.extend(position.top_ids)
        self._logprobs.extend(position.top_logprobs)

    def finish(self) -> None:
        for column in (self._offsets, self._ids, self._logprobs):
            column.finish()


class RowsWriter:
    """The groups `rows` and `samples`."""

    def __init__(self, file: h5py.File, first_row: int = 0) -> None:
        self.first_row = first_row
        self.num_rows = 0
        self.num_failed = 0
        self.num_samples = 0
        self._rows = _Table(file, "rows")
        self._sample_offsets = Offsets(self._rows.group, "sample_offsets")
        self._rows.group.attrs["status_names"] = np.array(STATUS_NAMES, "S")
        self._samples = _Table(file, "samples")
        self._samples.group.attrs["finish_reason_names"] = np.array(FINISH_REASONS, "S")
        self._top = _TopLogprobs(self._samples.group)

    def add(self, result: RowResult, *, launch: int, world_rank: int, chat: bool) -> None:
        """Adds the next row: `result.index` rises by one with each, from `first_row`."""
        expected = self.first_row + self.num_rows
        assert result.index == expected, f"{result.index=} {expected=}"
        error = result.error
        self._rows.add(
            {
                "index": result.index,
                "line": result.index + 1,
                "status": int(error is not None),
                "chat": int(chat),
                "launch": launch,
                "world_rank": world_rank,
                "error_line": 0 if error is None else error.line,
                "finished_at_unix_s": result.finished_at_unix_s,
            },
            {
                "id": result.id.encode(),
                "error_field": b"" if error is None else error.field.encode(),
                "error_reason": b"" if error is None else error.reason.encode(),
                "prompt_token_ids": result.prompt_token_ids,
            },
        )
        self._sample_offsets.append_count(len(result.samples))
        for sample in result.samples:
            self._add_sample(result.index, sample)
        self.num_rows += 1
        self.num_failed += error is not None

    def _add_sample(self, row: int, sample: SampleResult) -> None:
        times = sample.token_times_s
        reason = sample.stop_reason
        logprobs = sample.logprobs
        self._samples.add(
            {
                "row": row,
                "finish_reason": _FINISH_CODES[sample.finish_reason],
                "logprobs_present": int(logprobs is not None),
                "ttft_s": ttft_s(times),
                "tpot_s": tpot_s(times),
            },
            {
                "text": sample.text.encode(),
                "stop_reason": b"" if reason is None else msgspec.json.encode(reason),
                "token_ids": sample.token_ids,
                "token_times_s": times,
                "logprobs": [position.chosen for position in logprobs or ()],
            },
        )
        for position in logprobs or ():
            self._top.append(position)
        self.num_samples += 1

    def finish(self) -> None:
        """Writes what is left."""
        self._rows.finish()
        self._sample_offsets.finish()
        self._samples.finish()
        self._top.finish()


def write_stats(file: h5py.File, stats: RunStats, rows_per_launch: dict[int, int]) -> None:
    """Writes the groups `batches`, `layers`, `placements`, `routing` and `launches`."""
    _write_items(file, "batches", stats.batches)
    write_layers(file, stats.layers)
    _write_placements(file, stats.placements)
    write_routing(file, stats.routing)
    launches = _Table(file, "launches")
    for launch in stats.launches:
        num_rows = rows_per_launch.get(launch.number, 0)
        info = msgspec.json.encode(launch.info, order="sorted")
        columns = {"number": launch.number, "num_rows": num_rows, "shard": 0}
        launches.add(columns, {"info": info})
    launches.finish()


def _write_items(
    file: h5py.File, name: str, items: Sequence[BatchStats | PlacementStats]
) -> h5py.Group:
    """Writes a table whose columns are named as the fields of its items; all ragged ones are text."""
    table = _Table(file, name)
    for item in items:
        columns = {key: getattr(item, key) for key in table.columns}
        table.add(columns, {key: getattr(item, key).encode() for key in table.ragged})
    table.finish()
    return table.group


def write_layers(file: h5py.File, layers: LayerStats | None) -> None:
    """Writes the group `layers`; without statistics all its arrays are empty."""
    group = file.create_group("layers")
    group.attrs["num_steps"] = 0 if layers is None else layers.num_steps
    num_layers = 0 if layers is None else len(layers.expert_activations)
    for name, dtype in LAYER_ARRAYS.items():
        values = None if layers is None else getattr(layers, name)
        if values is None:
            values = np.zeros((0, 0)) if name == "expert_activations" else [math.nan] * num_layers
        write_array(group, name, dtype, values)


def _write_placements(file: h5py.File, placements: Sequence[PlacementStats]) -> None:
    group = _write_items(file, "placements", placements)
    slots_PLRC = padded_slots([its.slots_LRC for its in placements])
    write_array(group, PLACEMENT_SLOTS, SLOT, slots_PLRC)


def padded_slots(slots_LRC: Sequence[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32]:
    """All placements' slots as one array; those with fewer ranks or slots are filled up as empty."""
    if not slots_LRC:
        return np.zeros((0, 0, 0, 0), np.int32)
    widest = np.max([its.shape for its in slots_LRC], axis=0)
    slots_PLRC = np.full((len(slots_LRC), *widest), EMPTY_SLOT, np.int32)
    for whole_LRC, its_LRC in zip(slots_PLRC, slots_LRC, strict=True):
        num_layers, num_ranks, num_slots = its_LRC.shape
        assert num_layers == len(whole_LRC), f"{num_layers=} {whole_LRC.shape=}"
        whole_LRC[:, :num_ranks, :num_slots] = its_LRC
    return slots_PLRC
