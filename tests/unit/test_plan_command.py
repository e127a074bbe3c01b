"""`janus-hpc plan` as it is called: what it prints, refuses and leaves unloaded."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from janus_hpc.cli import cli
from janus_hpc.demo import demo_model_dir
from janus_hpc.errors import UsageError
from janus_hpc.launch import read_launch
from janus_hpc.plan.request import parse_duration
from janus_hpc.planner.profile_data import ExchangeCoefs
from janus_hpc.planner.profile_file import write_profile
from janus_hpc.routing.trace import RoutingTrace
from janus_hpc.routing.trace_file import write_trace
from tests.unit.planner_profiles import demo_profile, gpu_profile

CANDIDATE_KEYS = {
    "n_attention",
    "n_expert",
    "colocated",
    "num_ranks",
    "slots",
    "microbatches",
    "exchange",
    "batch",
    "tpot_ms",
    "attention_ms",
    "moe_ms",
    "comm_ms",
    "tokens_per_s",
    "tokens_per_s_per_rank",
    "memory_bytes",
    "cost",
    "feasible",
    "reason",
}
RATE = ("--rate", "1000", "--slo-tpot-ms", "100", "--context", "512", "--max-ranks", "12")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Profiles: gpu.json, other.json with less memory and a higher price, alone.json with one node, demo.json."""
    made = tmp_path_factory.mktemp("profiles")
    write_profile(made / "gpu.json", gpu_profile())
    write_profile(made / "demo.json", demo_profile())
    coefs = ExchangeCoefs(fixed_s=2e-5, per_rank_s=1e-6, per_row_s=5e-9, per_part_s=2e-9)
    write_profile(made / "alone.json", gpu_profile(exchange=coefs))
    return made


def call(folder: Path, *words: str | Path, profile: str = "gpu.json") -> Result:
    arguments = ["plan", "--profile", str(folder / profile), *map(str, words)]
    return CliRunner().invoke(cli, arguments, obj=read_launch())


def plan(folder: Path, *words: str | Path, profile: str = "gpu.json") -> dict[str, Any]:
    done = call(folder, *words, "--json", "-", "--no-baselines", profile=profile)
    assert done.exception is None, done.exception
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def refusal(folder: Path, *words: str | Path, profile: str = "gpu.json") -> str:
    """The message of a call that must end with exit code 2."""
    done = call(folder, *words, profile=profile)
    assert isinstance(done.exception, UsageError), done.output
    assert done.stdout == ""
    return str(done.exception)


def test_the_contract_of_the_json(folder: Path) -> None:
    done = call(folder, *RATE, "--json", "-", "--no-baselines")
    assert done.exception is None, done.exception
    record = json.loads(done.stdout)
    assert {"chosen", "candidates", "num_candidates", "inputs", "baselines", "text"} <= set(record)
    assert record["num_candidates"] == len(record["candidates"])
    for candidate in record["candidates"]:
        assert set(candidate) == CANDIDATE_KEYS
        assert set(candidate["memory_bytes"]) == {"attention", "expert"}
        assert candidate["feasible"] == (candidate["reason"] == "")
        if candidate["colocated"]:
            assert candidate["num_ranks"] == candidate["n_attention"] == candidate["n_expert"]
    chosen = record["chosen"]
    assert (chosen["n_attention"], chosen["n_expert"], chosen["num_ranks"]) == (1, 6, 7)
    assert chosen["tokens_per_s"] >= 1000 and chosen["tpot_ms"] <= 100
    inputs = record["inputs"]
    assert inputs["profile"]["basis"] == "made up" and "uniform routing" in inputs["a_max"]
    assert record["text"].startswith("1a6e: 7 ranks, batch ")
    # The words go to the other stream, so that a script reads JSON alone.
    assert record["text"] in done.stderr


def test_the_words_say_why(folder: Path) -> None:
    done = call(folder, *RATE, "--no-baselines")
    lines = done.stdout.splitlines()
    assert "a step: attention" in lines[1]
    text = done.stdout
    assert (
        "the next smaller candidates fail: 1a5e: memory: an expert rank needs 89.0 GB of 76.0 GB"
        in text
    )
    assert "colocated would be 9c" in text


def test_baselines_are_second_opinions(folder: Path) -> None:
    done = call(folder, *RATE, "--json", "-")
    record = json.loads(done.stdout)
    assert set(record["baselines"]) == {"megascale", "xdeepserve", "monolithic", "closed_form"}
    ranks = record["baselines"]["xdeepserve"]
    assert (ranks["n_attention"] + ranks["n_expert"]) % 4 == 0
    assert record["baselines"]["monolithic"] is None
    assert "others would take: MegaScale-Infer" in record["text"]


