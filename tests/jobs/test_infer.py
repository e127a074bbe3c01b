"""Whole jobs on the demo model and on random ones: odd inputs, odd rank counts, dtypes, signals."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import pytest

from janus_hpc.demo import demo_model_dir
from tests.jobs.launcher import (
    TIME_LIMIT_S,
    environment,
    export_rows,
    export_text,
    janus_command,
    run_janus,
    write_rows,
)
from tests.jobs.models import qwen_config, save_model

MIXED = Path(__file__).resolve().parents[2] / "jobs" / "prompts.jsonl"


def test_sixteen_ranks_on_mixed_rows(tmp_path: Path) -> None:
    """The command of the README's first line, with OpenAI batch rows, loose rows and bad ones."""
    shutil.copy(MIXED, tmp_path / "prompts.jsonl")
    done = run_janus(16, "infer", "prompts.jsonl", cwd=tmp_path, check=3)
    assert "split 2a14e" in done.stderr
    rows = export_rows(tmp_path / "prompts.h5", tmp_path)
    lines = MIXED.read_bytes().rstrip(b"\n").split(b"\n")
    assert [row["index"] for row in rows] == list(range(len(lines)))
    errors = [row for row in rows if row["finish_reason"] == "error"]
    assert errors and all(row["error"]["reason"] for row in errors)
    assert all(row["error"]["line"] == row["index"] + 1 for row in errors)
    run_janus(1, "infer", "prompts.jsonl", "-o", "one.h5", cwd=tmp_path, check=3)
    assert export_text(tmp_path / "one.h5", tmp_path) == export_text(
        tmp_path / "prompts.h5", tmp_path
    )


