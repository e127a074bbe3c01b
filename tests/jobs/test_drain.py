"""A stop in mid-run loses nothing: rows in flight keep their tokens, on whatever ranks the run goes on."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import h5py
import pytest

from janus_hpc.results.done import load_done
from janus_hpc.results.manifest import fingerprint_bytes, load_manifest
from janus_hpc.results.scan import read_progress
from tests.jobs.killing import has_rows, signal_when
from tests.jobs.launcher import (
    TIME_LIMIT_S,
    environment,
    export_rows,
    export_text,
    janus_command,
    run_janus,
    write_rows,
)

NUM_ROWS = 150


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with rows of every kind, and the export of a run nobody disturbed."""
    folder = tmp_path_factory.mktemp("drain")
    generator = random.Random(7)
    rows = []
    for index in range(NUM_ROWS):
        word = "".join(generator.choice("abcdefghij") for _ in range(generator.randrange(2, 30)))
        task = generator.choice(["Reverse: {} =", "Sort: {} =", "Upper: {} ="])
        row = {"prompt": task.format(word), "max_tokens": 120, "ignore_eos": True}
        row |= {"temperature": index % 2}
        row |= {"logprobs": 2} if index % 7 == 3 else {}
        row |= {"n": 3, "temperature": 1.0} if index % 9 == 4 else {}
        row |= {"stop": ["q", "zz"], "frequency_penalty": 0.3} if index % 11 == 2 else {}
        rows.append(row)
    write_rows(folder / "rows.jsonl", rows)
    run_janus(0, "infer", "rows.jsonl", "-o", "calm.h5", cwd=folder)
    return folder, export_text(folder / "calm.h5", folder)


def stop_when_rows_are_done(
    folder: Path, out: str, number: signal.Signals, which: int, *options: str
) -> None:
    """Start on 3 ranks, and signal one of them once some rows are done: the run must stop, and say why."""
    args = ["infer", "rows.jsonl", "-o", out, *options]
    run_dir = folder / f"{out}.run"
    code, said = signal_when(3, args, folder, lambda _: has_rows(run_dir), number, which=which)
    assert code == 75, said
    assert f"{number.name} on world rank {which}" in said and "the same command resumes" in said


@pytest.mark.parametrize(
    ("number", "which", "ranks", "split"),
    [
        (signal.SIGUSR1, 2, 1, "colocated"),
        (signal.SIGTERM, 1, 4, "1a3e"),
        (signal.SIGUSR2, 0, 2, "1a1e"),
    ],
)
def test_rows_in_flight_go_on_from_their_tokens(
    calm: tuple[Path, str], number: signal.Signals, which: int, ranks: int, split: str
) -> None:
    folder, expected = calm
    out = f"{number.name}.h5"
    # Few at once, so that a run in its middle has finished some rows and not begun others.
    options = ("--split", "2a1e", "--max-sequences", "24")
    stop_when_rows_are_done(folder, out, number, which, *options)

    run_dir = folder / f"{out}.run"
    manifest = load_manifest(run_dir)
    assert manifest is not None
    done = load_done(run_dir, NUM_ROWS, fingerprint_bytes(manifest.fingerprint))
    kept = [read_progress(run_dir / its.journal, its.offset) for its in done.in_flight]
    assert 0 < done.num_done < NUM_ROWS and kept
    run_janus(ranks, "infer", "rows.jsonl", "-o", out, "--split", split, cwd=folder)
    assert export_text(folder / out, folder) == expected

    # The second launch computed what was left, and nothing twice.
    samples = {row["index"]: row.get("samples", [row]) for row in export_rows(folder / out, folder)}
    missing = [index for index in samples if not done.done[index]]
    num_missing = sum(len(its["token_ids"]) for index in missing for its in samples[index])
    num_kept = sum(len(sample.token_ids) for row in kept for sample in row.samples)
    with h5py.File(folder / out) as file:
        assert file["batches/num_tokens"][()].sum() == num_missing - num_kept


