"""Runs killed at random and resumed on another rank count export the bytes of an undisturbed run.

JANUS_KILL_RUNS sets how many runs (default 3), JANUS_KILL_SEED where the random choices start.
"""

import os
import random
import signal
import subprocess
import time
import uuid
from pathlib import Path

import pytest

from tests.jobs.launcher import (
    TIME_LIMIT_S,
    environment,
    export_text,
    janus_command,
    run_janus,
    write_rows,
)

NUM_RUNS = int(os.environ.get("JANUS_KILL_RUNS", "3"))
SEED = int(os.environ.get("JANUS_KILL_SEED", "0"))
LAUNCHES = [(1, "colocated"), (2, "1a1e"), (3, "1a2e"), (3, "2a1e"), (4, "2a2e"), (3, "colocated")]
NUM_ROWS = 480
MAX_KILLS, MAX_LAUNCHES = 4, 12
MARK = "JANUS_TEST_MARK"
TASKS = ["reverse: {}", "sort: {}", "upper: {}", "count letters in {}", "{}+{}="]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, float]:
    """A folder with the input, the export of a run nobody disturbed, and its wall time."""
    folder = tmp_path_factory.mktemp("kill")
    generator = random.Random(3)
    rows = []
    for index in range(NUM_ROWS):
        word = "".join(generator.choice("abcdefghij") for _ in range(generator.randrange(2, 40)))
        row = {
            "prompt": generator.choice(TASKS).format(word, index),
            "max_tokens": generator.randrange(1, 60),
        }
        kind = index % 3
        row |= {"temperature": [0, 1.0, 0.7][kind], "ignore_eos": True}
        row |= {"logprobs": 2} if index % 10 == 1 else {}
        row |= {"top_p": 0.9, "n": 2} if index % 20 == 2 else {}
        rows.append(row)
    rows[17] = {"prompt": ""}
    write_rows(folder / "rows.jsonl", rows)
    started = time.monotonic()
    run_janus(2, "infer", "rows.jsonl", "-o", "calm.h5", "--split", "1a1e", cwd=folder, check=3)
    return folder, export_text(folder / "calm.h5", folder), time.monotonic() - started


@pytest.mark.parametrize("run", range(NUM_RUNS))
def test_a_killed_run_resumes_to_the_same_bytes(
    undisturbed: tuple[Path, str, float], run: int
) -> None:
    folder, expected, typical_s = undisturbed
    choice = random.Random(SEED * 1000 + run)
    out = f"run-{run}.h5"
    for attempt in range(MAX_LAUNCHES):
        num_ranks, split = choice.choice(LAUNCHES)
        kill_after_s = choice.uniform(0.4, 1.1) * typical_s if attempt < MAX_KILLS else None
        code = launch(folder, out, num_ranks, split, kill_after_s, choice)
        if code == 3:
            break
    assert code == 3, f"no launch completed, last exit code {code}"
    assert export_text(folder / out, folder) == expected


def launch(
    folder: Path,
    out: str,
    num_ranks: int,
    split: str,
    kill_after_s: float | None,
    choice: random.Random,
) -> int:
    """One launch, a random rank of it killed after a while; returns mpirun's exit code."""
    mark = uuid.uuid4().hex
    command = janus_command(num_ranks, "infer", "rows.jsonl", "-o", out, "--split", split)
    with (folder / "log.txt").open("a") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment() | {MARK: mark}, stdout=log, stderr=log
        )
        if kill_after_s is not None:
            try:
                process.wait(kill_after_s)
            except subprocess.TimeoutExpired:
                ranks = marked_ranks(mark)
                if ranks:
                    os.kill(choice.choice(ranks), signal.SIGKILL)
        return process.wait(TIME_LIMIT_S)


def marked_ranks(mark: str) -> list[int]:
    """Process ids of this launch's ranks: python processes that carry the mark."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environ = (entry / "environ").read_bytes()
                name = (entry / "comm").read_text()
            except OSError:
                continue
            if f"{MARK}={mark}".encode() in environ and not name.startswith(("mpi", "hydra")):
                found.append(int(entry.name))
    return sorted(found)
