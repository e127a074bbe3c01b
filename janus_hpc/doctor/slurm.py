"""Check `slurm`: how long the job may still run, and whether it is started again."""

import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from janus_hpc.doctor.check import Check, Skip
from janus_hpc.doctor.context import Context
from janus_hpc.doctor.finding import Finding, fine, note, warning

_LITTLE_S = 600.0
_ASK_S = 10.0


@dataclass(frozen=True, kw_only=True)
class SlurmFacts:
    """`left_s`: until the job's end; `requeues`: whether a preempted job starts again; None: not known."""

    job_id: str
    left_s: float | None = None
    requeues: bool | None = None


def gather(context: Context) -> SlurmFacts | None:
    """On rank 0; None elsewhere."""
    if context.world_rank != 0:
        return None
    env = context.env
    if not env.job_id:
        raise Skip("not in a Slurm job")
    shown = _ask(env.job_id)
    # Older Slurms set no variable.
    end_s = env.job_end_unix_s or end_time(shown)
    match = re.search(r"\bRequeue=([01])\b", shown)
    return SlurmFacts(
        job_id=env.job_id,
        left_s=None if end_s is None else end_s - time.time(),
        requeues=None if match is None else match[1] == "1",
    )


def end_time(shown: str) -> float | None:
    """When a job ends by `scontrol show job`, Unix time; None where it does not say (UNLIMITED)."""
    match = re.search(r"\bEndTime=(\d{4}-\S+)", shown)
    if match is None:
        return None
    try:
        return datetime.fromisoformat(match[1]).timestamp()
    except ValueError:
        return None


def _ask(job_id: str) -> str:
    """What Slurm says of the job, "" where it does not answer."""
    program = shutil.which("scontrol")
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, "show", "job", job_id, "--oneliner"],
            capture_output=True,
            text=True,
            timeout=_ASK_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def judge(facts: Sequence[SlurmFacts | None], context: Context) -> list[Finding]:
    """Pure."""
    its = facts[0]
    assert its is not None, "rank 0 always has facts"
    findings = []
    if its.left_s is not None and its.left_s < _LITTLE_S:
        findings.append(
            warning(
                f"job {its.job_id} ends in {its.left_s / 60:.1f} minutes",
                why="loading takes minutes for a large model, and rows that cannot finish are not begun",
                fix="ask for more with --time, or scontrol update JobId=... TimeLimit=...",
            )
        )
    if its.requeues is False:
        findings.append(
            note(
                f"job {its.job_id} is not started again after a preemption or a node's failure",
                fix="sbatch --requeue --open-mode=append: the run then resumes by itself",
            )
        )
    left = "" if its.left_s is None else f", {its.left_s / 60:.0f} minutes left"
    again = {True: ", is requeued", False: ", is not requeued", None: ""}[its.requeues]
    return findings or [fine(f"job {its.job_id}{left}{again}")]


CHECK = Check(name="slurm", gather=gather, judge=judge)
