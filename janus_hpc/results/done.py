"""Which rows of a run are finished, from all its journals, in a few bytes a row."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from janus_hpc.errors import JournalError
from janus_hpc.results.scan import JournalScan, list_journals


class InFlight(NamedTuple):
    """Where the tokens lie that an unfinished row has: the name of a journal, and the record's offset."""

    row: int
    journal: str
    offset: int


@dataclass(frozen=True, kw_only=True)
class DoneRows:
    """`done` bool [num_rows]: rows with nothing left to do. `num_failed` of them ended in an error.

    `torn_bytes` is what the ends of killed ranks' journals lost. `in_flight`: rows to go on with, rising.
    """

    done: npt.NDArray[np.bool_]
    num_done: int
    num_failed: int
    num_journals: int
    torn_bytes: int
    in_flight: tuple[InFlight, ...] = ()

    def pending(self) -> npt.NDArray[np.int64]:
        """The rows left to do, rising."""
        return np.flatnonzero(~self.done)


def load_done(
    run_dir: Path, num_rows: int, fingerprint: bytes, retry_failed: bool = False
) -> DoneRows:
    """Scans every journal in `run_dir`. With `retry_failed` a row that only ever failed is not
        done.
     Raises JournalError for a damaged journal, one of another run, or a row that the input does not
    have.
    """
    succeeded = np.zeros(num_rows, np.bool_)
    failed = np.zeros(num_rows, np.bool_)
    in_flight: dict[int, InFlight] = {}
    torn_bytes = 0
    journals = list_journals(run_dir)
    for journal in journals:
        scan = JournalScan(journal.path, fingerprint)
        for record in scan:
            check_row(journal.path, record.row, num_rows)
            (failed if record.failed else succeeded)[record.row] = True
        for record in scan.partials:
            check_row(journal.path, record.row, num_rows)
            # A later launch went on from what an earlier one left.
            in_flight[record.row] = InFlight(record.row, journal.path.name, record.offset)
        torn_bytes += scan.torn_bytes
    failed &= ~succeeded
    done = succeeded if retry_failed else succeeded | failed
    return DoneRows(
        done=done,
        num_done=int(done.sum()),
        num_failed=0 if retry_failed else int(failed.sum()),
        num_journals=len(journals),
        torn_bytes=torn_bytes,
        in_flight=tuple(in_flight[row] for row in sorted(in_flight) if not done[row]),
    )


def check_row(path: Path, row: int, num_rows: int) -> None:
    """Raises JournalError if a journal holds a row that the input does not have."""
    if row >= num_rows:
        raise JournalError(f"{path}: holds row {row}; the input has {num_rows} rows")
