"""Runs cases in a child process with limits of time and memory, so that a hang or a crash is a finding too.

The child is a fork that starts with all modules loaded; after a crash the next one goes on behind it.
"""

import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

# Beyond what the process has already: a crafted size must not make the machine swap.
MEMORY_BYTES = 6 << 30
PATIENCE = 30

# Takes a case's number and an empty folder, and says what became of it; what it raises is a finding.
Case = Callable[[int, Path], str]


@dataclass
class Outcomes:
    """How many cases ended how, and the findings as number and text."""

    counts: Counter[str] = field(default_factory=Counter)
    findings: list[tuple[int, str]] = field(default_factory=list)

    def add(self, number: int, outcome: str, text: str) -> None:
        if outcome == "finding":
            self.findings.append((number, text))
        self.counts[outcome] += 1


def run_cases(case: Case, numbers: Sequence[int], scratch: Path, limit_s: float) -> Outcomes:
    """Runs all cases; each may take `limit_s` of processor time, and PATIENCE times that by the clock, which other
    work on the machine may take. Folders of cases that are findings are left in `scratch`.
    """
    outcomes, left = Outcomes(), list(numbers)
    while left:
        ours, theirs = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(
            target=_serve, args=(theirs, case, left, scratch)
        )
        child.start()
        theirs.close()
        try:
            left = _collect(ours, child, left, outcomes, limit_s)
        finally:
            child.kill()
            child.join()
            ours.close()
    return outcomes


def _collect(
    conn: Connection,
    child: multiprocessing.process.BaseProcess,
    left: list[int],
    outcomes: Outcomes,
    limit_s: float,
) -> list[int]:
    """Takes outcomes until the child ends; the cases that are left then."""
    while left:
        if not _ends(conn, child, limit_s):
            outcomes.add(left[0], "finding", f"hangs: no end in {limit_s:g} s")
            return left[1:]
        try:
            outcome, text = conn.recv()
        except EOFError:
            child.join()
            outcomes.add(left[0], "finding", f"the process died, exit code {child.exitcode}")
            return left[1:]
        outcomes.add(left[0], outcome, text)
        left = left[1:]
    return left


def _ends(conn: Connection, child: multiprocessing.process.BaseProcess, limit_s: float) -> bool:
    """Waits for the next outcome or the child's end; False if its time is over."""
    began_s, began_cpu_s = time.monotonic(), _cpu_s(child.pid)
    while not conn.poll(0.2):
        waited_s = time.monotonic() - began_s
        if _cpu_s(child.pid) - began_cpu_s > limit_s or waited_s > PATIENCE * limit_s:
            return False
    return True


def _cpu_s(pid: int | None) -> float:
    """Seconds of processor time a process has taken."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _serve(conn: Connection, case: Case, numbers: list[int], scratch: Path) -> None:
    _limit_memory()
    # What libraries write themselves is no outcome, and would hide the report.
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, sys.stdout.fileno())
    os.dup2(quiet, sys.stderr.fileno())
    for number in numbers:
        folder = Path(tempfile.mkdtemp(prefix=f"{number}-", dir=scratch))
        try:
            outcome, text = case(number, folder), ""
        # A panic of a Rust library and SystemExit are no Exception.
        except BaseException as error:
            outcome, text = "finding", _describe(error)
        conn.send((outcome, text))
        if outcome != "finding":
            shutil.rmtree(folder, ignore_errors=True)
    conn.close()


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY_BYTES
    with suppress(ValueError):
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def _describe(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)[-5:]
    where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))
    return f"{type(error).__name__}: {str(error)[:300]} [{where}]"
