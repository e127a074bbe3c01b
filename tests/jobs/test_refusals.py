"""A mistake is one message and exit code 2 from every launch, never a traceback and never a hang."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from janus_hpc.kernels.native.build import COMPILERS

from tests.jobs.launcher import TIME_LIMIT_S, environment, janus_command, run_janus, write_rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_rows(tmp_path / "rows.jsonl", [{"prompt": "12+34=", "max_tokens": 4, "temperature": 0}])
    return tmp_path


def refused(folder: Path, *args: str, num_ranks: int = 0) -> str:
    done = run_janus(num_ranks, "infer", *args, cwd=folder, check=2)
    assert "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stderr.splitlines() if "rror:" in line or "janus-hpc:" in line]
    assert len(lines) == 1, f"expected one message: {done.stderr}"
    return done.stderr


def test_every_rank_agrees_on_a_refusal(folder: Path) -> None:
    assert "nowhere" in refused(folder, "rows.jsonl", "--model", "nowhere", num_ranks=3)
    assert "9a9e" in refused(folder, "rows.jsonl", "--split", "9a9e", num_ranks=2)


def test_wrong_flags_are_refused_before_mpi_starts(folder: Path) -> None:
    assert "--nonsense" in refused(folder, "rows.jsonl", "--nonsense", num_ranks=2)
    assert "--device" in refused(folder, "rows.jsonl", "--device", "tpu")
    assert "--block-size" in refused(folder, "rows.jsonl", "--block-size", "x")
    assert "no prompts file" in refused(folder)
    assert "nowhere.toml" in refused(folder, "--job", "nowhere.toml")


def test_bad_sizes_are_refused(folder: Path) -> None:
    assert "--kv-memory" in refused(folder, "rows.jsonl", "--kv-memory", "lots", num_ranks=2)


def test_a_launcher_of_another_mpi_is_noticed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variables of a launcher that this MPI library does not speak: every process sees only itself."""
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    assert "sees only itself" in refused(folder, "rows.jsonl")


def test_existing_results_are_kept(folder: Path) -> None:
    run_janus(0, "infer", "rows.jsonl", cwd=folder)
    assert not (folder / "rows.h5.run").exists()
    run_janus(0, "infer", "rows.jsonl", cwd=folder)  # complete already: nothing to do
    assert not (folder / "rows.h5.run").exists()
    assert "--overwrite" in refused(folder, "rows.jsonl", "--seed", "5")
    run_janus(0, "infer", "rows.jsonl", "--seed", "5", "--overwrite", cwd=folder)
    state = json.loads((folder / "rows.h5.progress.json").read_text())
    assert state["rows_done"] == 1
    assert state["state"] == "complete"


@pytest.mark.skipif(
    not any(shutil.which(its) for its in COMPILERS), reason="there is no C compiler"
)
def test_ranks_with_and_without_compiled_kernels_are_refused(folder: Path) -> None:
    """They lay shared weights out in different orders: answers would be wrong."""
    infer = ["infer", "rows.jsonl", "--split", "1a1e"]
    plain = ["-n", "1", "env", f"PATH={folder}", *janus_command(0, *infer)]
    done = subprocess.run(
        [*janus_command(1, *infer), ":", *plain],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S + 20,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "1 of 2 ranks have no compiled kernels" in done.stderr and "PATH" in done.stderr
    assert not (folder / "rows.h5").exists()