def test_a_fixed_allocation_parks_what_it_does_not_need(folder: Path) -> None:
    fixed = ("--ranks", "6", "--context", "50", "--max-sequences", "1", "--exchange", "direct")
    record = plan(folder, *fixed, profile="demo.json")
    chosen = record["chosen"]
    assert chosen["num_ranks"] + chosen["num_parked"] == 6
    speeds = [its["tokens_per_s"] for its in record["candidates"] if its["feasible"]]
    assert chosen["tokens_per_s"] == max(speeds)


def test_rows_add_when_and_how_much(folder: Path) -> None:
    rows = ("--rows", "5000", "--mean-prompt", "300", "--mean-answer", "200", "--max-ranks", "20")
    record = plan(folder, *rows, "--slo-tpot-ms", "100", "--deadline", "1:00:00")
    chosen = record["chosen"]
    assert chosen["eta_s"] <= 3600
    assert chosen["rank_hours"] == pytest.approx(chosen["num_ranks"] * chosen["eta_s"] / 3600, 1e-4)
    assert 0 < chosen["load_s"] < chosen["eta_s"]
    hours = [its["job_s"] * its["cost"] for its in record["candidates"] if its["feasible"]]
    assert hours[0] == min(hours)
    # A sequence in decode has its prompt and half of its answer behind it.
    assert record["inputs"]["context"]["mean"] == pytest.approx(300 + 199 / 2)


def test_prompts_are_read_with_the_demo_tokenizer(folder: Path) -> None:
    record = plan(
        folder, "--prompts", demo_model_dir() / "prompts.jsonl", "--ranks", "2", profile="demo.json"
    )
    rows = record["inputs"]["rows"]
    assert rows["num_rows"] == 8 and "without a tokenizer" not in rows["how"]
    assert {"eta_s", "rank_hours", "load_s"} <= set(record["chosen"])


def test_roles_of_different_hardware(folder: Path) -> None:
    other = ("--expert-profile", folder / "alone.json", "--price-attention", "3")
    record = plan(folder, *RATE, *other)
    assert not any(its["colocated"] for its in record["candidates"])
    chosen = record["chosen"]
    assert chosen["cost"] == 3 * chosen["n_attention"] + chosen["n_expert"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), "give --rate"),
        (("--rate", "5"), "--context is missing"),
        (("--rate", "5", "--ranks", "4", "--context", "9"), "--rate and --ranks cannot both"),
        (("--ranks", "4", "--max-ranks", "4", "--context", "9"), "--ranks and --max-ranks cannot"),
        (("--ranks", "4", "--deadline", "9", "--context", "9"), "--ranks and --deadline cannot"),
        (("--deadline", "9", "--rate", "5", "--context", "9"), "--rate and --deadline cannot"),
        (("--rows", "5"), "--rows needs --mean-prompt and --mean-answer"),
        (("--prompts", "nosuch.jsonl"), "no such input file"),
        (("--ranks", "4", "--context-std", "9", "--prompts", "x"), "--context-std needs --context"),
        (("--rate", "5", "--context", "9", "--exchange", "fast"), "--exchange 'fast': expected"),
        (("--rate", "5", "--context", "9", "--shape", "x"), "--shape is for shipped hardware"),
        (
            ("--rate", "5", "--context", "9", "--model", demo_model_dir()),
            "is of model 'made-up-160'",
        ),
        (("--rate", "5", "--context", "9", "--trace", "nosuch.h5"), "nosuch.h5: no such file"),
        (("--rate", "5", "--context", "9", "--slots", "2"), "need 80 expert ranks"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, words: tuple[str, ...], expected: str) -> None:
    assert expected in refusal(folder, *words)


