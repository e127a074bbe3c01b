"""Kills a rank of a running job when the job says something."""

import os
import random
import signal
import subprocess
import uuid
from pathlib import Path

from tests.jobs.launcher import TIME_LIMIT_S, environment, janus_command
from tests.jobs.test_kill_resume import MARK, marked_ranks


def kill_when(num_ranks: int, args: list[str], cwd: Path, says: str, times: int = 1) -> None:
    """Start `janus-hpc` with these arguments, and kill -9 one rank once `times` lines of its log had `says` in them.

    The job must end with an error.
    """
    mark = uuid.uuid4().hex
    with subprocess.Popen(
        janus_command(num_ranks, *args),
        cwd=cwd,
        env=environment() | {MARK: mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        num_said = 0
        for line in process.stderr:
            num_said += says in line
            if num_said == times:
                os.kill(random.Random(times).choice(marked_ranks(mark)), signal.SIGKILL)
                break
        process.stderr.read()
        assert process.wait(TIME_LIMIT_S) != 0
