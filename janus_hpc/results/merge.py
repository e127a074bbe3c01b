"""Merges the journals of a finished run into one results file: streaming, each row once, in input
order.
 Written aside, verified and renamed, so that the file is whole or absent. For one process; needs no
MPI.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt

import janus_hpc
from janus_hpc.core import RowResult
from janus_hpc.errors import JanusError, JournalError
from janus_hpc.results.attributes import write_attributes
from janus_hpc.results.durable import written_aside
from janus_hpc.results.schema import SCHEMA_NAME, SCHEMA_VERSION
from janus_hpc.results.sources import Chosen, RecordReader, choose_records, count_unequal
from janus_hpc.results.stats import RunStats
from janus_hpc.results.verify import verify
from janus_hpc.results.writer import RowsWriter, write_stats
from janus_hpc.routing.storage import LIBVER

_ROWS_PER_PROGRESS = 1 << 17

Progress = Callable[[str], None]


def silent(_: str) -> None:
    """The progress of who is told nothing."""


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """What a merge found. `num_unequal` duplicates had other tokens than the record that was
    kept.
    """

    num_rows: int
    num_failed: int
    num_samples: int
    num_duplicates: int
    num_unequal: int


class _Taken(NamedTuple):
    result: RowResult
    launch: int
    world_rank: int


def merge(
    run_dir: Path,
    out_path: Path,
    num_rows: int,
    fingerprint: bytes,
    attrs: Mapping[str, Any],
    *,
    stats: RunStats | None = None,
    chat: npt.NDArray[np.bool_] | None = None,
    progress: Progress = silent,
    first_row: int = 0,
    stop_row: int | None = None,
) -> MergeReport:
    """Writes `out_path` from all journals in `run_dir`; the same journals and arguments give the
    same bytes. `num_rows` is the whole input's; of a shard, the file holds rows `first_row` to
    `stop_row` - 1 of it. `attrs` become attributes of the file, nested ones as JSON text; `chat`
    bool [num_rows] says which of the input's prompts were messages; `progress` is told
    what is done. Raises JournalError if rows are missing, journals hold rows outside the shard or are
    damaged, JanusError if the file cannot be written or does not verify.
    """
    shard = range(first_row, num_rows if stop_row is None else stop_row)
    assert 0 <= shard.start <= shard.stop <= num_rows, f"{shard=} {num_rows=}"
    progress(f"reading the journals in {run_dir}")
    chosen = choose_records(run_dir, num_rows, fingerprint)
    _refuse_outside(chosen, shard)
    _refuse_missing(run_dir, chosen, shard)
    with written_aside(out_path) as aside:
        report = _write(
            aside,
            chosen,
            shard,
            attrs=attrs,
            stats=stats or RunStats(),
            chat=chat,
            progress=progress,
        )
        progress("verifying what was written")
        refuse_damaged(aside, report)
    return report


def _refuse_outside(chosen: Chosen, shard: range) -> None:
    outside = np.flatnonzero(chosen.journal >= 0)
    outside = outside[(outside < shard.start) | (outside >= shard.stop)]
    if len(outside):
        row = int(outside[0])
        path = chosen.journals[int(chosen.journal[row])].path
        raise JournalError(
            f"{path}: holds row {row}; the shard is rows {shard.start} to {shard.stop - 1}"
        )


def _refuse_missing(run_dir: Path, chosen: Chosen, shard: range) -> None:
    missing = np.flatnonzero(chosen.journal[shard.start : shard.stop] < 0)
    if len(missing):
        raise JournalError(
            f"{run_dir}: {len(missing)} of {len(shard)} rows are not finished, the first on"
            f" line {shard.start + int(missing[0]) + 1}; resume the run to finish them"
        )


def _write(
    aside: Path,
    chosen: Chosen,
    shard: range,
    *,
    attrs: Mapping[str, Any],
    stats: RunStats,
    chat: npt.NDArray[np.bool_] | None,
    progress: Progress,
) -> MergeReport:
    rows_per_launch: Counter[int] = Counter()
    with (
        RecordReader(chosen.journals) as reader,
        h5py.File(aside, "w", libver=LIBVER, locking="best-effort", rdcc_nbytes=0) as file,
    ):
        rows = RowsWriter(file, shard.start)
        for taken in _taken(chosen, reader, shard):
            is_chat = chat is not None and bool(chat[taken.result.index])
            rows.add(taken.result, launch=taken.launch, world_rank=taken.world_rank, chat=is_chat)
            rows_per_launch[taken.launch] += 1
            if rows.num_rows % _ROWS_PER_PROGRESS == 0:
                progress(f"{rows.num_rows} of {len(shard)} rows written")
        rows.finish()
        write_stats(file, stats, rows_per_launch)
        report = MergeReport(
            num_rows=rows.num_rows,
            num_failed=rows.num_failed,
            num_samples=rows.num_samples,
            num_duplicates=len(chosen.duplicate_rows),
            num_unequal=count_unequal(chosen, reader),
        )
        write_attributes(
            file, {**attrs, **own_attributes(report, shard.start, len(chosen.journal))}
        )
    return report


def _taken(chosen: Chosen, reader: RecordReader, shard: range) -> Iterator[_Taken]:
    for row in shard:
        position = int(chosen.journal[row])
        result = reader.read(position, int(chosen.offset[row]))
        assert result.index == row, f"{result.index=} {row=}"
        journal = chosen.journals[position]
        yield _Taken(result, journal.launch, journal.world_rank)


def own_attributes(report: MergeReport, first_row: int, num_input_rows: int) -> dict[str, Any]:
    """The attributes that every results file has, whatever its run says of itself."""
    return {
        "schema_name": SCHEMA_NAME,
        "schema_version": SCHEMA_VERSION,
        "janus_version": janus_hpc.__version__,
        "first_row": first_row,
        "num_rows": report.num_rows,
        "num_input_rows": num_input_rows,
        "num_failed": report.num_failed,
        "num_samples": report.num_samples,
        "num_duplicates": report.num_duplicates,
        "num_unequal_duplicates": report.num_unequal,
    }


def refuse_damaged(aside: Path, report: MergeReport) -> None:
    """Raises JanusError if what was written does not verify, or holds other rows than reported."""
    verified = verify(aside)
    if verified.findings:
        raise JanusError(f"{aside}: written wrongly: {verified.findings[0]}")
    assert verified.num_rows == report.num_rows, f"{verified.num_rows=} {report.num_rows=}"
