"""`janus-hpc profile` as a user starts it: a file that plans accept, and mistakes told before measuring."""

import json
from pathlib import Path

import pytest

from janus_hpc.models.config_file import ConfigFile
from janus_hpc.models.registry import load_spec, spec_of
from janus_hpc.models.shapes import shape_config
from janus_hpc.planner.profile_data import shape_of
from janus_hpc.planner.profile_file import check_model, read_profile
from tests.jobs.launcher import run_janus
from tests.jobs.models import save_model, variants


@pytest.mark.parametrize("num_ranks", [0, 2])
def test_a_shape(tmp_path: Path, num_ranks: int) -> None:
    done = run_janus(num_ranks, "profile", "--shape", "moe-3m", "--quick", cwd=tmp_path)
    profile = read_profile(tmp_path / "profile.json")
    spec = spec_of(ConfigFile(Path("shape"), shape_config("moe-3m")))
    check_model(profile, "profile.json", shape_of(spec, "float32", 4, "moe-3m"))
    assert profile.basis == "measured" and profile.hardware.device == "cpu"
    assert profile.hardware.cores_per_node > 0
    numbers = [1, 2][: max(num_ranks, 1)]
    assert [its.num_sharing for its in profile.attention] == numbers
    assert [its.num_sharing for its in profile.experts] == numbers
    for costs in profile.attention:
        at_64 = costs.sparse.c_0 + 64 * (costs.sparse.alpha + 64 * costs.sparse.c_kv)
        assert max(at_64, costs.sparse.c_a) > 0 and costs.dense.alpha == 0
    assert {point.what.split(".")[0] for point in profile.points} >= {"attention", "experts"}
    assert all(point.seconds >= 0 for point in profile.points)
    assert (num_ranks > 0) == any(point.what == "exchange" for point in profile.points)
    assert "beta" in done.stderr and "profile.json: profile of moe-3m" in done.stderr


def test_a_model_with_dense_layers_and_shared_experts(tmp_path: Path) -> None:
    save_model(variants()["deepseek"], tmp_path / "model")
    options = ["--model", "model", "--quick", "-o", "p.json", "--dtype", "bfloat16"]
    run_janus(3, "profile", *options, cwd=tmp_path)
    profile = read_profile(tmp_path / "p.json")
    spec = load_spec(tmp_path / "model")
    check_model(profile, "p.json", shape_of(spec, "bfloat16", 2, "model"))
    assert profile.model.num_dense_layers > 0
    assert profile.attention[0].sparse.c_0 + profile.attention[0].sparse.alpha > 0
    assert any("model" in source for source in profile.sources)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--shape", "moe-4m"], "unknown shape 'moe-4m'"),
        (["--model", "nowhere"], "nowhere"),
        (["--model", "x", "--shape", "moe-3m"], "give one of them"),
        (["-o", "nowhere/p.json"], "the folder nowhere does not exist"),
        (["-o", "."], "cannot be written"),
        (["--max-context", "999999"], "exceeds the model's"),
        (["--exchange", "-o", "nowhere/x.json"], "the folder nowhere does not exist"),
    ],
)
def test_mistakes_are_told_before_measuring(tmp_path: Path, options: list[str], told: str) -> None:
    done = run_janus(0, "profile", *options, cwd=tmp_path, check=2)
    assert told in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_predictions_are_compared_with_what_runs(tmp_path: Path) -> None:
    """Every cell of splits and batch sizes, and a summary; other models are refused."""
    run_janus(2, "profile", "--shape", "moe-3m", "--quick", "-o", "p.json", cwd=tmp_path)
    asked = ["--splits", "colocated,1a1e", "--batch", "2,4", "--new-tokens", "4", "--repeats", "1"]
    command = ["bench", "plan", "--profile", "p.json", *asked, "--json", "cells.json"]
    run_janus(2, *command, "--shape", "moe-3m", cwd=tmp_path)
    *cells, summary = json.loads((tmp_path / "cells.json").read_text())
    assert [(its["split"], its["batch"]) for its in cells] == [
        ("colocated", 2),
        ("colocated", 4),
        ("1a1e", 2),
        ("1a1e", 4),
    ]
    for its in cells:
        assert its["error"] == pytest.approx(its["predicted_tpot_s"] / its["measured_tpot_s"] - 1)
        parts = sum(its[f"predicted_{name}_s"] for name in ("attention", "moe", "comm"))
        assert its["predicted_tpot_s"] == pytest.approx(parts)
    errors = [abs(its["error"]) for its in cells]
    assert summary["num_cells"] == 4
    assert summary["mean_absolute_error"] == pytest.approx(sum(errors) / 4)
    assert set(summary["choices"]) == {"2", "4"}
    done = run_janus(2, *command, "--shape", "moe-47m", cwd=tmp_path, check=2)
    assert "p.json: is of model 'moe-3m'" in done.stderr
