"""Reads journals: which rows they hold and where. A torn tail is ignored; damage before valid
records is refused.
"""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

import msgspec
import numpy as np

from janus_hpc.core import RowProgress, RowResult
from janus_hpc.errors import JournalError
from janus_hpc.results.record import (
    HEADER_BYTES,
    RECORD_BYTES,
    RecordHead,
    RecordType,
    decode_head,
    decode_header,
    is_intact,
)

_NAME = re.compile(r"^journal-(\d{4,})-(\d{5,})\.jnl$")
_BUFFER_BYTES = 1 << 20
_WINDOW_BYTES = 1 << 20
# Where a record keeps its type and the upper half of its sequence number, which no real journal
# reaches.
_TYPE_AT = 8
_HIGH_SEQUENCE_AT = 13

_decode_result = msgspec.msgpack.Decoder(RowResult).decode
_decode_progress = msgspec.msgpack.Decoder(RowProgress).decode
_Row = TypeVar("_Row", RowResult, RowProgress)


class JournalPath(NamedTuple):
    """A journal of a run folder and whose it is, as its name says."""

    launch: int
    world_rank: int
    path: Path


class RecordRef(NamedTuple):
    """Where a row's record lies: `offset` and `num_bytes` (without the fixed part) in bytes.

    `failed`: the row ended in an error.
    """

    offset: int
    num_bytes: int
    row: int
    failed: bool


def list_journals(run_dir: Path) -> list[JournalPath]:
    """The journals in `run_dir`, by launch and world rank."""
    matches = ((path, _NAME.match(path.name)) for path in run_dir.iterdir())
    return sorted(JournalPath(int(m[1]), int(m[2]), path) for path, m in matches if m)


class JournalScan:
    """Iterates over the rows of one journal; afterwards `torn_bytes` and `closed` say how it
    ends, and `partials` where it holds rows in flight. Raises JournalError if the journal belongs
    to another run, cannot be read, or holds valid records after a bad one.
    """

    def __init__(self, path: Path, fingerprint: bytes) -> None:
        self.path = path
        self.torn_bytes = 0
        self.closed = False
        self.partials: list[RecordRef] = []
        self._fingerprint = fingerprint
        self._sequence = 0

    def __iter__(self) -> Iterator[RecordRef]:
        self.torn_bytes, self.closed, self._sequence = 0, False, 0
        self.partials = []
        try:
            with self.path.open("rb", buffering=_BUFFER_BYTES) as file:
                yield from self._scan(file)
        except OSError as error:
            raise JournalError(f"{self.path}: cannot read: {error.strerror}") from None

    def _scan(self, file: IO[bytes]) -> Iterator[RecordRef]:
        size_bytes = os.fstat(file.fileno()).st_size
        if not self._check_header(file.read(HEADER_BYTES)):
            self._check_tail(file, 0, size_bytes)
            return
        offset = HEADER_BYTES
        while offset < size_bytes:
            head = decode_head(file.read(RECORD_BYTES))
            if head is None or not self._is_next(file, head, size_bytes):
                self._check_tail(file, offset, size_bytes)
                return
            self._sequence += 1
            self.closed = head.type == RecordType.CLOSE
            failed = head.type == RecordType.FAIL
            record = RecordRef(offset, head.num_bytes, head.row, failed)
            if head.type == RecordType.PARTIAL:
                self.partials.append(record)
            elif head.type <= RecordType.FAIL:
                yield record
            offset += RECORD_BYTES + head.num_bytes

    def _check_header(self, data: bytes) -> bool:
        header = decode_header(data)
        if header is None:
            return False
        if header.fingerprint != self._fingerprint:
            raise JournalError(
                f"{self.path}: belongs to another run: fingerprint {header.fingerprint.hex()[:16]},"
                f" expected {self._fingerprint.hex()[:16]}"
            )
        return True

    def _is_next(self, file: IO[bytes], head: RecordHead, size_bytes: int) -> bool:
        """True if the record at the file's position is the next one and is whole; reads its
        payload.
        """
        if head.sequence != self._sequence or file.tell() + head.num_bytes > size_bytes:
            return False
        return is_intact(head, file.read(head.num_bytes))

    def _check_tail(self, file: IO[bytes], start: int, size_bytes: int) -> None:
        """Everything from `start` is bad: a torn write, unless a valid record stands somewhere
        after it.
        """
        for window in range(start, size_bytes, _WINDOW_BYTES):
            file.seek(window)
            data = file.read(_WINDOW_BYTES + RECORD_BYTES)
            for at in _candidates(data):
                if at < _WINDOW_BYTES and self._is_later_record(file, window + at, size_bytes):
                    raise JournalError(
                        f"{self.path}: damaged at byte {start}: a valid record follows at byte"
                        f" {window + at}; restore the file or remove it to recompute its rows"
                    )
        self.torn_bytes = size_bytes - start

    def _is_later_record(self, file: IO[bytes], offset: int, size_bytes: int) -> bool:
        file.seek(offset)
        head = decode_head(file.read(RECORD_BYTES))
        if head is None or file.tell() + head.num_bytes > size_bytes:
            return False
        return head.sequence >= self._sequence and is_intact(head, file.read(head.num_bytes))


def _candidates(data: bytes) -> list[int]:
    """Offsets in `data` that could start a record, judged by type and sequence number."""
    bytes_N = np.frombuffer(data, np.uint8)
    count = len(bytes_N) - RECORD_BYTES + 1
    if count <= 0:
        return []
    types = bytes_N[_TYPE_AT : _TYPE_AT + count]
    possible = (types >= RecordType.ROW) & (types <= RecordType.PARTIAL)
    for at in range(_HIGH_SEQUENCE_AT, _HIGH_SEQUENCE_AT + 4):
        possible &= bytes_N[at : at + count] == 0
    found: list[int] = np.flatnonzero(possible).tolist()
    return found


def read_record(fd: int, offset: int) -> RowResult:
    """The row result of the record at `offset` of an open journal. Raises JournalError if it is
    damaged.
    """
    return _decoded(fd, offset, _decode_result)


def read_progress(path: Path, offset: int) -> RowProgress:
    """The row in flight of the record at `offset` of a journal. Raises JournalError if it cannot be
    read.
    """
    try:
        with path.open("rb") as file:
            return _decoded(file.fileno(), offset, _decode_progress)
    except OSError as error:
        raise JournalError(f"{path}: cannot read: {error.strerror}") from None
    except JournalError as error:
        raise JournalError(f"{path}: {error}") from None


def _decoded(fd: int, offset: int, decode: Callable[[bytes], _Row]) -> _Row:
    head = decode_head(os.pread(fd, RECORD_BYTES, offset))
    if head is None:
        raise JournalError(f"no record at byte {offset}")
    payload = os.pread(fd, head.num_bytes, offset + RECORD_BYTES)
    if not is_intact(head, payload):
        raise JournalError(f"damaged record at byte {offset}")
    try:
        row = decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise JournalError(f"record at byte {offset} was not written by us: {error}") from None
    if row.index != head.row:
        raise JournalError(f"record at byte {offset} is of row {head.row}, but holds {row.index}")
    return row
