"""The fault campaign: `python -m tests.faults --count 200 --seed 1`. Exit 1 where a case failed."""

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from tests.faults.bed import ISOLATED, Bed, make_bed
from tests.faults.campaign import Slurm, keep, run_campaign
from tests.faults.kinds import KINDS, Kind, able, schedule, short_schedule, slurm_kinds
from tests.faults.report import Outcome, table, to_json


def main() -> int:
    options = _options()
    if os.environ.get(ISOLATED) is None:
        _isolate()
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="janus-faults-")))
        # A user without rights works in there, too.
        folder.chmod(0o755)
        bed = held.enter_context(make_bed(folder, options.slurm))
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        slurm = Slurm(held, path)
        kinds, skipped = able(bed, (*KINDS, *slurm_kinds(slurm.get)))
        its = (
            short_schedule(kinds) if options.short else schedule(kinds, options.count, options.seed)
        )
        chosen = list(enumerate(its))
        if options.only is not None:
            chosen = [one for one in chosen if one[0] in options.only]
        if options.kind is not None:
            chosen = [one for one in chosen if options.kind in one[1].name]
        if any(one.needs == "has_slurm" for _, one in chosen):
            # Its daemons end with the thread that started them.
            slurm.get()
        outcomes = _run(bed, chosen, slurm, options)
        keep(outcomes, bed, options.keep)
    _report(outcomes, skipped, options)
    return int(any(its.findings for its in outcomes))


def _run(
    bed: Bed, chosen: list[tuple[int, Kind]], slurm: Slurm, options: argparse.Namespace
) -> list[Outcome]:
    turn = threading.Lock()

    def tell(outcome: Outcome) -> None:
        with turn:
            print(outcome.line(options.seed, options.count), flush=True)

    return run_campaign(bed, chosen, options.seed, slurm, options.jobs, tell)


def _report(outcomes: list[Outcome], skipped: list[Kind], options: argparse.Namespace) -> None:
    names = [f"{its.name} ({its.needs})" for its in skipped]
    print(f"\n{table(outcomes)}\n")
    print(f"seed {options.seed}, {time.monotonic() - options.started_s:.0f} s")
    num_left = sum(its.num_shm_left for its in outcomes)
    print(f"shared-memory segments that MPICH left behind: {num_left}")
    print(f"runs that were over before their fault came: {sum(its.num_missed for its in outcomes)}")
    for name in names:
        print(f"skipped, this machine cannot do it: {name}")
    for its in outcomes:
        if its.folder:
            print(f"kept: {its.folder}")
    if options.json is not None:
        options.json.write_text(to_json(outcomes, options.seed, names, options.count))


def _isolate() -> None:
    """Start anew with mounts of its own, where root may do so; they end with the campaign, however that ends."""
    tool = shutil.which("unshare")
    if os.getuid() or tool is None or os.system(f"{tool} --mount true") != 0:
        os.environ[ISOLATED] = "0"
        return
    os.environ[ISOLATED] = "1"
    command = [tool, "--mount", "--propagation", "private", sys.executable, "-m", "tests.faults"]
    os.execv(tool, [*command, *sys.argv[1:]])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="faults")
    parser.add_argument("--short", action="store_true", help="one of each of eleven kinds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, nargs="+", help="cases by number")
    parser.add_argument("--kind", help="cases whose kind has this in its name")
    parser.add_argument("--jobs", type=int, default=1, help="cases at once")
    parser.add_argument("--json", type=Path, help="also write all outcomes here")
    parser.add_argument("--slurm", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--keep", type=Path, default=Path("build/faults"), help="failed cases go here"
    )
    options = parser.parse_args()
    options.started_s = time.monotonic()
    return options


if __name__ == "__main__":
    sys.exit(main())
