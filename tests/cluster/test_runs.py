"""Whole runs over nodes of an emulated cluster give the bytes of one rank alone."""

import json
import subprocess
import sys
from pathlib import Path

import h5py
import pytest

from tests.cluster import emulated_cluster, missing
from tests.jobs.launcher import export_text

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

ROOT = Path(__file__).resolve().parents[2]
JANUS = str(Path(sys.executable).with_name("janus-hpc"))
PROMPTS = ROOT / "jobs/prompts.jsonl"
# The file has bad rows on purpose.
SOME_FAILED = 3


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The export of a run of one rank."""
    folder = tmp_path_factory.mktemp("alone")
    done = subprocess.run(
        [JANUS, "infer", str(PROMPTS), "-o", "alone.h5"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == SOME_FAILED, done.stderr
    return export_text(folder / "alone.h5", folder)


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        pytest.param([3, 1], "--split 2a2e --gate agate --exchange relay", id="3+1, relay, agate"),
        pytest.param(
            [2, 2],
            "--split colocated --exchange direct --inter mpi --batch-rows 9 --rebalance always",
            id="2+2, colocated, experts move",
        ),
        pytest.param(
            [1, 1, 1],
            "--split 1a2e --exchange one-phase --batch-rows 9 --rebalance always",
            id="1+1+1, one-phase, experts move",
        ),
        # Nodes come to need attention weights and gates that only the other has.
        pytest.param(
            [2, 2],
            "--replan 2a2e,1a3e,3a1e,4c --batch-rows 5 --exchange direct --inter ucx",
            id="2+2, roles move, ucx",
        ),
        pytest.param(
            [2, 2],
            "--split 1a1e --replan 3a1e,1a3e,1c --batch-rows 9 --gate agate --inter mpi",
            id="2+2, roles move, agate, auto",
        ),
    ],
)
def test_rows_are_those_of_one_rank(
    alone: str, tmp_path: Path, ranks: list[int], options: str
) -> None:
    command = [JANUS, "infer", str(PROMPTS), "-o", "out.h5", *options.split()]
    with emulated_cluster(ranks, "1gbit") as bed:
        done = bed.mpirun(command, timeout_s=120, cwd=tmp_path)
    assert done.returncode == SOME_FAILED, done.stderr
    assert export_text(tmp_path / "out.h5", tmp_path) == alone


def test_auto_predicts_chooses_and_measures(alone: str, tmp_path: Path) -> None:
    """With a table that was measured on the same nodes before."""
    with emulated_cluster([2, 1, 1], "1gbit") as bed:
        profile = [JANUS, "profile", "--exchange", "-o", "exchange.json", "--inter", "mpi"]
        done = bed.mpirun(profile, timeout_s=120, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        options = ["--split", "2a2e", "--inter", "mpi", "--exchange-table", "exchange.json"]
        infer = [JANUS, "infer", str(PROMPTS), "-o", "out.h5", *options]
        done = bed.mpirun(infer, timeout_s=120, cwd=tmp_path)
    assert done.returncode == SOME_FAILED, done.stderr
    assert export_text(tmp_path / "out.h5", tmp_path) == alone
    with h5py.File(tmp_path / "out.h5") as file:
        assert file.attrs["exchange"] in ("one-phase", "direct", "relay")
        assert "predicted for" in file.attrs["exchange_why"]
        assert "exchange.json" in file.attrs["exchange_why"]
        assert file.attrs["exchange_measured_s"] > 0
        assert "relay" in file.attrs["exchange_predicted_s"]


def test_a_timeline_of_nodes_is_on_one_clock(tmp_path: Path) -> None:
    """Nodes of one host share a clock; what is measured between them must come out near nothing."""
    told = ["--split", "1a2e", "--trace", "t.json", "--microbatches", "1"]
    with emulated_cluster([1, 1, 1], "1gbit") as bed:
        command = [JANUS, "infer", str(PROMPTS), "-o", "out.h5", *told]
        done = bed.mpirun(command, timeout_s=120, cwd=tmp_path)
    assert done.returncode == SOME_FAILED, done.stderr
    trace = json.loads((tmp_path / "t.json").read_text())
    error_us = trace["otherData"]["clock_error_us"]
    assert error_us > 0
    spans = [its for its in trace["traceEvents"] if its["ph"] == "X" and its["args"]]
    of_layer = [its for its in spans if its["args"]["layer"] == 1]
    ends = {
        (rank, name): sorted(
            its["ts"] + its["dur"] for its in of_layer if (its["pid"], its["name"]) == (rank, name)
        )
        for rank, name in ((0, "wait for outputs"), (1, "experts"), (2, "experts"))
    }
    for rank in (1, 2):
        pairs = zip(ends[rank, "experts"], ends[0, "wait for outputs"], strict=True)
        # No answer is taken before it was computed, but for what clocks may be wrong by.
        assert all(computed < taken + 2 * error_us for computed, taken in pairs)
