"""Which results files are the shards of one run, and in which order: same fingerprint, one after
the other, nothing twice. Reads attributes alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from janus_hpc.errors import JournalError, UsageError
from janus_hpc.results.manifest import differences
from janus_hpc.results.reader import ResultsFile

# The fields of a fingerprint that say which rows a run answers, not what the answers are.
ROW_FIELDS = ("first_row", "stop_row")


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One results file: rows `first_row` to `stop_row` - 1 of an input of `num_input_rows`.

    `fingerprint` is what decides answers, without the rows.
    """

    path: Path
    attrs: dict[str, Any]
    fingerprint: dict[str, Any]
    first_row: int
    stop_row: int
    num_input_rows: int

    def __str__(self) -> str:
        return f"{self.path} ({_rows(self.first_row, self.stop_row)})"


def read_shard(path: Path) -> Shard:
    """The shard in `path`. Raises UsageError or JournalError for what is no results file."""
    with ResultsFile(path) as results:
        attrs, num_rows = results.attrs, results.num_rows
    try:
        first_row = int(attrs["first_row"])
        num_input_rows = int(attrs["num_input_rows"])
        fingerprint = msgspec.json.decode(attrs["fingerprint"], type=dict[str, Any])
    except KeyError as error:
        raise JournalError(f"{path}: has no attribute {error}, so it cannot be joined") from None
    except (msgspec.DecodeError, TypeError, ValueError) as error:
        raise JournalError(f"{path}: damaged attributes: {error}") from None
    return Shard(
        path=path,
        attrs=attrs,
        fingerprint={key: its for key, its in fingerprint.items() if key not in ROW_FIELDS},
        first_row=first_row,
        stop_row=first_row + num_rows,
        num_input_rows=num_input_rows,
    )


def in_order(shards: Sequence[Shard], *, partial: bool) -> list[Shard]:
    """The shards by row. Raises UsageError, naming files and rows, for shards of different runs,
    an overlap or a gap; with `partial` rows may be absent before the first and after the last.
    """
    ordered = sorted(shards, key=lambda its: (its.first_row, its.stop_row))
    for its in ordered[1:]:
        _refuse_other_run(ordered[0], its)
    for before, its in pairwise(ordered):
        if its.first_row < before.stop_row:
            raise UsageError(f"{before} and {its} overlap; name each shard once")
        if its.first_row > before.stop_row:
            absent = _rows(before.stop_row, its.first_row)
            raise UsageError(f"{absent} are missing between {before} and {its}; name their file")
    if not partial:
        _refuse_part(ordered)
    return ordered


def _refuse_other_run(first: Shard, its: Shard) -> None:
    lines = [
        f"{line.replace(': was ', ': ').replace(', now ', ', ')}"
        for line in differences(first.fingerprint, its.fingerprint)
    ]
    if not lines and first.num_input_rows != its.num_input_rows:
        lines.append(f"  rows of the input: {first.num_input_rows}, {its.num_input_rows}")
    if lines:
        listed = "\n".join(lines)
        raise UsageError(f"{first.path} and {its.path} are of different runs:\n{listed}")


def _refuse_part(ordered: Sequence[Shard]) -> None:
    first, last = ordered[0], ordered[-1]
    for start, stop, where in (
        (0, first.first_row, f"before {first}"),
        (last.stop_row, last.num_input_rows, f"after {last}"),
    ):
        if start < stop:
            raise UsageError(
                f"{_rows(start, stop)} of the input's {last.num_input_rows} rows are missing"
                f" {where}; name their file, or give --partial"
            )


def _rows(start: int, stop: int) -> str:
    return f"rows {start} to {stop - 1}" if start < stop else "no rows"