@pytest.mark.parametrize("text", ["soon", "-5", "0", "1:2:3:4", "nan", "inf", "1-00"])
def test_a_deadline_that_is_none(folder: Path, text: str) -> None:
    rows = ("--rows", "5", "--mean-prompt", "3", "--mean-answer", "2")
    assert "expected" in refusal(folder, *rows, f"--deadline={text}")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("1.5", 1.5), ("2:30", 150), ("1:00:01.5", 3601.5), ("1-02:00:00", 93600)],
)
def test_a_deadline_in_slurms_forms(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


def test_a_profile_that_is_none(folder: Path) -> None:
    assert "cannot be read" in refusal(folder, *RATE, profile="nosuch.json")
    (folder / "broken.json").write_text('{"format": "janus-hpc profile"}')
    assert "make it anew" in refusal(folder, *RATE, profile="broken.json")


def test_a_trace_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    write_trace(tmp_path / "trace.h5", small_trace(32), model="other", created=0)
    message = refusal(folder, *RATE, "--trace", tmp_path / "trace.h5")
    assert "has 32 experts, the model 160" in message
    write_trace(tmp_path / "demo.h5", small_trace(32, num_layers=4), model="demo", created=0)
    record = plan(
        folder,
        "--ranks",
        "2",
        "--context",
        "9",
        "--trace",
        tmp_path / "demo.h5",
        profile="demo.json",
    )
    assert "demo.h5" in record["inputs"]["a_max"]


def small_trace(num_experts: int, num_layers: int = 1, top_k: int = 4) -> RoutingTrace:
    """64 tokens that choose neighbours."""
    first_N = np.arange(64) % num_experts
    routes_NK = np.sort((first_N[:, None] + np.arange(top_k)) % num_experts, axis=1)
    counts_E = np.bincount(routes_NK.ravel(), minlength=num_experts)
    chosen_NE = np.zeros((64, num_experts), dtype=np.int64)
    np.put_along_axis(chosen_NE, routes_NK, 1, axis=1)
    pairs_EE = chosen_NE.T @ chosen_NE
    np.fill_diagonal(pairs_EE, 0)
    return RoutingTrace(
        layer_ids=tuple(range(num_layers)),
        num_experts=num_experts,
        top_k=top_k,
        num_tokens_L=np.full(num_layers, 64),
        counts_LE=np.stack([counts_E] * num_layers),
        coactivation_LEE=np.stack([pairs_EE] * num_layers),
        num_routes_L=np.full(num_layers, 64),
        routes_LWK=np.stack([routes_NK.astype(np.int16)] * num_layers),
    )


def test_an_slo_that_none_meets_names_the_nearest(folder: Path) -> None:
    message = refusal(folder, "--rate", "100", "--slo-tpot-ms", "1", "--context", "512")
    assert "meets the SLO: the nearest" in message and "is over 1 ms" in message


def test_a_rate_beyond_all_ranks_names_what_they_reach(folder: Path) -> None:
    beyond = ("--rate", "1e9", "--slo-tpot-ms", "100", "--context", "512", "--max-ranks", "10")
    message = refusal(folder, *beyond)
    assert "at most 10 ranks makes 1e+09 tokens/s" in message and "the nearest" in message


def test_too_little_memory_names_the_rank_that_lacks_it(folder: Path) -> None:
    few = ("--rate", "10", "--context", "512", "--max-ranks", "3")
    assert "fits: the nearest, 3c: memory: a colocated rank needs" in refusal(folder, *few)


def test_a_deadline_that_none_keeps_names_the_fastest(folder: Path) -> None:
    rows = ("--rows", "10000000", "--mean-prompt", "300", "--mean-answer", "200")
    message = refusal(folder, *rows, "--deadline", "1:00:00", "--max-ranks", "12")
    assert "ends by the deadline: the fastest" in message and "of 1:00:00" in message


def test_without_a_link_between_nodes_plans_stay_inside_one(folder: Path) -> None:
    record = plan(folder, *RATE, profile="alone.json")
    beyond = [its for its in record["candidates"] if its["num_ranks"] > 8]
    reasons = [its["reason"] for its in beyond if not its["reason"].startswith("memory")]
    assert reasons and all(reason.startswith("nodes: its ") for reason in reasons)
    assert all(its["tpot_ms"] is None for its in beyond if its["reason"].startswith("nodes"))


def test_the_script_and_the_map_are_not_written_over(folder: Path, tmp_path: Path) -> None:
    emit = (*RATE, "--no-baselines", "--emit", "slurm", "-o", tmp_path / "out")
    assert call(folder, *emit).exception is None
    # The profile is of no folder's model: whoever submits names it.
    assert '--model "${JANUS_MODEL:?' in (tmp_path / "out" / "janus-plan.sbatch").read_text()
    script = (tmp_path / "out" / "janus-plan.sbatch").read_text()
    assert "--split 1a6e" in script and "#SBATCH --gpus-per-node=7" in script
    assert "--gpu-bind=none" in script
    ranks = (tmp_path / "out" / "ranks.txt").read_text().splitlines()
    assert ranks[1:3] == ["0 0 0 attention", "1 0 1 expert"] and len(ranks) == 8
    assert "exists" in str(call(folder, *emit).exception)
    assert call(folder, *emit, "--overwrite").exception is None
    subprocess.run(["bash", "-n", tmp_path / "out" / "janus-plan.sbatch"], check=True)


def test_torch_and_mpi_are_not_loaded(folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from janus_hpc.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    loaded = {'torch', 'mpi4py', 'mpi4py.MPI', 'transformers'} & set(sys.modules)\n"
        "    assert not loaded, loaded\n"
    )
    rows = ["--prompts", str(demo_model_dir() / "prompts.jsonl"), "--ranks", "3"]
    emit = ["--emit", "slurm", "-o", str(tmp_path), "--json", str(tmp_path / "plan.json")]
    profile = ["plan", "--profile", str(folder / "demo.json")]
    done = subprocess.run(
        [sys.executable, "-c", code, *profile, *rows, *emit],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "plan.json").read_text())["chosen"]
