"""Starts whole jobs the way a user does, with mpirun and a time limit; a hang is a failure."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TIME_LIMIT_S = 180


def mpirun_command(num_ranks: int) -> list[str]:
    """mpirun of this environment, or of the system."""
    beside = Path(sys.executable).with_name("mpirun")
    command = str(beside) if beside.exists() else shutil.which("mpirun")
    assert command is not None, "no mpirun: install the [mpich] extra"
    return [command, "-n", str(num_ranks)]


def janus_command(num_ranks: int, *args: str | Path) -> list[str]:
    """`janus-hpc` under mpirun; 0 ranks means without mpirun."""
    program = [str(Path(sys.executable).with_name("janus-hpc")), *map(str, args)]
    return program if num_ranks == 0 else mpirun_command(num_ranks) + program


def environment() -> dict[str, str]:
    return os.environ | {"MPIEXEC_TIMEOUT": str(TIME_LIMIT_S)}


def run_janus(
    num_ranks: int, *args: str | Path, cwd: Path, check: int | None = 0
) -> subprocess.CompletedProcess[str]:
    """Run to the end and compare the exit code; None accepts any."""
    done = subprocess.run(
        janus_command(num_ranks, *args),
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S + 20,
        check=False,
    )
    assert check is None or done.returncode == check, (
        f"{args} on {num_ranks} ranks: exit {done.returncode}, expected {check}\n"
        f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    )
    return done


def wait_until(happened: Callable[[], bool], what: str, limit_s: float = TIME_LIMIT_S) -> None:
    """Poll until it has happened; AssertionError after `limit_s` seconds."""
    deadline_s = time.monotonic() + limit_s
    while not happened():
        assert time.monotonic() < deadline_s, f"not within {limit_s:.0f} s: {what}"
        time.sleep(0.05)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def export_rows(results: Path, cwd: Path) -> list[dict[str, Any]]:
    """The rows of a results file without timing, through the command a user would take."""
    text = export_text(results, cwd)
    return [json.loads(line) for line in text.splitlines()]


def export_text(results: Path, cwd: Path) -> str:
    done = run_janus(0, "results", "export", results, "--to", "jsonl", "--no-timing", cwd=cwd)
    return done.stdout