@pytest.mark.parametrize("rows", [[], [{"prompt": "12+34=", "temperature": 0}]])
def test_fewer_rows_than_attention_ranks(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    write_rows(tmp_path / "rows.jsonl", rows)
    run_janus(5, "infer", "rows.jsonl", "--split", "3a1e", cwd=tmp_path)  # one rank parked
    found = export_rows(tmp_path / "rows.h5", tmp_path)
    assert [row["text"] for row in found] == ["46"] * len(rows)


def test_results_say_how_they_came_to_be(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", [{"prompt": "1+1=", "max_tokens": 4}] * 3)
    run_janus(3, "infer", "rows.jsonl", "--split", "1a2e", cwd=tmp_path)
    with h5py.File(tmp_path / "rows.h5") as file:
        assert file.attrs["split"] == "1a2e"
        assert file.attrs["exchange"] == "shm"
        assert file.attrs["kernels"]
        assert file["layers/expert_activations"].shape == (4, 32)
        assert int(file["layers/expert_activations"][:].sum()) > 0
        assert (file["layers/a_max_max"][:] >= 4 / 2).all()


def test_a_folder_without_tokenizer_runs_token_ids(tmp_path: Path) -> None:
    save_model(qwen_config(), tmp_path / "model")
    rows = [{"prompt": [5, 6, 7]}, {"prompt": "text"}, {"prompt": [5, 299]}, {"prompt": [300]}]
    rows += [{"prompt": [1], "stop": ["a"]}, {"prompt": [1] * 600}]
    write_rows(tmp_path / "rows.jsonl", [row | {"max_tokens": 3} for row in rows])
    run_janus(2, "infer", "rows.jsonl", "--model", "model", cwd=tmp_path, check=3)
    found = export_rows(tmp_path / "rows.h5", tmp_path)
    assert [row["finish_reason"] for row in found] == ["length", "error", "length"] + ["error"] * 3
    assert found[0]["text"] == "" and len(found[0]["token_ids"]) == 3
    assert "tokenizer" in found[1]["error"]["reason"]
    assert "300" in found[3]["error"]["reason"]
    assert "512" in found[5]["error"]["reason"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gives_the_same_bytes_on_every_split(tmp_path: Path, dtype: str) -> None:
    save_model(qwen_config(), tmp_path / "model")
    rows = [{"prompt": list(range(1, 2 + 9 * i)), "max_tokens": 8, "logprobs": 2} for i in range(6)]
    write_rows(tmp_path / "rows.jsonl", rows)
    texts = set()
    for num_ranks, split in ((0, "colocated"), (3, "1a2e"), (3, "2a1e")):
        options = ["--model", "model", "--dtype", dtype, "--split", split, "-o", f"{split}.h5"]
        run_janus(num_ranks, "infer", "rows.jsonl", *options, cwd=tmp_path)
        texts.add(export_text(tmp_path / f"{split}.h5", tmp_path))
    assert len(texts) == 1


def test_a_row_that_can_never_fit_is_refused(tmp_path: Path) -> None:
    rows = [
        {"prompt": "1+1=", "max_tokens": 400},
        {"prompt": "2+2=", "temperature": 0, "max_tokens": 9},
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    run_janus(0, "infer", "rows.jsonl", "--kv-memory", "100KB", cwd=tmp_path, check=3)
    found = export_rows(tmp_path / "rows.h5", tmp_path)
    assert "--kv-memory" in found[0]["error"]["reason"]
    assert found[1]["text"] == "4"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_leaves_a_run_that_resumes(tmp_path: Path, number: signal.Signals) -> None:
    """Signals to the ranks (as Slurm sends them, here to one rank) stop all ranks with exit code 75."""
    words = [f"Reverse: {'abcdef'[i % 5 :]} =" for i in range(300)]
    rows = [{"prompt": w, "max_tokens": 60, "ignore_eos": True, "temperature": 0.5} for w in words]
    write_rows(tmp_path / "rows.jsonl", rows)
    run_janus(2, "infer", "rows.jsonl", "-o", "calm.h5", cwd=tmp_path)
    command = janus_command(3, "infer", "rows.jsonl", "-o", "out.h5", "--split", "1a2e")
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "progress:" in line and "/300" in line:
            os.kill(expert_rank(process.pid), number)
            break
    lines += process.stderr.readlines()
    assert process.wait(TIME_LIMIT_S) == 75, "".join(lines)
    assert any("resumes" in line for line in lines)
    assert json.loads((tmp_path / "out.h5.progress.json").read_text())["state"] == "interrupted"
    run_janus(1, "infer", "rows.jsonl", "-o", "out.h5", cwd=tmp_path)
    assert export_text(tmp_path / "out.h5", tmp_path) == export_text(tmp_path / "calm.h5", tmp_path)


def test_control_c_on_mpirun_leaves_a_run_that_resumes(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}+{i}=", "max_tokens": 60, "ignore_eos": True} for i in range(300)]
    write_rows(tmp_path / "rows.jsonl", rows)
    command = janus_command(3, "infer", "rows.jsonl", "-o", "out.h5")
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "progress:" in line:
            process.send_signal(signal.SIGINT)
            break
    process.stderr.read()
    assert process.wait(TIME_LIMIT_S) != 0
    run_janus(2, "infer", "rows.jsonl", "-o", "out.h5", cwd=tmp_path)
    assert len(export_rows(tmp_path / "out.h5", tmp_path)) == 300


def expert_rank(mpirun_pid: int) -> int:
    """Process id of world rank 2 below this mpirun."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environ = (entry / "environ").read_bytes()
                command = (entry / "cmdline").read_bytes()
                parents = ancestors(int(entry.name))
            except OSError:
                continue
            if b"PMI_RANK=2" in environ and b"janus-hpc" in command and mpirun_pid in parents:
                return int(entry.name)
    raise AssertionError("rank 2 not found")


def ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        stat = (Path("/proc") / str(pid) / "stat").read_text()
        pid = int(stat.rpartition(")")[2].split()[1])
        found.append(pid)
    return found


def test_the_demo_folder_is_what_runs_without_a_model(tmp_path: Path) -> None:
    assert (demo_model_dir() / "config.json").is_file()
    write_rows(
        tmp_path / "rows.jsonl", [{"messages": [{"role": "user", "content": "Upper: janus ="}]}]
    )
    run_janus(0, "infer", "rows.jsonl", "--temperature", "0", cwd=tmp_path)
    assert export_rows(tmp_path / "rows.h5", tmp_path)[0]["text"] == "JANUS"


def test_without_a_compiler_torch_computes_and_the_run_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"Reverse: {w} =", "temperature": 0} for w in ("kamel", "abc", "janus")]
    write_rows(tmp_path / "rows.jsonl", rows)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    done = run_janus(2, "infer", "rows.jsonl", cwd=tmp_path)
    assert "kernels: torch (no C compiler found" in done.stderr
    assert [row["text"] for row in export_rows(tmp_path / "rows.h5", tmp_path)] == [
        "lemak",
        "cba",
        "sunaj",
    ]
    with h5py.File(tmp_path / "rows.h5") as file:
        assert file.attrs["kernels"] == "torch"
