"""Which record of which journal stands for each row, and how to read it: the exactly-once rule of
the merge.
"""

import os
from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from janus_hpc.core import RowResult
from janus_hpc.errors import JournalError
from janus_hpc.results.done import check_row
from janus_hpc.results.scan import JournalPath, JournalScan, list_journals, read_record

_MAX_OPEN = 64
_FAILED, _OK = 1, 2


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """For each row the record to take: `journal` (position in `journals`, -1 for none) and `offset`
        in bytes.
     The first success by (launch, world rank, offset) is taken, and where there is none the last
    failure. Further successes of a row are kept in the three `duplicate_*` arrays.
    """

    journals: list[JournalPath]
    journal: npt.NDArray[np.int32]
    offset: npt.NDArray[np.uint64]
    duplicate_rows: "array[int]" = field(default_factory=lambda: array("Q"))
    duplicate_journals: "array[int]" = field(default_factory=lambda: array("I"))
    duplicate_offsets: "array[int]" = field(default_factory=lambda: array("Q"))


def choose_records(run_dir: Path, num_rows: int, fingerprint: bytes) -> Chosen:
    """Scans all journals of a run. Raises JournalError if one is damaged or of another run."""
    chosen = Chosen(
        journals=list_journals(run_dir),
        journal=np.full(num_rows, -1, np.int32),
        offset=np.zeros(num_rows, np.uint64),
    )
    status = bytearray(num_rows)
    for position, journal in enumerate(chosen.journals):
        for record in JournalScan(journal.path, fingerprint):
            row = record.row
            check_row(journal.path, row, num_rows)
            if status[row] == _OK:
                if not record.failed:
                    chosen.duplicate_rows.append(row)
                    chosen.duplicate_journals.append(position)
                    chosen.duplicate_offsets.append(record.offset)
                continue
            status[row] = _FAILED if record.failed else _OK
            chosen.journal[row] = position
            chosen.offset[row] = record.offset
    return chosen


class RecordReader:
    """Reads records of many journals with a bounded number of open files."""

    def __init__(self, journals: list[JournalPath]) -> None:
        self._journals = journals
        self._fds: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def read(self, position: int, offset: int) -> RowResult:
        """The record at `offset` of the journal at `position` in the list."""
        path = self._journals[position].path
        try:
            return read_record(self._fd(position, path), offset)
        except OSError as error:
            raise JournalError(f"{path}: cannot read: {error.strerror}") from None
        except JournalError as error:
            raise JournalError(f"{path}: {error}") from None

    def _fd(self, position: int, path: Path) -> int:
        fd = self._fds.get(position)
        if fd is None:
            if len(self._fds) >= _MAX_OPEN:
                os.close(self._fds.pop(next(iter(self._fds))))
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._fds[position] = fd
        return fd


def count_unequal(chosen: Chosen, reader: RecordReader) -> int:
    """How many duplicates have other tokens than the record taken for their row."""
    places = zip(
        chosen.duplicate_rows, chosen.duplicate_journals, chosen.duplicate_offsets, strict=True
    )
    num_unequal = 0
    for row, position, offset in places:
        taken = reader.read(int(chosen.journal[row]), int(chosen.offset[row]))
        num_unequal += _tokens(taken) != _tokens(reader.read(position, offset))
    return num_unequal


def _tokens(result: RowResult) -> list[list[int]]:
    return [result.prompt_token_ids, *(sample.token_ids for sample in result.samples)]
