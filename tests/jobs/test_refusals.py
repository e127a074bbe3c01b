"""What a user gets wrong is a clear message and exit code 2, on one rank and on several, before any work."""

import shutil
from pathlib import Path

import pytest

from janus_hpc.demo import demo_model_dir
from tests.jobs.launcher import run_janus, write_rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_rows(tmp_path / "rows.jsonl", [{"prompt": "12+34=", "max_tokens": 4, "temperature": 0}])
    return tmp_path


def copied_model(folder: Path) -> Path:
    """A copy of the demo model to break."""
    model = folder / "model"
    shutil.copytree(demo_model_dir(), model)
    return model


def refused(folder: Path, *args: str, num_ranks: int = 0) -> str:
    done = run_janus(num_ranks, "infer", *args, cwd=folder, check=2)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count("janus-hpc:") <= 1, f"said more than once: {done.stderr}"
    return done.stderr


def test_missing_inputs(folder: Path) -> None:
    assert "nowhere.jsonl" in refused(folder, "nowhere.jsonl")
    assert "nowhere" in refused(folder, "rows.jsonl", "--model", "nowhere")
    assert "no prompts file" in refused(folder)


def test_unwritable_output(folder: Path) -> None:
    assert "/proc/nothing" in refused(folder, "rows.jsonl", "-o", "/proc/nothing/out.h5")
    assert "is a folder" in refused(folder, "rows.jsonl", "-o", str(folder))


@pytest.mark.parametrize(
    ("split", "expected"), [("9a9e", "18"), ("0a2e", "0a2e"), ("x", "'x'"), ("1a", "1a")]
)
def test_impossible_splits(folder: Path, split: str, expected: str) -> None:
    assert expected in refused(folder, "rows.jsonl", "--split", split, num_ranks=2)


def test_more_expert_ranks_than_experts(folder: Path) -> None:
    model = copied_model(folder)
    text = (model / "config.json").read_text()
    assert '"num_experts": 32' in text
    done = refused(folder, "rows.jsonl", "--split", "1a33e", num_ranks=0)
    assert "33" in done


def test_broken_models_name_file_and_shapes(folder: Path) -> None:
    model = copied_model(folder)
    shard = sorted(model.glob("*.safetensors"))[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    assert shard.name in refused(folder, "rows.jsonl", "--model", "model", num_ranks=2)
    shard.write_bytes(b"\xff" * 100)
    assert shard.name in refused(folder, "rows.jsonl", "--model", "model")
    shard.unlink()
    assert shard.name in refused(folder, "rows.jsonl", "--model", "model")
    shard.write_bytes(whole)
    config = model / "config.json"
    text = config.read_text()
    config.write_text(text.replace('"hidden_size": ', '"hidden_size": 1'))
    assert "expected [" in refused(folder, "rows.jsonl", "--model", "model")
    config.write_text(text.replace("Qwen3MoeForCausalLM", "LlamaForCausalLM"))
    message = refused(folder, "rows.jsonl", "--model", "model")
    assert "DeepseekV2ForCausalLM, Qwen3MoeForCausalLM" in message
    config.write_text("{")
    assert "config.json" in refused(folder, "rows.jsonl", "--model", "model")


def test_missing_and_extra_tensors_are_named(folder: Path) -> None:
    model = copied_model(folder)
    index = model / "model.safetensors.index.json"
    text = index.read_text()
    index.write_text(text.replace("model.norm.weight", "model.norm.wait"))
    assert "model.norm.weight is missing" in refused(folder, "rows.jsonl", "--model", "model")


def test_a_launcher_of_another_mpi_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables of a launcher that this MPI library does not speak: every process sees only itself."""
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    assert "sees only itself" in refused(folder, "rows.jsonl")


def test_strict_refuses_a_file_with_a_bad_row(folder: Path) -> None:
    with (folder / "rows.jsonl").open("a") as file:
        file.write("{broken\n")
    message = refused(folder, "rows.jsonl", "--strict", num_ranks=2)
    assert "line 2" in message


def test_wrong_flags(folder: Path) -> None:
    assert "--nonsense" in refused(folder, "rows.jsonl", "--nonsense", num_ranks=2)
    assert "--device" in refused(folder, "rows.jsonl", "--device", "tpu")
    assert "--kv-memory" in refused(folder, "rows.jsonl", "--kv-memory", "lots")


def test_a_changed_set_up_is_not_mixed_into_old_results(folder: Path) -> None:
    run_janus(0, "infer", "rows.jsonl", cwd=folder)
    run_janus(0, "infer", "rows.jsonl", cwd=folder)  # complete already: nothing to do
    assert "--overwrite" in refused(folder, "rows.jsonl", "--seed", "5")
    run_janus(0, "infer", "rows.jsonl", "--seed", "5", "--overwrite", cwd=folder)
