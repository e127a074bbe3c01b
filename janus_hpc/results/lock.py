"""One run at a time in a run folder: a lock file that the operating system gives up when the holder dies."""

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from janus_hpc.errors import UsageError

log = logging.getLogger(__name__)

LOCK_NAME = "lock"
_POLL_S = 0.2


@contextmanager
def run_lock(run_dir: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Hold the folder's lock inside the block. For one process of a run. `wait_s`: how long another holder is waited
    for: a file server may take a host that is gone for the holder for some time.

    Where the file system has no locks, this is said, and the run goes on without.
    Errors: UsageError naming host and process of the run that holds it, or why there can be no lock file.
    """
    path = run_dir / LOCK_NAME
    try:
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
    with file:
        deadline_s = time.monotonic() + wait_s
        while not _take(file, path):
            if time.monotonic() >= deadline_s:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise UsageError(f"another run is writing to {run_dir} ({holder})")
            # flock itself waits without a limit.
            time.sleep(_POLL_S)
        file.truncate(0)
        file.write(f"host {socket.gethostname()}, process {os.getpid()}")
        file.flush()
        yield


def _take(file: IO[str], path: Path) -> bool:
    """Try to get the lock: whether it is ours now; True also where there are no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning(
            "%s: the file system has no locks (%s): a second run here would not be refused",
            path,
            error.strerror,
        )
    return True
