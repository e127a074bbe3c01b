"""The kinds of faults: their names, how often each comes in a campaign, and what a machine must have for them."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from tests.faults import disk_faults, input_faults, journal_faults, process_faults, slurm_faults
from tests.faults.bed import Bed
from tests.faults.case import Case
from tests.slurm.cluster import Cluster


@dataclass(frozen=True)
class Kind:
    """`weight`: how many of 200. `needs`: attribute of the bed that must be true, "" for none. `short`: it is in the
    short form of the campaign, which has one of each of these.
    """

    name: str
    weight: int
    fault: Callable[[Case], None]
    needs: str = ""
    short: bool = False


KINDS = (
    Kind("kill -9 of a rank", 30, process_faults.kill_rank, short=True),
    Kind("kill -9 of mpirun or its proxy", 8, process_faults.kill_launcher, short=True),
    Kind("SIGSTOP of a rank", 14, process_faults.stop_rank, short=True),
    Kind("SIGSTOP, then SIGCONT", 6, process_faults.pause_rank),
    Kind("USR1", 10, process_faults.usr1, short=True),
    Kind("USR2", 8, process_faults.usr2),
    Kind("TERM", 10, process_faults.term),
    Kind("INT", 6, process_faults.interrupt),
    Kind("two faults in one run", 8, process_faults.double_fault),
    Kind("stopped while it resumes", 4, process_faults.resumed_signal_while_loading),
    Kind("torn journal", 16, journal_faults.torn, short=True),
    Kind("bit-flipped journal", 16, journal_faults.flipped, short=True),
    Kind("disk full", 14, disk_faults.disk_full, "can_mount", short=True),
    Kind("file size limit", 6, disk_faults.file_size_limit),
    Kind("run folder removed", 6, disk_faults.run_folder_removed, short=True),
    Kind("read-only disk", 4, disk_faults.read_only, "can_mount"),
    Kind("permissions lost", 4, disk_faults.no_permission, "heeds_permissions", short=True),
    Kind("checkpoint cut between launches", 6, input_faults.checkpoint_cut, short=True),
    Kind("checkpoint cut in mid-run", 6, input_faults.checkpoint_cut_running),
    Kind("clock jump", 8, input_faults.clock_jump, short=True),
)
SLURM_WEIGHTS = {"step cancel": 4, "node down": 3, "node killed": 3}


def slurm_kinds(get_cluster: Callable[[], Cluster]) -> tuple[Kind, ...]:
    """Those under a Slurm, which is started for the first of them."""

    def make(name: str) -> Kind:
        fault = slurm_faults.FAULTS[name]
        return Kind(
            f"Slurm: {name}",
            SLURM_WEIGHTS[name],
            lambda its: fault(its, get_cluster()),
            "has_slurm",
        )

    return tuple(map(make, SLURM_WEIGHTS))


def able(bed: Bed, kinds: tuple[Kind, ...]) -> tuple[list[Kind], list[Kind]]:
    """Those that this machine can do, and the others."""
    can = [its for its in kinds if not its.needs or getattr(bed, its.needs)]
    return can, [its for its in kinds if its not in can]


def schedule(kinds: list[Kind], count: int, seed: int) -> list[Kind]:
    """A kind for each case, in random order: in proportion to the weights, each at least once where `count` allows."""
    total = sum(its.weight for its in kinds)
    shares = [its.weight * count / total for its in kinds]
    if count <= len(kinds):
        return random.Random(seed).sample(kinds, count)
    counts = [max(1, int(share)) for share in shares]
    while sum(counts) != count:
        step = 1 if sum(counts) < count else -1
        at = max(range(len(kinds)), key=lambda its: step * (shares[its] - counts[its]))
        counts[at] += step
    chosen = [its for its, number in zip(kinds, counts, strict=True) for _ in range(number)]
    random.Random(seed).shuffle(chosen)
    return chosen


def short_schedule(kinds: list[Kind]) -> list[Kind]:
    """One of each kind of the short form."""
    return [its for its in kinds if its.short]
