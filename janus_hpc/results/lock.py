"""One run at a time in a run folder: a lock file that the operating system gives up when the holder dies."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from janus_hpc.errors import UsageError

LOCK_NAME = "lock"


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Hold the folder's lock inside the block. For one process of a run.

    Errors: UsageError naming host and process of the run that holds it.
    """
    with (run_dir / LOCK_NAME).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UsageError(f"another run is writing to {run_dir} ({holder})") from error
        file.truncate(0)
        file.write(f"host {socket.gethostname()}, process {os.getpid()}")
        file.flush()
        yield
