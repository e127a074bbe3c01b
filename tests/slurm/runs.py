"""Jobs of the batch scripts in slurm/, seen from outside: submitted, watched, signalled and compared.

Knows what a run leaves behind; nothing of how Slurm is set up.
"""

import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.jobs.killing import has_rows
from tests.slurm.cluster import UNFINISHED, Cluster, wait_until

SCRIPTS = Path(__file__).resolve().parents[2] / "slurm"
JOB_LIMIT_S = 300.0


def make_rows(num_rows: int) -> list[dict[str, Any]]:
    """Rows of 60 tokens each, greedy and drawn ones in turn; the same at every call."""
    generator = random.Random(5)
    rows = []
    for index in range(num_rows):
        word = "".join(generator.choice("abcdefghij") for _ in range(generator.randrange(2, 30)))
        task = generator.choice(["Reverse: {} =", "Sort: {} =", "Upper: {} ="])
        row = {"prompt": task.format(word), "max_tokens": 60, "ignore_eos": True}
        rows.append(row | {"temperature": index % 2})
    return rows


def output_of(folder: Path, job: str) -> str:
    """What the job wrote, all its starts."""
    return "\n".join(path.read_text() for path in sorted(folder.glob(f"janus*-{job}.out")))


def finish(
    cluster: Cluster, folder: Path, job: str, ended: tuple[str, str] = ("COMPLETED", "0:0")
) -> str:
    """Wait for the job's end, which must be `ended`, and return what it wrote."""
    found = cluster.wait_for(job, JOB_LIMIT_S)
    output = output_of(folder, job)
    assert found == ended, f"{found}, not {ended}\n{output[-3000:]}"
    return output


def wait_for_rows(cluster: Cluster, folder: Path, job: str, output: str) -> None:
    """Until some rank's journal of the running job holds more than its header: rows are written as they finish."""
    run_dir = folder / f"{output}.run"

    def is_over() -> bool:
        return state_of(cluster, job) not in UNFINISHED

    wait_until(lambda: has_rows(run_dir) or is_over(), "a row is journalled", JOB_LIMIT_S)
    assert has_rows(run_dir), (
        f"{state_of(cluster, job)} without a row\n{output_of(folder, job)[-3000:]}"
    )


def state_of(cluster: Cluster, job: str) -> str:
    return cluster.command("squeue", "--noheader", "--states=all", "-j", job, "-o", "%T").strip()


def ranks(cluster: Cluster, job: str) -> dict[int, int]:
    """World rank -> process id of the job's ranks."""
    found = {}
    for pid in cluster.processes():
        with suppress(OSError):
            environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            values = dict(item.split(b"=", 1) for item in environ if b"=" in item)
            is_rank = b"infer" in words and b"srun" not in words and b"SLURM_STEP_ID" in values
            if is_rank and values.get(b"SLURM_JOB_ID") == job.encode():
                found[int(values[b"SLURM_PROCID"])] = pid
    return found


@contextmanager
def frozen(pids: list[int]) -> Iterator[None]:
    """The processes stand still inside the block."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@contextmanager
def nodes_out(cluster: Cluster, *names: str, state: str = "DRAIN") -> Iterator[None]:
    """These nodes take no new jobs inside the block; afterwards the cluster is as before."""
    cluster.command(
        "scontrol", "update", f"NodeName={','.join(names)}", f"State={state}", "Reason=test"
    )
    try:
        yield
    finally:
        for name in names:
            # A node that was set down comes back by itself, and then there is nothing to resume.
            with suppress(AssertionError):
                cluster.command("scontrol", "update", f"NodeName={name}", "State=RESUME")
        wait_until(cluster.nodes_are_idle, "all nodes are idle", JOB_LIMIT_S)
