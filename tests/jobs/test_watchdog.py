"""A rank that stops ends the job with 71 and a report, and what a running job tells of itself is true."""

import gzip
import json
import os
import signal
from pathlib import Path

import h5py
import pytest

from janus_hpc.watch.beat import read_beats
from tests.jobs.killing import signal_when
from tests.jobs.launcher import export_text, run_janus, write_rows

NUM_ROWS = 120
COMMAND = ["infer", "rows.jsonl", "--max-sequences", "8"]


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with rows, and the export of a run nobody disturbed, with all that can be written of it."""
    folder = tmp_path_factory.mktemp("watch")
    rows = [
        {"prompt": f"Reverse: {'abcdefgh'[index % 5 :]}{index} =", "max_tokens": 100}
        | {"temperature": 1.0, "ignore_eos": True}
        for index in range(NUM_ROWS)
    ]
    write_rows(folder / "rows.jsonl", rows)
    told = ["--trace", "t.json.gz", "--metrics", "m.prom", "--log-level", "debug"]
    run_janus(3, *COMMAND, "-o", "calm.h5", "--split", "1a2e", *told, cwd=folder)
    return folder, export_text(folder / "calm.h5", folder)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_stopped_rank_ends_the_job_with_a_report(calm: tuple[Path, str], which: int) -> None:
    folder, expected = calm
    out = f"stopped-{which}.h5"
    options = ["-o", out, "--split", "2a1e", "--stall-s", "4", "--log-level", "debug"]
    run_dir = folder / f"{out}.run"

    def all_in_steps(said: str) -> bool:
        beats = read_beats(run_dir)
        return len(beats) == 3 and all(its.in_steps for its in beats.values())

    command = [*COMMAND, *options]
    code, said = signal_when(3, command, folder, all_in_steps, signal.SIGSTOP, which=which)
    assert code == 71, said
    role = ("attention 0/0", "attention 1/1", "expert 0/2")[which]
    assert f"all others wait for: [{role}@" in said and "stopped or gone" in said, said
    report = (run_dir / "stall-0000.txt").read_text()
    assert report.count("== stack of world rank") == 3
    assert report.count("wait_until") == 2 and "none was written" in report
    shown = run_janus(0, "status", out, cwd=folder).stdout
    assert shown.startswith(f"{out}: ") and "expert    1 rank" in shown
    run_janus(2, *COMMAND, "-o", out, "--split", "1a1e", cwd=folder)
    assert export_text(folder / out, folder) == expected


def test_the_timeline_has_every_rank_and_layer(calm: tuple[Path, str]) -> None:
    folder, _ = calm
    with gzip.open(folder / "t.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    names = {its["pid"]: its["args"]["name"] for its in events if its["name"] == "process_name"}
    host = os.uname().nodename
    assert names[0] == f"rank 0: attention 0/0 on {host}"
    assert names[2] == f"rank 2: expert 1/2 on {host}"
    spans = [its for its in events if its["ph"] == "X"]
    layers = {(its["pid"], its["name"], its["args"].get("layer")) for its in spans}
    for layer in range(4):
        assert (0, "attention", layer) in layers and (1, "experts", layer) in layers
    # An expert rank has what it computes before the attention rank stops waiting for it: one clock for all.
    ends = {(its["pid"], its["name"]): [] for its in spans}
    for its in spans:
        if its["args"].get("layer") == 1:
            ends[its["pid"], its["name"]].append(its["ts"] + its["dur"])
    computed, taken = sorted(ends[1, "experts"]), sorted(ends[0, "wait for outputs"])
    assert len(computed) == len(taken) > 10
    assert all(a < b for a, b in zip(computed, taken, strict=True))


def test_logs_metrics_and_energy(calm: tuple[Path, str]) -> None:
    folder, _ = calm
    for rank, role in enumerate(("attention 0/0", "expert 0/1", "expert 1/2")):
        text = (folder / "calm.h5.logs" / f"rank-{rank:05d}.log").read_text()
        assert f"[{role}@" in text and "debug: batch of 120 rows begins" in text
    metrics = dict(
        line.rsplit(" ", 1)
        for line in (folder / "m.prom").read_text().splitlines()
        if not line.startswith("#")
    )
    assert metrics["janus_rows_done_total"] == str(NUM_ROWS)
    assert metrics['janus_state{state="complete"}'] == "1"
    with h5py.File(folder / "calm.h5") as file:
        energy = json.loads(file.attrs["energy"])
        tokens = int(file["batches/num_tokens"][()].sum())
    assert metrics["janus_tokens_generated_total"] == str(tokens) == str(100 * NUM_ROWS)
    assert (energy["joules"] is None) == ("why" in energy)


def test_status_of_finished_runs_and_of_nothing(calm: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = calm
    assert "calm.h5: complete" in run_janus(0, "status", "--watch", "calm.h5", cwd=folder).stdout
    found = json.loads(run_janus(0, "status", "--json", cwd=folder).stdout)
    assert {"calm.h5"} <= {its["output"] for its in found}
    assert "no runs here" in run_janus(0, "status", cwd=tmp_path, check=2).stderr
    (tmp_path / "x.h5.progress.json").write_text("{")
    assert "x.h5.progress.json" in run_janus(0, "status", cwd=tmp_path, check=2).stderr


def test_a_slow_start_is_no_stall(calm: tuple[Path, str]) -> None:
    """Loading and measuring take longer than this patience; only a batch's steps may not."""
    folder, expected = calm
    run_janus(2, *COMMAND, "-o", "eager.h5", "--split", "1a1e", "--stall-s", "1", cwd=folder)
    assert export_text(folder / "eager.h5", folder) == expected
