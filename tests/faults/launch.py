"""One launch of `janus-hpc infer` under mpirun: where it is, which processes it has, and how it ended.

Every wait has a limit. Knows nothing of faults.
"""

import os
import random
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from janus_hpc.results.record import (
    HEADER_BYTES,
    RECORD_BYTES,
    RecordHead,
    RecordType,
    decode_head,
)
from tests.jobs.launcher import environment, janus_command
from tests.jobs.test_kill_resume import MARK, marked_ranks

# A detector of hangs, for a machine that has other work, too.
LAUNCH_LIMIT_S = 300.0
# How long the processes of a launch may outlive their launcher.
LINGER_LIMIT_S = 30.0
POLL_S = 0.005


@dataclass(frozen=True)
class Shape:
    """Ranks, and the options of one launch."""

    num_ranks: int
    split: str
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join([f"{self.num_ranks} ranks", self.split, *self.options])


def random_shape(choice: random.Random, fewest: int = 1, borders: bool = False) -> Shape:
    """One to four ranks, fewer more often; with borders between batches where they are asked for, else sometimes."""
    shapes = {(1, "colocated"): 9, (2, "1a1e"): 8, (2, "colocated"): 4}
    shapes |= {(3, "2a1e"): 2, (3, "1a2e"): 2, (4, "2a2e"): 1}
    able = {its: weight for its, weight in shapes.items() if its[0] >= fewest}
    [(num_ranks, split)] = choice.choices(list(able), list(able.values()))
    options = ["--max-sequences", str(choice.choice([4, 6, 8]))]
    options += ["--microbatches", choice.choice(["1", "1", "2"])]
    if borders or choice.random() < 0.3:
        options += ["--batch-rows", str(choice.choice([8, 12, 16]))]
        turns = {2: "1a1e,colocated", 3: "2a1e,1a2e", 4: "2a2e,3a1e"}.get(num_ranks)
        if turns is not None and (borders or choice.random() < 0.5):
            return Shape(num_ranks, "auto", (*options, "--replan", turns))
    return Shape(num_ranks, split, tuple(options))


@dataclass
class Launch:
    """A running or ended launch. `code` is None until `end`; `left`: what its processes did wrong at the end."""

    shape: Shape
    run_dir: Path
    log: Path
    mark: str
    process: "subprocess.Popen[bytes]"
    code: int | None = None
    left: list[str] = field(default_factory=list)

    def text(self) -> str:
        """What was said on stderr so far."""
        return self.log.read_text(errors="replace")

    def ranks(self) -> list[int]:
        """Process ids of the ranks, rising."""
        return marked_ranks(self.mark)

    def processes(self) -> list[int]:
        """Process ids of all that this launch started, its launcher included."""
        mark = f"{MARK}={self.mark}".encode()
        return [pid for pid in _process_ids() if mark in _environ_of(pid)]

    def wait_for(self, happened: Callable[[], bool]) -> bool:
        """Wait until it has happened; False where the launch ended, or said nothing for too long, before."""
        deadline_s = time.monotonic() + LAUNCH_LIMIT_S
        while time.monotonic() < deadline_s:
            if self.process.poll() is not None:
                return False
            if happened():
                return True
            time.sleep(POLL_S)
        return False

    def end(self, limit_s: float = LAUNCH_LIMIT_S) -> int:
        """Wait for the launcher and all its processes; what does not end is killed and noted in `left`."""
        try:
            self.code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.left.append(f"did not end within {limit_s:g} s")
            self._kill_all()
            self.code = self.process.wait()
        deadline_s = time.monotonic() + LINGER_LIMIT_S
        while self.processes() and time.monotonic() < deadline_s:
            time.sleep(POLL_S)
        lingering = [name_of(pid) for pid in self.processes()]
        if lingering:
            self.left.append(f"{lingering} outlived their launcher by {LINGER_LIMIT_S:g} s")
            self._kill_all()
        return self.code

    def _kill_all(self) -> None:
        for pid in self.processes():
            send(pid, signal.SIGKILL)


def start(
    folder: Path,
    out: Path,
    shape: Shape,
    arguments: Sequence[str | Path],
    *,
    prefix: Sequence[str | Path] = (),
    env: Mapping[str, str] | None = None,
) -> Launch:
    """Start in `folder`, its stderr to a new file there; `prefix` stands before mpirun."""
    number = len(list(folder.glob("launch-*.txt")))
    log = folder / f"launch-{number}.txt"
    mark = uuid.uuid4().hex
    command = [*map(str, prefix), *janus_command(shape.num_ranks, "infer", *arguments)]
    command += ["-o", str(out), "--split", shape.split, *shape.options]
    environ = environment() | {"MPIEXEC_TIMEOUT": str(int(LAUNCH_LIMIT_S)), MARK: mark}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environ | dict(env or {}),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    run_dir = out.with_name(f"{out.name}.run")
    return Launch(shape=shape, run_dir=run_dir, log=log, mark=mark, process=process)


def rows_done(run_dir: Path) -> int:
    """Rows in the journals of a run, torn ends left out."""
    return sum(
        head.type in (RecordType.ROW, RecordType.FAIL)
        for path in run_dir.glob("*.jnl")
        for _, head in records(path.read_bytes())
    )


def records(data: bytes) -> list[tuple[int, RecordHead]]:
    """Offset and head of every record of a journal's bytes, up to what is cut off."""
    found = []
    offset = HEADER_BYTES
    while (head := decode_head(data[offset : offset + RECORD_BYTES])) is not None:
        if offset + RECORD_BYTES + head.num_bytes > len(data):
            break
        found.append((offset, head))
        offset += RECORD_BYTES + head.num_bytes
    return found


def send(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def name_of(pid: int) -> str:
    """The process's name and its world rank, for messages."""
    rank = next((its for its in _environ_of(pid).split(b"\0") if its.startswith(b"PMI_RANK=")), b"")
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        name = "ended"
    number = rank.decode().removeprefix("PMI_RANK=")
    return f"rank {number}" if number and "hydra" not in name else name


def _process_ids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _environ_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # ended meanwhile, or another user's
        return b""
