"""Sends a signal to a rank of a running job when something has happened."""

import os
import random
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

from janus_hpc.results.record import HEADER_BYTES
from tests.jobs.launcher import TIME_LIMIT_S, environment, janus_command, wait_until
from tests.jobs.test_kill_resume import MARK, marked_ranks


def has_rows(run_dir: Path) -> bool:
    """Whether some rank's journal holds more than its header: rows are written as they finish."""
    return any(path.stat().st_size > HEADER_BYTES for path in run_dir.glob("*.jnl"))


def signal_when(
    num_ranks: int,
    args: Sequence[str | Path],
    cwd: Path,
    happened: Callable[[str], bool],
    number: signal.Signals,
    *,
    which: int | None = None,
) -> tuple[int, str]:
    """Start `janus-hpc` with these arguments, and signal rank `which` (any) once it has happened, which is asked with
    all that was said so far. mpirun's exit code and all that was said; no rank is left.
    """
    mark = uuid.uuid4().hex
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            janus_command(num_ranks, *args),
            cwd=cwd,
            env=environment() | {MARK: mark},
            stdout=subprocess.DEVNULL,
            stderr=log,
        )

        def said() -> str:
            return os.pread(log.fileno(), 1 << 24, 0).decode(errors="replace")

        wait_until(lambda: process.poll() is not None or happened(said()), "it happens")
        ranks = marked_ranks(mark)
        if ranks:
            os.kill(
                random.Random(num_ranks).choice(ranks) if which is None else ranks[which], number
            )
        code = process.wait(TIME_LIMIT_S)
        # The launcher ends before the last of its ranks is reaped.
        wait_until(lambda: not marked_ranks(mark), "all ranks have ended")
        return code, said()


def kill_when(num_ranks: int, args: list[str], cwd: Path, says: str, times: int = 1) -> None:
    """kill -9 of any rank once the log has `says` so many times; the job must end with an error."""

    def happened(said: str) -> bool:
        return said.count(says) >= times

    code, said = signal_when(num_ranks, args, cwd, happened, signal.SIGKILL)
    assert code != 0, said
