"""Check `limits`: open files, locked memory and core dumps."""

import resource
from collections.abc import Sequence
from dataclasses import dataclass

from janus_hpc.doctor.check import Check
from janus_hpc.doctor.context import Context
from janus_hpc.doctor.finding import Finding, error, fine, note, warning
from janus_hpc.doctor.mpi import has_fabric

UNLIMITED = resource.RLIM_INFINITY
# Libraries, shards, journals, logs; and by TCP a few connections a peer.
_FILES_AT_LEAST, _FILES_PER_RANK = 256, 4


@dataclass(frozen=True, kw_only=True)
class LimitFacts:
    """Soft limits of this process; -1 for none."""

    num_files: int
    locked_bytes: int
    core_bytes: int
    has_fabric: bool


def gather(context: Context) -> LimitFacts:
    """Asks the kernel."""
    return LimitFacts(
        num_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        locked_bytes=resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        core_bytes=resource.getrlimit(resource.RLIMIT_CORE)[0],
        has_fabric=has_fabric(),
    )


def judge(facts: Sequence[LimitFacts], context: Context) -> list[Finding]:
    """Pure."""
    findings = []
    needed = _FILES_AT_LEAST + _FILES_PER_RANK * len(facts)
    few = [
        r for r, its in enumerate(facts) if its.num_files != UNLIMITED and its.num_files < needed
    ]
    if few:
        say = error if facts[few[0]].num_files < _FILES_AT_LEAST else warning
        findings.append(
            say(
                f"a process may open {facts[few[0]].num_files} files (ulimit -n); {len(facts)} ranks need {needed}",
                why="shards, journals and connections to all ranks are open at once",
                fix=f"ulimit -n {max(needed, 4096)} in the job script, or LimitNOFILE of slurmd",
                ranks=few,
            )
        )
    locked = [r for r, its in enumerate(facts) if its.has_fabric and its.locked_bytes != UNLIMITED]
    if locked:
        findings.append(
            warning(
                f"locked memory is limited to {facts[locked[0]].locked_bytes} bytes (ulimit -l)",
                why="InfiniBand locks the memory it sends from: MPI fails or falls back to TCP",
                fix="ulimit -l unlimited; in Slurm LimitMEMLOCK=infinity for slurmd, and "
                "PropagateResourceLimitsExcept=MEMLOCK",
                ranks=locked,
            )
        )
    dumps = [r for r, its in enumerate(facts) if its.core_bytes != 0]
    if dumps and len(facts) > 1:
        findings.append(
            note(
                "core dumps are on (ulimit -c): a crash writes each rank's memory to the disk",
                fix="ulimit -c 0 in the job script",
            )
        )
    first = facts[0]
    files = "any number of" if first.num_files == UNLIMITED else str(first.num_files)
    return findings or [fine(f"{files} open files, no core dumps")]


CHECK = Check(name="limits", gather=gather, judge=judge)
