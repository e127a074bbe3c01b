"""A rank stopped or killed and a link cut in mid-run: the message, the exit code, and a resume.

JANUS_CLUSTER_LINKS=all tries every failure with both links.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cluster import Bed, emulated_cluster, missing
from tests.jobs.launcher import export_text, write_rows

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

JANUS = str(Path(sys.executable).with_name("janus-hpc"))
NUM_ROWS = 200
TIMEOUT_S = 4
START_LIMIT_S, END_LIMIT_S = 60, 60
POLL_S = 0.05
ALL_LINKS = os.environ.get("JANUS_CLUSTER_LINKS") == "all"
# Who waits for whom: role, role rank, world rank and host on both sides, layer, microbatch, bytes.
RANK = r"(attention|expert) \d+/\d+@node\d"
WAITS = re.compile(
    rf"{RANK} waits for \w+ of layer \d+, microbatch \d+ from {RANK}.* "
    r"\(\d+ bytes expected, \d+ received\)"
)


def write_input(folder: Path) -> Path:
    rows = [
        {"prompt": f"reverse: {'abcdefgh'[: 1 + i % 8]}", "max_tokens": 64, "ignore_eos": True}
        for i in range(NUM_ROWS)
    ]
    return write_rows(folder / "rows.jsonl", rows)


def infer(name: str, *options: str) -> list[str]:
    limit = ["--comm-timeout-s", str(TIMEOUT_S)]
    return [
        JANUS,
        "infer",
        "rows.jsonl",
        "-o",
        f"{name}.h5",
        "--max-sequences",
        "16",
        *limit,
        *options,
    ]


def start(bed: Bed, folder: Path, name: str, *options: str) -> subprocess.Popen[str]:
    """Start a run and return when it has answered rows."""
    job = bed.popen(
        infer(name, "--split", "2a2e", *options),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    progress = folder / f"{name}.h5.progress.json"
    deadline_s = time.monotonic() + START_LIMIT_S
    while not (progress.exists() and json.loads(progress.read_text())["rows_done"]):
        assert time.monotonic() < deadline_s and job.poll() is None, job.communicate(timeout=5)
        time.sleep(POLL_S)
    return job


def disturb(
    bed: Bed, job: subprocess.Popen[str], how: Callable[[], None]
) -> tuple[str, int, float]:
    """The output, the exit code and how long the job took to end."""
    how()
    started_s = time.monotonic()
    text, _ = job.communicate(timeout=END_LIMIT_S)
    return text, job.returncode, time.monotonic() - started_s


def pid_of(bed: Bed, node: int) -> int:
    return bed.pids(node, "janus-hpc")[-1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("failures")
    write_input(folder)
    return folder


@pytest.mark.parametrize("inter", ["mpi", "ucx"] if ALL_LINKS else ["mpi"])
def test_a_stopped_rank_ends_the_job(folder: Path, inter: str) -> None:
    """The time limit is met although the stopped rank cannot do anything about it."""
    with emulated_cluster([2, 2], "1gbit") as bed:
        job = start(bed, folder, f"stop-{inter}", "--inter", inter, "--microbatches", "2")
        victim = pid_of(bed, 1)
        text, code, seconds = disturb(bed, job, lambda: os.kill(victim, signal.SIGSTOP))
    assert code == 71, f"{code}\n{text}"
    assert WAITS.search(text), text
    print(f"stopped rank, {inter}: exit 71 after {seconds:.1f} s")


def test_a_killed_rank_ends_the_job(folder: Path) -> None:
    """The launcher ends the others, with an exit code of its own."""
    with emulated_cluster([2, 2], "1gbit") as bed:
        job = start(bed, folder, "kill", "--inter", "ucx")
        victim = pid_of(bed, 1)
        text, code, seconds = disturb(bed, job, lambda: os.kill(victim, signal.SIGKILL))
        assert code != 0, text
        print(f"killed rank: exit {code} after {seconds:.1f} s")
        deadline_s = time.monotonic() + END_LIMIT_S
        while left := bed.pids(0, "janus-hpc") + bed.pids(1, "janus-hpc"):
            assert time.monotonic() < deadline_s, left
            time.sleep(POLL_S)


@pytest.mark.parametrize("inter", ["mpi", "ucx"] if ALL_LINKS else ["ucx"])
def test_a_cut_link_ends_the_job_and_the_rest_is_resumed(folder: Path, inter: str) -> None:
    """The resumed run has another split and another kind, and gives an undisturbed run's bytes."""
    name = f"cut-{inter}"
    with emulated_cluster([2, 2], "1gbit") as bed:
        job = start(bed, folder, name, "--inter", inter)
        text, code, seconds = disturb(bed, job, lambda: bed.cut(1))
        assert code == 71, f"{code}\n{text}"
        assert WAITS.search(text) or "UCX link" in text, text
        print(f"cut link, {inter}: exit 71 after {seconds:.1f} s")
        bed.mend(1)
        resumed = bed.mpirun(
            infer(name, "--split", "1a3e", "--exchange", "relay"), timeout_s=120, cwd=folder
        )
        assert resumed.returncode == 0, resumed.stderr
        assert "resuming" in resumed.stderr
    calm = subprocess.run(
        infer("calm", "--overwrite"),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert calm.returncode == 0, calm.stderr
    assert export_text(folder / f"{name}.h5", folder) == export_text(folder / "calm.h5", folder)
