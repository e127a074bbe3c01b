"""The job files in jobs/ are accepted by `infer` and by `plan`, and say what `plan` chooses."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from janus_hpc import config
from janus_hpc.cli import cli
from janus_hpc.errors import UsageError
from janus_hpc.launch import read_launch
from janus_hpc.plan.slurm_text import COME_BACK, PREPARE

ROOT = Path(__file__).resolve().parents[2]
JOBS = sorted((ROOT / "jobs").glob("*.toml"))
# Ranks of published models, as many as the nodes of 8 H100 they are planned for have.
PLANNED = {"qwen3-235b-a22b": 64, "deepseek-v2": 32, "deepseek-v3": 128}
DEMO = """\
prompts = "rows.jsonl"
slo_tpot_ms = 200.0
[plan]
profile = "h100"
shape = "deepseek-v2"
ranks = 16
context = 500
"""


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(cli, ["plan", *map(str, words)], obj=read_launch())


def plan(job: Path, folder: Path, *words: str) -> dict[str, Any]:
    """`chosen` and `inputs` of the plan as JSON."""
    result = call("--job", job, "--no-baselines", "--json", folder / "plan.json", *words)
    assert result.exit_code == 0, result.exception or result.output
    record: dict[str, Any] = json.loads((folder / "plan.json").read_text())
    return record


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_infer_accepts_every_job_file(job: Path) -> None:
    run = config.load(job, {})
    # The prompts are in the repository, or a command at the file's top makes them.
    assert Path(run.prompts).exists() or f"jobs/{Path(run.prompts).name}" in job.read_text()


@pytest.mark.parametrize("shape", PLANNED)
def test_a_large_job_says_what_its_plan_chooses(shape: str, tmp_path: Path) -> None:
    (job,) = (path for path in JOBS if path.stem.startswith(f"{shape}_"))
    chosen = plan(job, tmp_path)["chosen"]
    asked = tomllib.loads(job.read_text())
    split = f"{chosen['n_attention']}a{chosen['n_expert']}e"
    assert chosen["num_ranks"] + chosen["num_parked"] == PLANNED[shape] == asked["plan"]["ranks"]
    assert asked["split"] == split and f"_{split}_h100x{PLANNED[shape]}" in job.stem
    for key in ("slots", "microbatches", "exchange"):
        assert asked[key] == chosen[key], key
    assert asked["max_sequences"] == -(-chosen["batch"] // chosen["n_attention"])
    assert f"--nodes={PLANNED[shape] // 8} --ntasks-per-node=8" in job.read_text()


def test_flags_win_over_the_job_file(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text(DEMO)
    (tmp_path / "rows.jsonl").write_text('{"prompt": [1, 2, 3], "max_tokens": 4}\n')
    found = plan(job, tmp_path)
    assert found["chosen"]["num_ranks"] + found["chosen"]["num_parked"] == 16
    assert (found["inputs"]["slo_tpot_ms"], found["inputs"]["objective"]) == (200.0, "fastest")
    assert (
        plan(job, tmp_path, "--ranks", "24", "--slo-tpot-ms", "300")["inputs"]["slo_tpot_ms"] == 300
    )
    # What cannot stand beside a flag gives way to it: --ranks and --prompts here.
    rate = plan(job, tmp_path, "--rate", "1000", "--max-ranks", "40")["inputs"]
    assert (rate["objective"], rate["max_ranks"]) == ("rate", 40)
    rows = ("--rows", "7", "--mean-prompt", "10", "--mean-answer", "20")
    assert plan(job, tmp_path, *rows)["inputs"]["rows"]["num_rows"] == 7


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (DEMO + "rank = 1\n", "unknown key 'rank' in [plan]; valid keys are "),
        (DEMO + "rows = 0\n", "key 'rows' in [plan]: Expected `int` >= 1, got 0"),
        (DEMO + "mean_prompt = inf\n", "key 'mean_prompt' in [plan]: expected a finite number"),
        ("plan = 3\n", "'plan' is a table of its own: [plan]"),
        (DEMO.replace('profile = "h100"\n', ""), "no profile given"),
        (
            DEMO.replace('shape = "deepseek-v2"\n', "").replace("slo", 'model = "no"\nslo'),
            "no shape",
        ),
    ],
)
def test_a_fault_is_named(tmp_path: Path, text: str, expected: str) -> None:
    job = tmp_path / "job.toml"
    job.write_text(text)
    expected = expected.replace("no shape", "no does not exist here; give --model DIR, or name its")
    error = call("--job", job).exception
    assert isinstance(error, UsageError) and expected in str(error), error


def test_a_run_checks_the_table_it_does_not_use(tmp_path: Path) -> None:
    job = tmp_path / "job.toml"
    job.write_text(DEMO)
    assert config.load(job, {}).slo_tpot_ms == 200.0
    job.write_text(DEMO + "rank = 1\n")
    with pytest.raises(UsageError, match="unknown key 'rank'"):
        config.load(job, {})


def test_planned_scripts_come_back_as_the_shipped_one_does() -> None:
    shipped = (ROOT / "slurm" / "janus.sbatch").read_text()
    assert PREPARE in shipped and COME_BACK in shipped
