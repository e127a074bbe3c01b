"""Reads single rows, or runs of rows, of the indexed input file; every attention rank has its own
reader.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from janus_hpc.core import Row, RowError, SamplingParams
from janus_hpc.errors import UsageError
from janus_hpc.rows.fault import RowFault
from janus_hpc.rows.index_file import InputIndex
from janus_hpc.rows.parse import MAX_LINE_BYTES, error_row, parse_row

_READ_AHEAD_BYTES = 1 << 18


class RowReader:
    """Rows by index. Holds one window of the file, so reading in rising order costs few system
    calls. Raises UsageError if the file cannot be read or is no longer as long as when it was
    indexed. Not for several threads at once.
    """

    def __init__(self, path: Path, index: InputIndex, defaults: SamplingParams) -> None:
        self._path = path
        self._index = index
        self._defaults = defaults
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(f"{path}: cannot read the input file: {error.strerror}") from None
        size_bytes = os.fstat(self._fd).st_size
        if size_bytes != index.size_bytes:
            self.close()
            raise UsageError(
                f"{path}: changed since it was indexed: {index.size_bytes} bytes then,"
                f" {size_bytes} now"
            )
        self._window = b""
        self._window_start = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; the reader is of no use afterwards."""
        os.close(self._fd)

    @property
    def num_rows(self) -> int:
        """Rows in the file."""
        return self._index.num_rows

    def read(self, index: int) -> Row:
        """Row `index`; a row that cannot be run comes back with its error."""
        assert 0 <= index < self.num_rows, f"{index=} {self.num_rows=}"
        start, end = int(self._index.offsets[index]), int(self._index.offsets[index + 1])
        line = index + 1
        if not start <= end <= self._index.size_bytes:
            raise UsageError(
                f"{self._path}: its index is damaged: line {line} is at bytes {start} to {end} of "
                f"{self._index.size_bytes}; start the run again"
            )
        if end - start > MAX_LINE_BYTES:
            reason = f"line of {end - start} bytes; at most {MAX_LINE_BYTES} are read"
            return error_row(b"", index, line, self._defaults, RowFault("", reason))
        raw = self._read_bytes(start, end)
        first_line = self._index.first_line_of(index)
        if first_line is None:
            return parse_row(raw, index, line, self._defaults)
        fault = RowFault("id", f"duplicate id: first given on line {first_line}")
        return error_row(raw, index, line, self._defaults, fault)

    def read_range(self, start: int, stop: int) -> Iterator[Row]:
        """Rows start .. stop - 1 in order."""
        for index in range(start, stop):
            yield self.read(index)

    def _read_bytes(self, start: int, end: int) -> bytes:
        at = start - self._window_start
        if at < 0 or end - self._window_start > len(self._window):
            self._window = self._pread(max(end - start, _READ_AHEAD_BYTES), start)
            self._window_start, at = start, 0
        raw = self._window[at : at + end - start]
        if len(raw) != end - start:
            raise UsageError(f"{self._path}: became shorter while it was read, at byte {start}")
        return raw

    def _pread(self, num_bytes: int, start: int) -> bytes:
        try:
            return os.pread(self._fd, num_bytes, start)
        except OSError as error:
            raise UsageError(
                f"{self._path}: cannot read at byte {start}: {error.strerror}"
            ) from None


def first_errors(reader: RowReader, limit: int) -> list[RowError]:
    """The first `limit` errors of the file, for a run that refuses a file with any; reads rows
    until then.
    """
    errors: list[RowError] = []
    for row in reader.read_range(0, reader.num_rows):
        if row.error is not None:
            errors.append(row.error)
            if len(errors) == limit:
                break
    return errors
