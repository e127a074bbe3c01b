"""Checks that the columns of a results file fit together: lengths, offsets, order, codes, UTF-8.

Each check raises JournalError for the first thing it finds; storage damage is not its matter.
"""

from collections.abc import Iterator

import numpy as np

from janus_hpc.errors import JournalError
from janus_hpc.results.access import Columns
from janus_hpc.results.schema import (
    EMPTY_SLOT,
    FINISH_REASONS,
    LAYER_ARRAYS,
    PLACEMENT_SLOTS,
    STATUS_NAMES,
    TABLES,
    TOP_OFFSETS,
    TOP_VALUES,
)
from janus_hpc.routing.trace_file import read_routing

_BLOCK_ITEMS = 1 << 16
_TEXT_BLOCK_ITEMS = 1 << 12
# The first two bits of a byte that continues a UTF-8 character.
_CONTINUATION_MASK, _CONTINUATION = 0xC0, 0x80


def check_table(columns: Columns, group: str) -> None:
    """All columns of a group have one length, and the offsets of its ragged ones fit their
    values.
    """
    plain, ragged = TABLES[group]
    count = _length(columns, f"{group}/{next(iter(plain))}")
    for name in plain:
        _expect(_length(columns, f"{group}/{name}") == count, f"{name} does not have {count} items")
    for name in ragged:
        num_values = _length(columns, f"{group}/{name}_values")
        _check_offsets(columns, f"{group}/{name}_offsets", count, num_values)


def check_rows(columns: Columns, num_rows: int, num_samples: int, first_row: int = 0) -> int:
    """Rows are all there and in input order, from the input's row `first_row`. Returns how many
    of them failed.
    """
    found = _length(columns, "rows/index")
    _expect(found == num_rows, f"{found} rows, expected {num_rows}")
    _check_offsets(columns, "rows/sample_offsets", num_rows, num_samples)
    num_failed = 0
    for start, stop in _blocks(num_rows, _BLOCK_ITEMS):
        index = columns.read("rows/index", start, stop)
        expected = np.arange(first_row + start, first_row + stop, dtype=np.uint64)
        _expect(np.array_equal(index, expected), f"order broken after row {start}")
        line = columns.read("rows/line", start, stop)
        _expect(np.array_equal(line, expected + 1), f"lines do not fit rows, after row {start}")
        status = columns.read("rows/status", start, stop)
        _expect(status.max() < len(STATUS_NAMES), f"unknown status after row {start}")
        num_failed += int(np.count_nonzero(status))
    return num_failed


def check_samples(columns: Columns, num_rows: int, num_samples: int, first_row: int = 0) -> None:
    """Samples name their rows by the input's index, and log probabilities stand at every token or at none."""
    found = _length(columns, "samples/row")
    _expect(found == num_samples, f"{found} samples, expected {num_samples}")
    for start, stop in _blocks(num_rows, _BLOCK_ITEMS):
        bounds = columns.read("rows/sample_offsets", start, stop + 1).astype(np.int64)
        rows = columns.read("samples/row", int(bounds[0]), int(bounds[-1]))
        index = np.arange(first_row + start, first_row + stop)
        expected = np.repeat(index, np.diff(bounds))
        _expect(np.array_equal(rows, expected), f"not those of their rows, after row {start}")
    for start, stop in _blocks(num_samples, _BLOCK_ITEMS):
        codes = columns.read("samples/finish_reason", start, stop)
        _expect(codes.max() < len(FINISH_REASONS), f"unknown finish reason after {start}")
        present = columns.read("samples/logprobs_present", start, stop) != 0
        num_tokens = np.diff(columns.read("samples/token_ids_offsets", start, stop + 1))
        num_logprobs = np.diff(columns.read("samples/logprobs_offsets", start, stop + 1))
        fits = np.array_equal(num_logprobs, num_tokens * present)
        _expect(fits, f"log probabilities do not stand at every token, after {start}")


def check_top_logprobs(columns: Columns) -> None:
    """The best tokens fit the positions that have log probabilities."""
    num_positions = _length(columns, "samples/logprobs_values")
    for name in TOP_VALUES:
        num_values = _length(columns, f"samples/{name}")
        _check_offsets(columns, f"samples/{TOP_OFFSETS}", num_positions, num_values)


def check_layers(columns: Columns) -> None:
    """All arrays over layers have one length."""
    num_layers = _length(columns, "layers/expert_activations")
    for name in LAYER_ARRAYS:
        found = _length(columns, f"layers/{name}")
        _expect(found == num_layers, f"{name} has {found} layers, expected {num_layers}")


def check_placements(columns: Columns) -> None:
    """There are slots for every placement and layer, and each holds an expert or is empty."""
    slots_PLRC = columns.dataset(f"placements/{PLACEMENT_SLOTS}")
    shape = slots_PLRC.shape
    _expect(len(shape) == 4, f"slots have {len(shape)} dimensions, expected 4")
    num_placements = _length(columns, "placements/epoch")
    _expect(shape[0] == num_placements, f"{shape[0]} of slots, expected {num_placements}")
    num_layers, num_experts = columns.dataset("layers/expert_activations").shape
    if num_placements and num_layers:
        _expect(shape[1] == num_layers, f"slots of {shape[1]} layers, expected {num_layers}")
    for at in range(num_placements):
        slots_LRC = slots_PLRC[at]
        in_range = np.all(slots_LRC >= EMPTY_SLOT)
        if num_layers:
            in_range &= np.all(slots_LRC < num_experts)
        _expect(in_range, f"expert ids out of range in the slots of placement {at}")


def check_routing(columns: Columns) -> None:
    """The trace fits together, and has the layers and experts that the run counted."""
    trace = read_routing(columns.file)
    num_layers, num_experts = columns.dataset("layers/expert_activations").shape
    if trace is not None and num_layers:
        found = len(trace.layer_ids), trace.num_experts
        expected = num_layers, num_experts
        _expect(found == expected, f"{found} layers and experts, expected {expected}")


def check_text(columns: Columns, name: str) -> None:
    """Every item is UTF-8 by itself: the whole is, and no item starts inside a character."""
    count = _length(columns, f"{name}_offsets") - 1
    for start, stop in _blocks(count, _TEXT_BLOCK_ITEMS):
        values, offsets = columns.read_ragged(f"{name}_values", f"{name}_offsets", start, stop)
        values.tobytes().decode()
        starts = np.array([at for at in offsets if at < len(values)], np.int64)
        inside = (values[starts] & _CONTINUATION_MASK) == _CONTINUATION
        _expect(not inside.any(), f"an item starts inside a character, after {start}")


def _check_offsets(columns: Columns, name: str, count: int, num_values: int) -> None:
    """`name` holds count + 1 offsets that never fall, from 0 to num_values."""
    found = _length(columns, name)
    _expect(found == count + 1, f"{name} has {found} values, expected {count + 1}")
    last = 0
    for start, stop in _blocks(count + 1, _BLOCK_ITEMS):
        offsets = columns.read(name, start, stop).astype(np.int64)
        rises = offsets[0] >= last and not np.any(offsets[1:] < offsets[:-1])
        _expect(rises, f"{name} falls after item {start}")
        _expect(start > 0 or offsets[0] == 0, f"{name} starts at {offsets[0]}, expected 0")
        last = int(offsets[-1])
    _expect(last == num_values, f"{name} ends at {last}, expected {num_values}")


def _length(columns: Columns, name: str) -> int:
    return len(columns.dataset(name))


def _blocks(count: int, size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + size, count)) for start in range(0, count, size))


def _expect(holds: object, message: str) -> None:
    if not holds:
        raise JournalError(message)
