"""Runs the cases of a campaign, each by its number and the seed alone, and keeps the folders of those that fail."""

import random
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.faults.bed import Bed
from tests.faults.case import Case, Missed
from tests.faults.disk_faults import clean_up
from tests.faults.kinds import Kind
from tests.faults.report import Outcome
from tests.slurm.cluster import Cluster, running_cluster

MAX_TRIES = 4


class Slurm:
    """One cluster for all cases that need one, started for the first of them; they take turns."""

    def __init__(self, held: ExitStack, path: str) -> None:
        self.turn = threading.Lock()
        self._held = held
        self._path = path
        self._cluster: Cluster | None = None

    def get(self) -> Cluster:
        if self._cluster is None:
            self._cluster = self._held.enter_context(running_cluster())
            self._cluster.environ |= {"PATH": self._path, "JANUS_REQUEUE": "0"}
        return self._cluster


def run_campaign(
    bed: Bed,
    kinds: list[tuple[int, Kind]],
    seed: int,
    slurm: Slurm,
    num_jobs: int,
    tell: Callable[[Outcome], None],
) -> list[Outcome]:
    """Run these numbered cases, `num_jobs` at once; `tell` hears of each as it ends."""

    def run(numbered: tuple[int, Kind]) -> Outcome:
        number, kind = numbered
        with _turn(slurm, kind):
            outcome = run_case(bed, number, kind, seed)
        tell(outcome)
        return outcome

    with ThreadPoolExecutor(num_jobs) as pool:
        return list(pool.map(run, kinds))


@contextmanager
def _turn(slurm: Slurm, kind: Kind) -> Iterator[None]:
    with slurm.turn if kind.needs == "has_slurm" else threading.Lock():
        yield


def run_case(bed: Bed, number: int, kind: Kind, seed: int) -> Outcome:
    """One case: again, in a new folder, where the run was over before the fault came."""
    started_s = time.monotonic()
    choice = random.Random(f"{seed}:{number}")
    for num_missed in range(MAX_TRIES):
        folder = bed.folder / f"case-{number}-{num_missed}"
        case = Case(number=number, bed=bed, folder=folder, choice=choice)
        has_landed = _disturb(case, kind)
        clean_up(case)
        if has_landed or case.findings:
            break
        if num_missed < MAX_TRIES - 1:
            shutil.rmtree(folder)
    if not case.findings:
        shutil.rmtree(folder)
    return Outcome(
        number=number,
        kind=kind.name,
        detail="; ".join(case.detail),
        codes=case.codes,
        num_launches=len(case.codes),
        lost=case.lost,
        doubled=case.doubled,
        differing=case.differing,
        num_shm_left=case.num_shm_left,
        num_missed=num_missed,
        seconds=time.monotonic() - started_s,
        findings=case.findings,
        folder=str(folder) if case.findings else "",
    )


def _disturb(case: Case, kind: Kind) -> bool:
    """Fault, resume, verdict. Whether the fault came before the run was over."""
    has_landed = True
    try:
        try:
            kind.fault(case)
        except Missed as missed:
            case.detail.append(f"missed: {missed}")
            has_landed = False
        case.recover()
    except Exception:
        case.findings.append(f"the campaign itself failed: {traceback.format_exc()}")
    return has_landed


def keep(outcomes: list[Outcome], bed: Bed, to: Path) -> None:
    """Copy the folders of failed cases to where they outlive the campaign."""
    for its in outcomes:
        if its.folder:
            place = to / Path(its.folder).name
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(its.folder, place, symlinks=True, ignore_dangling_symlinks=True)
            shutil.copy(bed.rows, place)
            its.folder = str(place)
