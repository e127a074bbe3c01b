"""One case: a fault on a run of its own, launches until it is complete, and the verdict.

A kind of fault gets the case, starts launches by it and does its damage; the rest is the same for all.
"""

import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.bed import COMPLETE, Bed
from tests.faults.launch import Launch, Shape, random_shape, start
from tests.faults.oracle import judge

# Documented exit codes of `janus-hpc infer`.
DOCUMENTED = frozenset({0, 2, 3, 70, 71, 75})
OUT_NAME = "out.h5"
MAX_LAUNCHES = 6
TRACEBACK = "Traceback (most recent call last)"


class Missed(Exception):
    """The launch ended before the fault came: the case is tried anew."""


@dataclass
class Case:
    """`choice` decides everything; `findings` are what went wrong, in words."""

    number: int
    bed: Bed
    folder: Path
    choice: random.Random
    detail: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    lost: int = 0
    doubled: int = 0
    differing: int = 0
    num_shm_left: int = 0
    # Beside the documented ones, codes that a launcher gives for what was done to it.
    codes_allowed: frozenset[int] = frozenset()
    # Where the results go, and further arguments of every launch.
    out: Path = field(default=Path())
    arguments: list[str | Path] = field(default_factory=list)
    prefix: list[str | Path] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.out = self.folder / OUT_NAME

    @property
    def run_dir(self) -> Path:
        return self.out.with_name(f"{self.out.name}.run")

    @property
    def shm(self) -> Path:
        return self.bed.shm / self.folder.name

    def start(
        self,
        shape: Shape | None = None,
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> Launch:
        """Start a launch of a random shape, or of this one."""
        its = shape or random_shape(self.choice)
        arguments = [self.bed.rows, *self.arguments, *options]
        launch = start(
            self.folder,
            self.out,
            its,
            arguments,
            prefix=[*self._own_shm(), *self.prefix],
            env=env,
        )
        self.launches.append(launch)
        return launch

    def end(self, launch: Launch, allowed: frozenset[int] = DOCUMENTED) -> int:
        """Wait for it, and hold its end against what is allowed."""
        code = launch.end()
        self.codes.append(code)
        where = launch.log.name
        self.findings += [f"{where}: {its}" for its in launch.left]
        if code not in allowed | self.codes_allowed:
            self.findings.append(f"{where}: exit {code}, allowed {sorted(allowed)}")
        if TRACEBACK in launch.text():
            self.findings.append(f"{where}: a traceback")
        self._count_shm()
        return code

    def expect(self, holds: bool, text: str) -> None:
        if not holds:
            self.findings.append(text)

    def recover(self) -> None:
        """Launch on other ranks until the run is complete: the first launch must do it."""
        for attempt in range(MAX_LAUNCHES):
            launch = self.start()
            code = self.end(launch)
            if code == COMPLETE:
                break
            self.findings.append(f"{launch.log.name}: a resume ended with {code}")
            if attempt == MAX_LAUNCHES - 1 or launch.left:
                self.findings.append("no launch completed the run")
                return
        self.judge()

    def judge(self) -> None:
        """Compare the results with the undisturbed run's."""
        verdict = judge(self.out, self.bed.expected)
        self.lost, self.doubled = verdict.lost, verdict.doubled
        self.differing = verdict.differing
        self.findings += verdict.findings
        if self.lost or self.doubled or self.differing:
            counts = f"{self.lost} rows lost, {self.doubled} doubled, {self.differing} differing"
            self.findings.append(counts)

    def _own_shm(self) -> list[str | Path]:
        """Shared memory of its own, so that what is left there is this case's."""
        if not self.bed.can_mount:
            return []
        self.shm.mkdir(exist_ok=True)
        self.shm.chmod(0o1777)
        script = 'mount --bind "$0" /dev/shm && exec "$@"'
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, self.shm]

    def _count_shm(self) -> None:
        """MPICH leaves its own segments behind where ranks are killed; they are counted, others are findings."""
        if not self.bed.can_mount:
            return
        names = [path.name for path in self.shm.iterdir()]
        others = [name for name in names if not name.startswith("mpich_shm_")]
        self.num_shm_left += len(names) - len(others)
        if others:
            self.findings.append(f"left in shared memory: {others}")
        shutil.rmtree(self.shm)
