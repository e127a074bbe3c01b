"""One run at a time in a run folder: a lock file that the operating system gives up when the holder dies."""

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from janus_hpc.errors import UsageError

log = logging.getLogger(__name__)

LOCK_NAME = "lock"


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Hold the folder's lock inside the block. For one process of a run.

    Where the file system has no locks, this is said, and the run goes on without.
    Errors: UsageError naming host and process of the run that holds it, or why there can be no lock file.
    """
    path = run_dir / LOCK_NAME
    try:
        file = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UsageError(f"another run is writing to {run_dir} ({holder})") from error
        except OSError as error:
            log.warning(
                "%s: the file system has no locks (%s): a second run here would not be refused",
                path,
                error.strerror,
            )
        file.truncate(0)
        file.write(f"host {socket.gethostname()}, process {os.getpid()}")
        file.flush()
        yield
