"""Runs kinds of cases, each case from the seed, its kind and its number alone, and keeps what is a finding."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from tests.fuzz import commands, model_files, plan_files, result_files, run_files
from tests.fuzz.kinds import Kind, run_case
from tests.fuzz.lines import check_lines
from tests.fuzz.rows import make_file
from tests.fuzz.sandbox import Case, run_cases

LINES_A_FILE = 1000
LINES_A_COMMAND = 2000
# Of processor time; commands have a limit of their own.
_LINES_LIMIT_S = 120.0
_COMMANDS_LIMIT_S = 600.0


@dataclass
class Report:
    """What a campaign came to. `findings`: the text of each, with the command that repeats it."""

    num_cases: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)


def all_kinds(folder: Path) -> list[Kind]:
    """Every kind of file, with originals below `folder`."""
    kinds: list[Kind] = []
    for module in (model_files, plan_files, run_files, result_files):
        its = folder / module.__name__
        its.mkdir()
        kinds += module.kinds(its)
    return kinds


def run_lines(
    seed: int,
    num_lines: int,
    folder: Path,
    keep: Path,
    report: Report,
    numbers: Sequence[int] | None = None,
) -> None:
    """Fuzzed lines in one process, LINES_A_FILE a case; one case in ten has lines of many megabytes."""

    def case(number: int, its: Path) -> str:
        rng = Random(f"{seed}:lines:{number}")
        made = make_file(rng, LINES_A_FILE, long_lines=number % 10 == 0)
        counts = check_lines(made, its)
        return f"{counts['rows']} {counts['failed']}"

    numbers = range(-(-num_lines // LINES_A_FILE)) if numbers is None else numbers
    counts = _run("lines", case, numbers, seed, folder, keep, report, _LINES_LIMIT_S)
    rows = [text.split() for text, count in counts.items() for _ in range(count) if " " in text]
    num_rows, num_failed = (sum(int(its[at]) for its in rows) for at in (0, 1))
    print(f"lines: {num_rows}, {num_failed} of them became error rows", flush=True)
    report.num_cases += num_rows


def run_files_campaign(
    seed: int,
    num_files: int,
    kinds: Sequence[Kind],
    folder: Path,
    keep: Path,
    report: Report,
    numbers: Sequence[int] | None = None,
) -> None:
    """Mutated files, the same number of each kind."""
    each = range(-(-num_files // max(len(kinds), 1))) if numbers is None else numbers
    for kind in kinds:

        def case(number: int, its: Path, kind: Kind = kind) -> str:
            return run_case(kind, Random(f"{seed}:{kind.name}:{number}"), its)

        counts = _run(kind.name, case, each, seed, folder, keep, report, kind.limit_s)
        report.num_cases += len(each)
        print(f"{kind.name}: {len(each)} files, {_told(counts)}", flush=True)


def run_line_commands(
    seed: int,
    num_lines: int,
    folder: Path,
    keep: Path,
    report: Report,
    numbers: Sequence[int] | None = None,
) -> None:
    """Fuzzed lines through infer, verify and export."""

    def case(number: int, its: Path) -> str:
        rng = Random(f"{seed}:line-command:{number}")
        return str(commands.lines_command(rng, LINES_A_COMMAND, its))

    numbers = range(-(-num_lines // LINES_A_COMMAND)) if numbers is None else numbers
    counts = _run("line-command", case, numbers, seed, folder, keep, report, _COMMANDS_LIMIT_S)
    num_rows = sum(int(text) * count for text, count in counts.items() if text.isdigit())
    print(f"lines through commands: {num_rows} in {len(numbers)} files", flush=True)
    report.num_cases += num_rows


def run_commands(
    seed: int,
    num_commands: int,
    folder: Path,
    keep: Path,
    report: Report,
    only: tuple[str, int] | None = None,
) -> None:
    """Mutated files through real commands, and damaged run folders that are resumed."""
    if not num_commands and only is None:
        return
    aside = folder / "commands"
    aside.mkdir()
    inside = ("journal", "manifest", "index", "results-crafted")
    kinds = [kind for kind in all_kinds(aside) if kind.name not in inside]
    runs: dict[str, tuple[Kind, commands.Run]] = {
        f"command-{kind.name}": (kind, commands.run_of(kind.name)) for kind in kinds
    }
    runs["resume"] = commands.resume_kind(aside)
    names = [name for at, name in zip(range(num_commands), _turns(list(runs)), strict=False)]
    chosen = (
        [only]
        if only is not None
        else [(name, names[:at].count(name)) for at, name in enumerate(names)]
    )
    counts: Counter[str] = Counter()
    for name, number in chosen:
        kind, run = runs[name]

        def case(number: int, its: Path, kind: Kind = kind, run: commands.Run = run) -> str:
            for path in sorted(kind.originals.iterdir()):
                os.link(path, its / path.name)
            kind.mutate(Random(f"{seed}:command:{kind.name}:{number}"), its)
            return f"exit {run(its)}"

        counts += _run(name, case, [number], seed, folder, keep, report, _COMMANDS_LIMIT_S)
        report.num_cases += 1
    print(f"files through commands: {len(chosen)}, {_told(counts)}", flush=True)


def _turns(names: list[str]) -> Iterator[str]:
    while True:
        yield from names


def _run(
    name: str,
    case: Case,
    numbers: Sequence[int],
    seed: int,
    folder: Path,
    keep: Path,
    report: Report,
    limit_s: float,
) -> Counter[str]:
    """Runs cases in a child; findings go into the report, their folders into `keep`. How the cases ended."""
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    outcomes = run_cases(case, numbers, scratch, limit_s)
    for number, text in outcomes.findings:
        kept = keep / f"{name}-{seed}-{number}"
        kept.mkdir(parents=True, exist_ok=True)
        for left in scratch.glob(f"{number}-*"):
            shutil.copytree(left, kept, dirs_exist_ok=True)
        (kept / "finding.txt").write_text(text + "\n")
        again = f"python -m tests.fuzz --seed {seed} --only {name}:{number}"
        report.findings.append(f"{name}:{number} {text}\n    kept in {kept}; again: {again}")
    shutil.rmtree(scratch)
    report.counts += outcomes.counts
    return outcomes.counts


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
