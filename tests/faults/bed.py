"""What all cases of a campaign share: the rows, the answers of an undisturbed run, and what this machine can do."""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.faults.oracle import export
from tests.jobs.launcher import run_janus, write_rows
from tests.slurm.cluster import missing_program

NUM_ROWS = 32
# One row is bad on purpose, so that a complete run ends with 3.
COMPLETE = 3
ROWS_NAME, CALM_NAME = "rows.jsonl", "calm.h5"
ISOLATED = "JANUS_TEST_ISOLATED"
_TASKS = ("Reverse: {} =", "Sort: {} =", "Upper: {} =")


@dataclass(frozen=True)
class Bed:
    """`folder` holds the rows and everything a campaign writes; `expected` is the export of the undisturbed run,
    which took `num_bytes` of disk at its most, journals and results together.
    """

    folder: Path
    expected: str
    num_bytes: int
    can_mount: bool
    heeds_permissions: bool
    has_slurm: bool

    @property
    def rows(self) -> Path:
        return self.folder / ROWS_NAME

    @property
    def shm(self) -> Path:
        """Where a case's shared memory lies, a folder each; only where mounting is possible."""
        return self.folder / "shm"


@contextmanager
def make_bed(folder: Path, slurm: bool) -> Iterator[Bed]:
    """Write the rows and run them undisturbed, on one rank; what is mounted is unmounted after the block."""
    write_rows(folder / ROWS_NAME, _rows())
    run_janus(0, "infer", ROWS_NAME, "-o", CALM_NAME, cwd=folder, check=COMPLETE)
    can_mount = os.environ.get(ISOLATED) == "1"
    shm = folder / "shm"
    if can_mount:
        shm.mkdir()
        mount(shm, "2g")
    bed = Bed(
        folder=folder,
        expected=export(folder / CALM_NAME),
        num_bytes=4 * (folder / CALM_NAME).stat().st_size,
        can_mount=can_mount,
        heeds_permissions=_heeds_permissions(folder),
        has_slurm=slurm and missing_program() is None,
    )
    try:
        yield bed
    finally:
        if can_mount:
            unmount(shm)


def mount(folder: Path, size: str) -> None:
    """A file system in memory; it goes away with the campaign, which has its mounts to itself."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", folder], check=True)


def without_override() -> list[str]:
    """What to put before a command that is to heed permissions, whoever runs it."""
    if os.getuid():
        return []
    taken = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={taken}", f"--inh-caps={taken}"]


def _heeds_permissions(folder: Path) -> bool:
    """Whether such a command exists and cannot write where nobody may."""
    closed = folder / "closed"
    closed.mkdir(mode=0o555)
    command = [*without_override(), "touch", str(closed / "file")]
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode != 0


def _rows() -> list[dict[str, object]]:
    generator = random.Random(7)
    rows: list[dict[str, object]] = []
    for index in range(NUM_ROWS):
        word = "".join(generator.choice("abcdefghij") for _ in range(generator.randrange(2, 30)))
        row: dict[str, object] = {"prompt": generator.choice(_TASKS).format(word)}
        row |= {"max_tokens": generator.randrange(10, 48), "ignore_eos": True}
        row |= {"temperature": index % 2}
        row |= {"logprobs": 2} if index % 7 == 3 else {}
        row |= {"n": 2, "temperature": 1.0} if index % 9 == 4 else {}
        row |= {"stop": ["q", "zz"], "frequency_penalty": 0.3} if index % 11 == 2 else {}
        rows.append(row)
    rows[17] = {"prompt": ""}
    return rows
