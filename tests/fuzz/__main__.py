"""The campaign of bad inputs as a command: `python -m tests.fuzz --lines 10000 --files 1000 --seed 1`.

Exit 0: no findings; 1: findings, each printed with the command that repeats it and kept in a folder.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.campaign import (
    Report,
    all_kinds,
    run_commands,
    run_files_campaign,
    run_line_commands,
    run_lines,
)


def main() -> int:
    options = _parser().parse_args()
    started_s, keep, only = time.monotonic(), options.keep, options.only
    report = Report()
    with tempfile.TemporaryDirectory(prefix="janus-fuzz-") as scratch:
        folder = Path(scratch)
        if only is not None:
            _repeat(only, options.seed, folder, keep, report)
        else:
            run_lines(options.seed, options.lines, folder, keep, report)
            run_files_campaign(options.seed, options.files, all_kinds(folder), folder, keep, report)
            run_line_commands(options.seed, options.command_lines, folder, keep, report)
            run_commands(options.seed, options.commands, folder, keep, report)
    for text in report.findings:
        print(text)
    print(
        f"seed {options.seed}: {report.num_cases} cases, {len(report.findings)} findings, "
        f"{time.monotonic() - started_s:.0f} s"
    )
    return 1 if report.findings else 0


def _repeat(only: str, seed: int, folder: Path, keep: Path, report: Report) -> None:
    name, _, number = only.partition(":")
    first = int(number)
    if name == "lines":
        run_lines(seed, 0, folder, keep, report, numbers=[first])
    elif name == "line-command":
        run_line_commands(seed, 0, folder, keep, report, numbers=[first])
    elif name == "resume" or name.startswith("command-"):
        run_commands(seed, 0, folder, keep, report, only=(name, first))
    else:
        kinds = [its for its in all_kinds(folder) if its.name == name]
        run_files_campaign(seed, 0, kinds, folder, keep, report, numbers=[first])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "--lines", type=int, default=10_000, help="fuzzed JSONL lines in one process"
    )
    parser.add_argument("--files", type=int, default=1000, help="mutated files, over all kinds")
    parser.add_argument(
        "--command-lines", type=int, default=4000, help="lines through janus-hpc infer"
    )
    parser.add_argument(
        "--commands", type=int, default=40, help="mutated files through real commands"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz-findings"), help="where cases are kept"
    )
    parser.add_argument("--only", help="KIND:NUMBER, repeats one case")
    return parser


if __name__ == "__main__":
    sys.exit(main())