def test_a_job_near_its_end_drains_by_itself(calm: tuple[Path, str]) -> None:
    """No signal comes: the launcher told when the job ends, and rows that cannot end in time are not begun."""
    folder, expected = calm
    command = ["infer", "rows.jsonl", "-o", "end.h5", "--split", "1a1e", "--max-sequences", "2"]
    ends = str(int(time.time()) + 8)
    done = subprocess.run(
        janus_command(2, *command),
        cwd=folder,
        env=environment() | {"SLURM_JOB_END_TIME": ends},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )
    assert done.returncode == 75 and "the job's end is near" in done.stderr, done.stderr
    run_janus(1, "infer", "rows.jsonl", "-o", "end.h5", cwd=folder)
    assert export_text(folder / "end.h5", folder) == expected


def test_shards_answer_their_rows_alone(calm: tuple[Path, str]) -> None:
    folder, expected = calm
    for shard, ranks in ((1, 1), (2, 2), (3, 3)):
        options = ["--shard", f"{shard}/3", "-o", f"part-{shard}.h5"]
        run_janus(ranks, "infer", "rows.jsonl", *options, cwd=folder)
        with h5py.File(folder / f"part-{shard}.h5") as file:
            assert (file.attrs["first_row"], file.attrs["num_rows"]) == (50 * shard - 50, 50)
    parts = [export_text(folder / f"part-{shard}.h5", folder) for shard in (1, 2, 3)]
    assert "".join(parts) == expected
    refused = run_janus(
        0, "infer", "rows.jsonl", "--shard", "2/3", "-o", "part-1.h5", cwd=folder, check=2
    )
    assert "first_row: was 0, now 50" in refused.stderr
    names = [f"part-{shard}.h5" for shard in (3, 1, 2)]
    run_janus(0, "results", "merge", *names, "-o", "whole.h5", cwd=folder)
    run_janus(0, "results", "verify", "whole.h5", cwd=folder)
    assert export_text(folder / "whole.h5", folder) == expected
    assert json.loads(expected.splitlines()[0])["index"] == 0


def test_a_signal_to_a_parked_rank_stops_the_run(calm: tuple[Path, str]) -> None:
    """It has no part in the steps; in the middle of the first of several batches it tells one that has."""
    folder, expected = calm
    options = ("--split", "1a1e", "--max-sequences", "8", "--batch-rows", "50")
    stop_when_rows_are_done(folder, "parked.h5", signal.SIGUSR1, 2, *options)
    run_janus(1, "infer", "rows.jsonl", "-o", "parked.h5", cwd=folder)
    assert export_text(folder / "parked.h5", folder) == expected


def test_a_fresh_start_heeds_no_stop_of_before(calm: tuple[Path, str]) -> None:
    """Its launches are numbered anew."""
    folder, expected = calm
    options = ("--split", "1a1e", "--max-sequences", "8")
    stop_when_rows_are_done(folder, "fresh.h5", signal.SIGUSR1, 1, *options)
    run_janus(2, "infer", "rows.jsonl", "-o", "fresh.h5", "--fresh", cwd=folder)
    assert export_text(folder / "fresh.h5", folder) == expected


def test_a_merge_without_time_is_left_to_the_next_launch(calm: tuple[Path, str]) -> None:
    """All rows are answered, and the job's end is too near for the rest."""
    folder, expected = calm
    patch = folder / "patch"
    patch.mkdir()
    line = "import janus_hpc.engine.ending as e; e.merge_until_s = lambda left_s, drain_s: 0.0\n"
    (patch / "sitecustomize.py").write_text(line)
    done = subprocess.run(
        janus_command(2, "infer", "rows.jsonl", "-o", "late.h5"),
        cwd=folder,
        env=environment()
        | {"PYTHONPATH": str(patch), "SLURM_JOB_END_TIME": str(int(time.time()) + 36_000)},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )
    assert done.returncode == 75 and "stopped while merging" in done.stderr, done.stderr
    assert not (folder / "late.h5").exists() and not (folder / "late.h5.tmp").exists()
    again = run_janus(3, "infer", "rows.jsonl", "-o", "late.h5", cwd=folder)
    assert f"resuming: {NUM_ROWS} of {NUM_ROWS} rows are done" in again.stderr
    assert export_text(folder / "late.h5", folder) == expected


def test_a_job_end_of_another_job_is_not_heeded(calm: tuple[Path, str]) -> None:
    folder, _ = calm
    done = subprocess.run(
        janus_command(0, "infer", "rows.jsonl", "-o", "past.h5", "--shard", "1/50"),
        cwd=folder,
        env=environment() | {"SLURM_JOB_END_TIME": "1000"},
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0 and "SLURM_JOB_END_TIME is long past" in done.stderr
