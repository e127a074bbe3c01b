"""What rank 0 refuses before any work, each with a message that names file, key, expected and found."""

import json
import os
import shutil
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from janus_hpc.config import RunConfig
from janus_hpc.demo import demo_model_dir
from janus_hpc.engine.plan import Allocation, RunPlan
from janus_hpc.engine.prepare import prepare
from janus_hpc.errors import UsageError
from janus_hpc.launch import LaunchEnv
from janus_hpc.results.lock import run_lock
from janus_hpc.results.manifest import load_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A prompts file and a copy of the demo model to break."""
    row = {"prompt": "12+34=", "max_tokens": 4, "temperature": 0}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    shutil.copytree(demo_model_dir(), tmp_path / "model")
    return tmp_path


def allocation(node_ids: list[int]) -> Allocation:
    hosts = [f"node{node}" for node in node_ids]
    return Allocation(node_ids=node_ids, hosts=hosts, device="cpu", room_bytes=1 << 30)


def plan(folder: Path, num_ranks: int = 1, env: LaunchEnv | None = None, **options: Any) -> RunPlan:
    values = {"prompts": str(folder / "rows.jsonl"), "model": str(folder / "model")}
    values |= {"output": str(folder / "out.h5")} | options
    config = RunConfig(**values)
    with ExitStack() as held:
        made = prepare(config, env or LaunchEnv(), allocation([0] * num_ranks), held)
    assert isinstance(made, RunPlan)
    return made


def refused(folder: Path, num_ranks: int = 1, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        plan(folder, num_ranks, **options)
    return str(caught.value)


def test_missing_inputs(folder: Path) -> None:
    assert "nowhere.jsonl" in refused(folder, prompts=str(folder / "nowhere.jsonl"))
    assert "nowhere" in refused(folder, model=str(folder / "nowhere"))
    (folder / "empty").mkdir()
    assert "config.json is missing" in refused(folder, model=str(folder / "empty"))


def test_unwritable_output(folder: Path) -> None:
    assert "/proc/nothing" in refused(folder, output="/proc/nothing/out.h5")
    assert "is a folder" in refused(folder, output=str(folder))


def test_a_trace_takes_no_other_files_place(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")
    assert "another file" in refused(folder, routing_trace=str(folder / "rows.jsonl"))
    assert "another file" in refused(folder, trace=str(folder / "rows.jsonl"), overwrite=True)
    same = str(folder / "t.h5")
    assert "--trace" in refused(folder, routing_trace=same, trace=same)
    assert "--overwrite" in refused(folder, routing_trace=str(folder / "notes.txt"))
    assert "cannot write there" in refused(folder, routing_trace=str(folder / "nowhere/t.h5"))
    assert "cannot write there" in refused(folder, routing_trace="/proc/t.h5")
    assert plan(
        folder, routing_trace=str(folder / "notes.txt"), overwrite=True
    ).config.routing_trace
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("option", ["output", "routing_trace", "trace"])
def test_what_is_no_file_is_not_replaced(folder: Path, option: str) -> None:
    os.mkfifo(folder / "pipe")
    assert "is no regular file" in refused(folder, **{option: str(folder / "pipe")})
    assert "is a folder" in refused(folder, **{option: str(folder)})
    assert (folder / "pipe").is_fifo()


@pytest.mark.parametrize(
    ("split", "expected"), [("9a9e", "18"), ("0a2e", "0a2e"), ("x", "'x'"), ("1a", "1a")]
)
def test_impossible_splits(folder: Path, split: str, expected: str) -> None:
    assert expected in refused(folder, 2, split=split)


def test_more_expert_ranks_than_experts(folder: Path) -> None:
    message = refused(folder, 40, split="1a33e")
    assert "33" in message and "32" in message


def test_broken_shards_are_named(folder: Path) -> None:
    shard = sorted((folder / "model").glob("*.safetensors"))[0]
    whole = shard.read_bytes()
    for broken in (whole[: len(whole) // 2], b"\xff" * 100, b""):
        shard.write_bytes(broken)
        assert shard.name in refused(folder)
    shard.unlink()
    assert shard.name in refused(folder)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("hidden_size", 97, "expected ["),
        ("architectures", ["LlamaForCausalLM"], "DeepseekV3ForCausalLM, Qwen3MoeForCausalLM"),
        ("num_experts_per_tok", 33, "num_experts_per_tok"),
        ("num_hidden_layers", "four", "num_hidden_layers"),
        ("num_hidden_layers", 99, "is missing"),
        ("hidden_act", "gelu", "hidden_act"),
        ("dtype", "int8", "int8"),
        ("rope_parameters", {"rope_type": "longrope"}, "longrope"),
    ],
)
def test_a_changed_configuration_is_named(
    folder: Path, key: str, value: Any, expected: str
) -> None:
    path = folder / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    assert expected in refused(folder)


def test_config_that_is_no_json(folder: Path) -> None:
    (folder / "model" / "config.json").write_text("{")
    assert "config.json" in refused(folder)


def test_missing_and_extra_tensors_are_named(folder: Path) -> None:
    index = folder / "model" / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model.norm.weight", "model.norm.wait"))
    message = refused(folder)
    assert "model.norm.weight is missing (expected shape [" in message
    assert "unexpected tensor model.norm.wait" in message


def test_strict_names_the_bad_line(folder: Path) -> None:
    with (folder / "rows.jsonl").open("a") as file:
        file.write("{broken\n")
    assert "line 2" in refused(folder, strict=True)


def test_two_runs_do_not_write_to_one_output(folder: Path) -> None:
    plan(folder)
    with run_lock(folder / "out.h5.run"):
        assert "another run is writing" in refused(folder)


def test_a_lock_that_outlives_its_host_is_waited_for(tmp_path: Path) -> None:
    """The holder goes while the other one waits."""
    with ExitStack() as held:
        held.enter_context(run_lock(tmp_path))
        threading.Timer(0.5, held.close).start()
        with run_lock(tmp_path, wait_s=60):
            pass


def test_a_requeued_job_keeps_what_its_first_start_did(folder: Path) -> None:
    """Its command still says --fresh, which was heeded then; a job of its own discards."""
    first = LaunchEnv(job_id="7", slurm={"job_id": "7"})
    again = LaunchEnv(job_id="7", slurm={"job_id": "7", "restart_count": "1"})
    other = LaunchEnv(job_id="8", slurm={"job_id": "8", "restart_count": "1"})
    assert plan(folder, env=first, fresh=True).launch == 0
    assert plan(folder, env=again, fresh=True).launch == 1
    assert plan(folder, env=other, fresh=True).launch == 0
    assert plan(folder, env=first, fresh=True).launch == 0


def test_a_fresh_start_needs_no_manifest_that_can_be_read(folder: Path) -> None:
    plan(folder)
    (folder / "out.h5.run" / "manifest.json").write_text("{")
    assert plan(folder, fresh=True).launch == 0


def test_a_refusal_leaves_no_folder(folder: Path) -> None:
    assert "line 1" in refused(folder, strict=True, prompts=str(bad_rows(folder)))
    assert "not a file" in refused(folder, prompts=str(folder / "nowhere.jsonl"))
    assert not (folder / "out.h5.run").exists()


def bad_rows(folder: Path) -> Path:
    (folder / "bad.jsonl").write_text("{broken\n")
    return folder / "bad.jsonl"


def test_exchange_over_nodes_is_refused_early(folder: Path) -> None:
    values = {"prompts": str(folder / "rows.jsonl"), "exchange": "shm", "split": "1a1e"}
    config = RunConfig(model=str(folder / "model"), output=str(folder / "out.h5"), **values)
    with pytest.raises(UsageError, match="--exchange shm"), ExitStack() as held:
        prepare(config, LaunchEnv(), allocation([0, 1]), held)


def test_a_context_beyond_the_model_is_refused(folder: Path) -> None:
    assert "--max-context" in refused(folder, max_context=10**6)


@pytest.mark.parametrize(
    ("option", "value"), [("seed", 1), ("temperature", 0.5), ("max_tokens", 9), ("max_context", 64)]
)
def test_a_changed_set_up_does_not_resume(folder: Path, option: str, value: float) -> None:
    plan(folder)
    message = refused(folder, **{option: value})
    assert option in message and str(value) in message
    assert plan(folder, fresh=True, **{option: value}).launch == 0


def test_a_changed_input_or_model_does_not_resume(folder: Path) -> None:
    plan(folder)
    rows = folder / "rows.jsonl"
    text = rows.read_text()
    rows.write_text(text.replace("12", "13"))
    assert "input_sha256" in refused(folder)
    rows.write_text(text)
    assert plan(folder).launch == 1
    shard = sorted((folder / "model").glob("*.safetensors"))[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    assert "model_sha256" in refused(folder)


def test_a_start_tells_model_and_hosts(folder: Path) -> None:
    """A file made of the journals alone takes them from there; hosts are one a rank, as in any results file."""
    manifest = load_manifest(plan(folder, 2).run_dir)
    assert manifest is not None
    (launch,) = manifest.launches
    assert launch.info["model"] == str((folder / "model").resolve())
    assert launch.info["hosts"] == ["node0", "node0"]
