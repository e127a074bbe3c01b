"""The real commands on bad input, each in a process of its own under a limit of time, as a user starts them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from janus_hpc.results.journal import JournalWriter
from janus_hpc.results.manifest import fingerprint_bytes, run_dir_for, start_launch
from janus_hpc.results.reader import ResultsFile
from tests.fuzz.kinds import Kind, rewrite
from tests.fuzz.odd import mutate_bytes
from tests.fuzz.oracle import Finding, check_row, expect
from tests.fuzz.rows import make_file

LIMIT_S = 900
# Of a user's mistake, and of a run whose bad rows became error rows.
GOOD_EXITS = (0, 2, 3)
FORMATS = ("jsonl", "openai", "parquet")
_GOOD_ROWS = [{"id": f"r{at}", "prompt": f"{at}+5=", "max_tokens": 3} for at in range(12)]


def janus(
    *args: str | Path, cwd: Path, exits: tuple[int, ...] = GOOD_EXITS
) -> subprocess.CompletedProcess[str]:
    """A command that ended well. Raises Finding for another exit code, a traceback or no end."""
    command = [str(Path(sys.executable).with_name("janus-hpc")), *map(str, args)]
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, timeout=LIMIT_S, check=False, errors="replace"
        )
    except subprocess.TimeoutExpired:
        raise Finding(f"{' '.join(command[1:])}: no end in {LIMIT_S} s") from None
    told = done.stderr[-1500:]
    if done.returncode not in exits or "Traceback" in done.stderr:
        raise Finding(f"{' '.join(command[1:])[:300]}: exit {done.returncode}: {told}")
    if done.returncode == 2 and "janus-hpc: " not in done.stderr and "Error" not in done.stderr:
        raise Finding(f"{' '.join(command[1:])[:300]}: exit 2 without a message: {told}")
    return done


def lines_command(rng: Random, num_lines: int, folder: Path) -> int:
    """A file of fuzzed lines through infer, verify and every export; how many rows there were."""
    made = make_file(rng, num_lines, long_lines=rng.random() < 0.3)
    (folder / "rows.jsonl").write_bytes(made.data)
    expected = expect(made)
    limits = ("--max-tokens", "4", "--max-context", "64")
    janus("infer", "rows.jsonl", *limits, "-o", "out.h5", cwd=folder, exits=(0, 3))
    janus("results", "verify", "out.h5", cwd=folder, exits=(0,))
    for to in FORMATS:
        janus("results", "export", "out.h5", "--to", to, "-o", f"out.{to}", cwd=folder, exits=(0,))
    rows = [json.loads(its) for its in (folder / "out.jsonl").read_bytes().split(b"\n")[:-1]]
    if len(rows) != len(expected.lines):
        raise Finding(f"{len(expected.lines)} lines, but {len(rows)} rows")
    for number, row in enumerate(rows):
        if row["index"] != number:
            raise Finding(f"row {number} has index {row['index']}")
        check_row(expected, number, row["id"], row["error"])
    return len(rows)


# Says with what exit code the command ended.
Run = Callable[[Path], int]


def run_of(kind: str) -> Run:
    """The command that reads files of this kind as a case left them in a folder."""
    if kind.startswith(("config", "generation", "tokenizer", "chat", "safetensors")):
        return _with_model
    runs: dict[str, Run] = {
        "job": lambda folder: _infer(folder, "--job", "job.toml"),
        "profile": partial(_told, "plan --profile profile.json --ranks 8 --context 64"),
        "trace": lambda folder: _infer(folder, "--placement-from", "trace.h5"),
        "cost-table": lambda folder: _infer(folder, "--exchange-table", "table.json"),
        "demand": partial(
            _told, "simulate --profile h100 --shape deepseek-v2 --demand demand.csv --max-ranks 8"
        ),
    }
    return runs.get(kind, _with_results)


def _told(command: str, folder: Path) -> int:
    return janus(*command.split(), cwd=folder).returncode


def _infer(folder: Path, *args: str) -> int:
    _write_rows(folder / "prompts.jsonl")
    given = () if "--job" in args else ("prompts.jsonl",)
    return janus("infer", *given, *args, cwd=folder).returncode


def _with_model(folder: Path) -> int:
    rows = [*_GOOD_ROWS, {"id": "chat", "messages": [{"role": "user", "content": "hi"}]}]
    _write_rows(folder / "rows.jsonl", rows)
    return _told("infer rows.jsonl --model . --max-tokens 3 -o out.h5", folder)


def _with_results(folder: Path) -> int:
    for to in FORMATS:
        _told(f"results export out.h5 --to {to}", folder)
    _told("results batches out.h5", folder)
    return _told("results verify out.h5", folder)


def _write_rows(path: Path, rows: list[dict[str, Any]] | None = None) -> None:
    path.write_text("".join(json.dumps(its) + "\n" for its in rows or _GOOD_ROWS))


def resume_kind(folder: Path) -> tuple[Kind, Run]:
    """A run folder with half of the rows, whose journal or manifest is damaged: the resumed run's rows are those of
    an undisturbed one, or the damage is refused.
    """
    work, originals = folder / "work", folder / "resume"
    work.mkdir()
    originals.mkdir()
    _write_rows(work / "prompts.jsonl")
    _infer(work, "-o", "out.h5")
    wanted = _rows(work)
    with ResultsFile(work / "out.h5") as results:
        fields = json.loads(results.attrs["fingerprint"])
        half = list(results)[: len(_GOOD_ROWS) // 2]
    start_launch(originals, fields, {"started_at_unix_s": 1_790_000_000})
    writer = JournalWriter(originals, 0, 0, fingerprint_bytes(fields))
    writer.append_group(half)
    writer.close()

    def mutate(rng: Random, case: Path) -> list[Path]:
        path = rng.choice(sorted(case.iterdir()))
        data = path.read_bytes()
        if rng.random() < 0.3:
            return [rewrite(path, data[: rng.randrange(len(data))] + bytes(rng.choice((0, 40))))]
        return [rewrite(path, mutate_bytes(rng, data))]

    def resume(case: Path) -> int:
        run_dir = run_dir_for(case / "out.h5")
        run_dir.mkdir()
        for path in [its for its in case.iterdir() if its.is_file()]:
            shutil.copy(path, run_dir)
            os.unlink(path)
        code = _infer(case, "-o", "out.h5")
        if (case / "out.h5").exists() and _rows(case) != wanted:
            raise Finding("a run that was resumed has other rows than an undisturbed one")
        if code == 3:
            raise Finding("rows failed that were answered before")
        return code

    # What reads it is the command alone.
    kind = Kind(name="resume", originals=originals, mutate=mutate, read=lambda _: None)
    return kind, resume


def _rows(folder: Path) -> str:
    args = ("results", "export", "out.h5", "--no-timing")
    return janus(*args, cwd=folder, exits=(0,)).stdout
