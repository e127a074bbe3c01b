"""Builds the index of an input file in one streaming pass: row offsets, id hashes, duplicate ids,
sha256.
 Run by one process; its memory does not grow with the length of the rows, and by some 20 bytes with
each row.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from janus_hpc.errors import UsageError
from janus_hpc.rows.ids import default_id, hash_id, row_id
from janus_hpc.rows.index_file import (
    DUPLICATE,
    HEADER_BYTES,
    PACK_RECORD,
    RECORD,
    IndexHeader,
    InputIndex,
)
from janus_hpc.rows.parse import MAX_LINE_BYTES, strip_line

__all__ = ["InputIndex", "build_index"]

_ROWS_PER_PROGRESS = 1 << 16
_READ_BYTES = 1 << 20


class _Line(NamedTuple):
    offset: int
    id_hash: int
    chat: bool
    blank: bool


class _LineReader:
    """Iterates over the lines of a file, hashing its bytes; a line that is too long is taken in
    pieces.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.sha256 = hashlib.sha256()
        self.end_offset = 0

    def __iter__(self) -> Iterator[_Line]:
        index = 0
        while raw := self._read_piece():
            offset = self.end_offset - len(raw)
            if len(raw) > MAX_LINE_BYTES:
                self._skip_rest(raw)
                yield _Line(offset, hash_id(default_id(index)), False, False)
            else:
                stripped = strip_line(raw, index + 1)
                id_text, _, chat = row_id(stripped, index)
                yield _Line(offset, hash_id(id_text), chat, not stripped)
            index += 1

    def _read_piece(self) -> bytes:
        raw = self._file.readline(MAX_LINE_BYTES + 1)
        self.sha256.update(raw)
        self.end_offset += len(raw)
        return raw

    def _skip_rest(self, piece: bytes) -> None:
        while piece and not piece.endswith(b"\n"):
            piece = self._read_piece()


def build_index(
    path: Path, index_path: Path, progress: Callable[[int], None] | None = None
) -> InputIndex:
    """Reads the input file once, writes its index beside and renames it to `index_path`, and opens
        it.
     `progress` is told the number of rows so far. Raises UsageError for an input that is missing,
    unreadable or no regular file. Trailing blank lines are no rows.
    """
    aside = index_path.with_name(f"{index_path.name}.tmp")
    try:
        with _open_input(path) as source, aside.open("w+b", buffering=_READ_BYTES) as out:
            header = _write_records(source, out, progress)
            pairs = _find_duplicates(source, out, header)
            _finish(out, header, pairs)
        os.replace(aside, index_path)
    except OSError as error:
        raise UsageError(f"cannot index {path} into {index_path}: {error}") from None
    return InputIndex.open(index_path)


def _open_input(path: Path) -> IO[bytes]:
    if not path.exists():
        raise UsageError(f"{path}: no such input file")
    if not path.is_file():
        raise UsageError(f"{path}: expected a regular file of JSON lines")
    try:
        return path.open("rb", buffering=_READ_BYTES)
    except OSError as error:
        raise UsageError(f"{path}: cannot read the input file: {error.strerror}") from None


def _write_records(
    source: IO[bytes], out: IO[bytes], progress: Callable[[int], None] | None
) -> IndexHeader:
    """Appends a record for every line; leaves the end-of-rows record in place after the last
    row.
    """
    lines = _LineReader(source)
    out.seek(HEADER_BYTES)
    num_rows = rows_end = 0
    for number, line in enumerate(lines, start=1):
        out.write(PACK_RECORD(line.offset, line.id_hash, line.chat))
        if not line.blank:
            num_rows, rows_end = number, lines.end_offset
        if progress is not None and number % _ROWS_PER_PROGRESS == 0:
            progress(num_rows)
    out.seek(HEADER_BYTES + num_rows * RECORD.itemsize)
    out.write(PACK_RECORD(rows_end, 0, False))
    out.truncate()
    out.flush()
    return IndexHeader(
        num_rows=num_rows,
        num_duplicates=0,
        size_bytes=lines.end_offset,
        sha256=lines.sha256.hexdigest(),
    )


def _find_duplicates(
    source: IO[bytes], out: IO[bytes], header: IndexHeader
) -> list[tuple[int, int]]:
    """(row, line of the first row with its id), by row: equal hashes, confirmed by reading the ids
    again.
    """
    records = np.memmap(
        out, dtype=RECORD, mode="r", offset=HEADER_BYTES, shape=(header.num_rows + 1,)
    )
    offsets, hashes = records["offset"], np.ascontiguousarray(records["id_hash"][:-1])
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    equal = hashes[1:] == hashes[:-1]
    candidates = (
        order[np.append(equal, False) | np.insert(equal, 0, False)] if len(order) else order
    )
    first_of: dict[str, int] = {}
    pairs: list[tuple[int, int]] = []
    # Rows of one hash stand together and in rising order, so a change of hash ends what can be
    # equal.
    last_hash = None
    for row in candidates.tolist():
        id_hash = int(records["id_hash"][row])
        if id_hash != last_hash:
            first_of, last_hash = {}, id_hash
        id_text = _read_id(source, row, int(offsets[row]), int(offsets[row + 1]))
        first = first_of.setdefault(id_text, row)
        if first != row:
            pairs.append((row, first + 1))
    return sorted(pairs)


def _read_id(source: IO[bytes], row: int, start: int, end: int) -> str:
    if end - start > MAX_LINE_BYTES:
        return default_id(row)
    source.seek(start)
    return row_id(strip_line(source.read(end - start), row + 1), row)[0]


def _finish(out: IO[bytes], header: IndexHeader, pairs: list[tuple[int, int]]) -> None:
    out.seek(0, os.SEEK_END)
    out.write(np.array(pairs, DUPLICATE).tobytes())
    out.seek(0)
    out.write(
        IndexHeader(
            num_rows=header.num_rows,
            num_duplicates=len(pairs),
            size_bytes=header.size_bytes,
            sha256=header.sha256,
        ).encode()
    )
    out.flush()
    os.fsync(out.fileno())
