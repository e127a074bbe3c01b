"""`janus-hpc bench balance`: what it prints, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from janus_hpc.bench.commands import bench
from janus_hpc.errors import UsageError
from janus_hpc.launch import LaunchEnv
from janus_hpc.routing.trace_file import write_trace
from tests.unit.test_a_max import trace_of, uniform_routes


@pytest.fixture(scope="module")
def env(tmp_path_factory: pytest.TempPathFactory) -> LaunchEnv:
    return LaunchEnv(cache_dir=tmp_path_factory.mktemp("cache"))


def records(env: LaunchEnv, *options: str) -> list[dict[str, Any]]:
    done = CliRunner().invoke(
        bench, ["balance", "--draws", "5", *options], obj=env, catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    found: list[dict[str, Any]] = json.loads(done.output)
    return found


@pytest.mark.parametrize("placement", ["dealt", "random", "contiguous", "janus", "eplb"])
@pytest.mark.parametrize("routing", ["uniform", "zipf:1.1"])
def test_one_record_for_every_case(env: LaunchEnv, placement: str, routing: str) -> None:
    options = ["--experts", "40", "--top-k", "4", "--slots", "12", "--expert-ranks", "4,5"]
    found = records(
        env, *options, "--batch", "2,30", "--routing", routing, "--placement", placement
    )
    cases = [(its["expert_ranks"], its["batch"], its["policy"]) for its in found]
    policies = ["aebs", "greedy", "eplb", "random", "first"]
    assert cases == [(r, b, p) for r in (4, 5) for b in (2, 30) for p in policies]
    for its in found:
        assert its["mean_exact"] <= its["mean_a_max"] <= 12 and its["time_us"] > 0
        if its["policy"] == "aebs":
            assert its["mean_a_max"] == its["mean_exact"]


def test_a_trace_brings_its_own_sizes(env: LaunchEnv, tmp_path: Path) -> None:
    routes_LWK = np.stack([uniform_routes(50, 12, 3, seed) for seed in (1, 2)])
    write_trace(tmp_path / "t.h5", trace_of(routes_LWK, 12), model="", created=0)
    options = ["--slots", "5", "--expert-ranks", "3", "--batch", "4", "--placement", "janus"]
    found = records(env, *options, "--routing", f"trace:{tmp_path / 't.h5'}", "--layer", "1")
    assert {(its["experts"], its["top_k"]) for its in found} == {(12, 3)}
    with pytest.raises(UsageError, match="--layer 2"):
        records(env, *options, "--routing", f"trace:{tmp_path / 't.h5'}", "--layer", "2")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--routing", "zipf"], "--routing 'zipf'"),
        (["--routing", "zipf:x"], "--routing 'zipf:x'"),
        (["--routing", "flat"], "expected uniform, zipf:S"),
        (["--routing", "trace:no.h5"], "no.h5: no such file"),
        (["--top-k", "200"], "--top-k 200: more than --experts 160"),
        (["--slots", "3"], "take at least"),
        (["--expert-ranks", "0"], "--expert-ranks"),
        (["--policies", "best"], "'best' is unknown"),
    ],
)
def test_what_cannot_be_is_refused(env: LaunchEnv, options: list[str], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        records(env, *options)
