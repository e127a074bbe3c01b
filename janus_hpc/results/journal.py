"""Appends finished rows to this rank's own journal, durably.
 One file a start and rank, created exclusively and never appended to by a later start. Must not
know how rows are made.
"""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from janus_hpc.core import RowProgress, RowResult
from janus_hpc.errors import JanusError, UsageError
from janus_hpc.results.durable import sync_folder
from janus_hpc.results.record import (
    MAX_PAYLOAD_BYTES,
    Header,
    RecordType,
    encode_header,
    encode_record,
)

SYNC_INTERVAL_S = 1.0
SYNC_BYTES = 4 << 20


def journal_name(launch: int, world_rank: int) -> str:
    """The file name of a rank's journal."""
    return f"journal-{launch:04d}-{world_rank:05d}.jnl"


class JournalWriter:
    """One rank's journal of one start. Raises UsageError if the file cannot be created. Rows are
    written at once (they outlive the process) and synced in groups (they outlive the host). When
    a write or sync fails, JanusError is raised and the writer is dead: a failed sync is never
    tried again, since the kernel may already have dropped the pages.
    """

    def __init__(self, run_dir: Path, launch: int, world_rank: int, fingerprint: bytes) -> None:
        self.path = run_dir / journal_name(launch, world_rank)
        self.num_rows = 0
        self.num_durable = 0
        self._sequence = 0
        self._unsynced_bytes = 0
        self._last_sync_s: float | None = None
        self._folder_synced = False
        self._failure: str | None = None
        self._encoder = msgspec.msgpack.Encoder()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            self._fd = os.open(self.path, flags, 0o644)
        except FileExistsError:
            raise UsageError(
                f"{self.path}: exists already; a journal is never appended to"
            ) from None
        except OSError as error:
            raise UsageError(f"{self.path}: cannot create: {error.strerror}") from None
        self._write(encode_header(Header(fingerprint, launch, world_rank)))

    def append(self, result: RowResult) -> None:
        """Writes one row."""
        self.append_group((result,))

    def append_group(self, results: Sequence[RowResult]) -> None:
        """Writes rows with one system call."""
        if not results:
            return
        self._write(b"".join([self._encode(result) for result in results]))
        self.num_rows += len(results)

    def append_progress(self, rows: Sequence[RowProgress]) -> None:
        """Writes rows in flight, for a later launch to go on with; one that is too large for a record is
        left to be computed anew.
        """
        payloads = [(row.index, self._encoder.encode(row)) for row in rows]
        records = [
            self._record(RecordType.PARTIAL, index, payload)
            for index, payload in payloads
            if len(payload) <= MAX_PAYLOAD_BYTES
        ]
        if records:
            self._write(b"".join(records))

    def maybe_sync(self, now_s: float) -> bool:
        """Syncs if a second or 4 MiB has gathered; `now_s` is a monotonic clock. True if it
        synced.
        """
        if self._last_sync_s is None:
            self._last_sync_s = now_s
        due = now_s - self._last_sync_s >= SYNC_INTERVAL_S or self._unsynced_bytes >= SYNC_BYTES
        if not due or self.num_durable == self.num_rows:
            return False
        self._last_sync_s = now_s
        self.sync()
        return True

    def sync(self) -> None:
        """Makes every appended row durable; `num_durable` counts them afterwards."""
        if self.num_durable == self.num_rows:
            return
        self._sync_file()
        self.num_durable = self.num_rows
        self._write(self._record(RecordType.COMMIT, self.num_rows, b""))
        self._unsynced_bytes = 0

    def close(self) -> None:
        """Marks the journal complete, syncs and closes it."""
        if self._fd < 0:
            return
        self._write(self._record(RecordType.CLOSE, self.num_rows, b""))
        self._sync_file()
        self.num_durable = self.num_rows
        os.close(self._fd)
        self._fd = -1
        self._failure = "closed"

    def _encode(self, result: RowResult) -> bytes:
        payload = self._encoder.encode(result)
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise JanusError(
                f"{self.path}: row {result.index} ({result.id}) takes {len(payload)} bytes,"
                f" at most {MAX_PAYLOAD_BYTES} fit into a record"
            )
        kind = RecordType.ROW if result.error is None else RecordType.FAIL
        return self._record(kind, result.index, payload)

    def _record(self, kind: RecordType, row: int, payload: bytes) -> bytes:
        record = encode_record(kind, self._sequence, row, payload)
        self._sequence += 1
        return record

    def _write(self, data: bytes) -> None:
        self._refuse_if_dead()
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise self._die("write", error) from None
        self._unsynced_bytes += len(data)

    def _sync_file(self) -> None:
        self._refuse_if_dead()
        try:
            os.fdatasync(self._fd)
            # A removed file takes all that is written, and keeps none of it.
            if not os.path.samestat(os.stat(self.path), os.fstat(self._fd)):
                raise FileNotFoundError(errno.ENOENT, "another file has its name")
            if not self._folder_synced:
                sync_folder(self.path.parent)
                self._folder_synced = True
        except OSError as error:
            raise self._die("sync", error) from None

    def _die(self, verb: str, error: OSError) -> JanusError:
        self._failure = f"cannot {verb}: {error.strerror} (errno {error.errno})"
        os.close(self._fd)
        self._fd = -1
        return JanusError(f"{self.path}: {self._failure}")

    def _refuse_if_dead(self) -> None:
        if self._failure is not None:
            raise JanusError(f"{self.path}: {self._failure}")
