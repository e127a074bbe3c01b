"""`janus-hpc simulate`: demands, plans over time, costs of moves, and the command."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from janus_hpc.cli import cli
from janus_hpc.errors import UsageError
from janus_hpc.launch import read_launch
from janus_hpc.planner.a_max_lookup import uniform_routing
from janus_hpc.planner.hardware import hardware_profile
from janus_hpc.planner.policies import POLICIES, Inputs, make_policies, plan_all
from janus_hpc.planner.system import Context
from janus_hpc.simulate.capacity import Capacity, Plan
from janus_hpc.simulate.demand import Demand, built_in, read_demand
from janus_hpc.simulate.moves import move_cost
from janus_hpc.simulate.timeline import Rules, play

SLO_S = 0.06


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    profile = hardware_profile("h100", "deepseek-v2", part_bytes=2)
    return Inputs(
        profile=profile,
        plain=hardware_profile("h100", "deepseek-v2", balances=False, part_bytes=2),
        routing=uniform_routing(160, 6),
        context=Context(mean=256),
        slo_s=SLO_S,
        max_ranks=20,
        part_bytes=2,
    )


@pytest.fixture(scope="module")
def capacities(inputs: Inputs) -> dict[str, Capacity]:
    policies = make_policies(inputs).values()
    return {its.name: Capacity(its, SLO_S, 200, 200) for its in policies}


def make_demand(rates: list[float]) -> Demand:
    count = len(rates)
    return Demand(
        name="made up",
        starts_T=np.arange(count) * 900.0,
        lengths_T=np.full(count, 900.0),
        rates_T=np.array(rates),
    )


@pytest.mark.parametrize("kind", ["diurnal", "bursty"])
@pytest.mark.parametrize("seed", [0, 3])
def test_mean_and_peak_are_exact(kind: str, seed: int) -> None:
    def make() -> Demand:
        return built_in(kind, mean_rate=100, peak_ratio=7.5, hours=24, interval_s=900, seed=seed)

    demand = make()
    assert len(demand.rates_T) == 96
    assert demand.rates_T.mean() == pytest.approx(100, rel=1e-9)
    assert demand.rates_T.max() == pytest.approx(750, rel=1e-9)
    assert demand.rates_T.min() > 0
    assert demand.hours() == 24
    np.testing.assert_array_equal(demand.rates_T, make().rates_T)
    other = built_in(kind, mean_rate=100, peak_ratio=7.5, hours=24, interval_s=900, seed=seed + 1)
    assert (other.rates_T != demand.rates_T).any()


def test_flat_demand_and_impossible_ones() -> None:
    flat = built_in("flat", mean_rate=5, peak_ratio=7.5, hours=1, interval_s=900, seed=0)
    assert flat.rates_T.tolist() == [5.0] * 4
    with pytest.raises(UsageError, match=r"--peak-ratio 7\.5"):
        built_in("diurnal", mean_rate=5, peak_ratio=7.5, hours=2, interval_s=900, seed=0)
    with pytest.raises(UsageError, match="--hours"):
        built_in("flat", mean_rate=5, peak_ratio=1, hours=0.1, interval_s=900, seed=0)


def test_reading_a_csv_file(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("time_s,rate\n0,10\n60,20.5\n\n180,0\n")
    demand = read_demand(path)
    assert demand.rates_T.tolist() == [10, 20.5, 0]
    assert demand.lengths_T.tolist() == [60, 120, 120]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0,1\n1,2\n", "line 1.*expected 'time_s,rate'"),
        ("time_s,rate\n0,1\n5\n", "line 3.*1 values"),
        ("time_s,rate\n0,1\n5,fast\n", "line 3.*not two numbers"),
        ("time_s,rate\n0,1\n5,-2\n", "line 3: rate is -2"),
        ("time_s,rate\n0,1\n5,nan\n", "line 3: rate is nan"),
        ("time_s,rate\n5,1\n5,2\n", "line 3: time_s is 5"),
        ("time_s,rate\n5,1\n", "1 intervals"),
        ("", "0 intervals"),
        ("time_s,rate\n0,\xff\n", "UTF-8"),
    ],
)
def test_faults_of_a_csv_file_name_the_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=words):
        read_demand(path)


@pytest.mark.parametrize("rate", [50.0, 3000.0, 9000.0, 16000.0])
@pytest.mark.parametrize("name", ["janus", "xdeepserve", "monolithic"])
def test_capacities_give_the_plan_of_algorithm_2(
    inputs: Inputs, capacities: dict[str, Capacity], name: str, rate: float
) -> None:
    """One deployment: the search over steady states needs as many ranks."""
    judged, best = plan_all(inputs, rate, [name])[name]
    one = Capacity(capacities[name].policy, SLO_S, inputs.max_ranks, 1).plan(rate)
    assert (best is None) == (one is None)
    if best is not None and one is not None:
        assert one.num_ranks == judged.grid.num_ranks()[best]


def test_large_demands_take_several_pods(capacities: dict[str, Capacity]) -> None:
    small, large = capacities["janus"].plan(500.0), capacities["janus"].plan(100_000.0)
    assert small is not None
    assert large is not None
    assert small.pods == 1
    assert large.pods > 1
    assert large.capacity >= 100_000
    assert large.num_ranks == large.pods * (large.num_attention + large.num_expert)
    assert capacities["janus"].plan(1e9) is None
    most = capacities["janus"].largest()
    assert most is not None
    assert most.num_ranks <= 200


def test_overload_holds_the_largest_plan_and_counts_as_violation(
    capacities: dict[str, Capacity],
) -> None:
    found = play(capacities["janus"], make_demand([500.0, 1e9]), Rules(slo_s=SLO_S))
    first, last = found.intervals
    assert first.meets_slo
    assert not last.meets_slo
    assert last.plan == capacities["janus"].largest()
    assert last.plan is not None
    assert last.served == last.plan.capacity
    summary = found.summary()
    assert summary["slo_intervals"] == 0.5
    assert summary["slo_tokens"] == pytest.approx(500 / (1e9 + 500))
    never = Capacity(capacities["janus"].policy, 1e-4, 200, 200)
    held = play(never, make_demand([500.0]), Rules(slo_s=1e-4)).intervals[0]
    assert held.plan is not None
    assert not held.meets_slo


def test_sums_over_a_timeline(capacities: dict[str, Capacity]) -> None:
    found = play(capacities["janus"], make_demand([500.0] * 4), Rules(slo_s=SLO_S))
    summary = found.summary()
    plan = found.intervals[0].plan
    assert plan is not None
    assert summary["gpu_hours"] == pytest.approx(plan.num_ranks)
    assert summary["mean_tpg"] == pytest.approx(500 / plan.num_ranks)
    assert summary["num_moves"] == 0
    assert all(0 < (its.tpot_s or 0) <= SLO_S for its in found.intervals)


def test_a_plan_stays_unless_enough_is_saved(capacities: dict[str, Capacity]) -> None:
    demand = make_demand([500.0, 9000.0, 8000.0, 500.0, 9000.0])
    loose = play(capacities["janus"], demand, Rules(slo_s=SLO_S, least_saving=1.0))
    plans = [its.plan for its in loose.intervals]
    assert plans[1] == plans[2] == plans[3] == plans[4] != plans[0]
    assert all(its.meets_slo for its in loose.intervals)
    tight = play(capacities["janus"], demand, Rules(slo_s=SLO_S))
    assert tight.summary()["gpu_hours"] < loose.summary()["gpu_hours"]
    assert tight.summary()["num_moves"] > loose.summary()["num_moves"]


def test_plans_that_lag_miss_a_rise_unless_there_is_headroom(
    capacities: dict[str, Capacity],
) -> None:
    demand = make_demand([500.0, 100_000.0])
    late = play(capacities["janus"], demand, Rules(slo_s=SLO_S, lag=1))
    assert [its.meets_slo for its in late.intervals] == [True, False]
    ready = play(capacities["janus"], demand, Rules(slo_s=SLO_S, lag=1, headroom=200.0))
    assert all(its.meets_slo for its in ready.intervals)


def make_plan(pods: int, attention: int, experts: int, slots: int) -> Plan:
    ranks = pods * (attention + experts)
    return Plan(
        index=0,
        pods=pods,
        num_attention=attention,
        num_expert=experts,
        num_slots=slots,
        colocated=False,
        num_ranks=ranks,
        cost=float(ranks),
        capacity=1.0,
    )


def test_what_moves_cost(inputs: Inputs) -> None:
    profile = inputs.profile
    model, loading = profile.model, profile.loading
    small, more = make_plan(1, 1, 6, 27), make_plan(1, 3, 6, 27)
    assert move_cost(profile, small, small, "ranks").rank_seconds == 0
    added = move_cost(profile, small, more, "ranks")
    assert added.num_ranks == 2
    assert added.num_bytes == 2 * model.attention_bytes
    seconds = model.attention_bytes / loading.link_rate + loading.join_s
    assert added.rank_seconds == pytest.approx(2 * seconds)
    assert move_cost(profile, more, small, "ranks").num_ranks == 0
    assert move_cost(profile, small, more, "none").num_ranks == 0
    slow = move_cost(profile, small, more, "checkpoint")
    assert slow.rank_seconds > added.rank_seconds
    # A second pod loads everything; a wider one only what its ranks do not hold.
    pod = move_cost(profile, small, make_plan(2, 1, 6, 27), "ranks")
    slot_bytes = model.expert_bytes * model.num_sparse_layers
    assert pod.num_bytes == model.attention_bytes + 6 * 27 * slot_bytes
    wider = move_cost(profile, small, make_plan(1, 1, 8, 20), "ranks")
    assert 0 < wider.num_bytes < 8 * 20 * slot_bytes
    assert wider.num_bytes >= 2 * 20 * slot_bytes


def run_command(*arguments: str) -> str:
    result = CliRunner().invoke(
        cli, ["simulate", *arguments], obj=read_launch({}), catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    return result.output


COMMON = ["--profile", "h100", "--shape", "deepseek-v2", "--slo-tpot-ms", "60", "--context", "256"]
SHORT = [*COMMON, "--max-ranks", "24", "--demand", "bursty", "--peak-ratio", "2", "--hours", "2"]
SHORT += ["--mean-rate", "3000"]


def test_the_command_is_deterministic(tmp_path: Path) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    texts = [run_command(*SHORT, "--json", str(path)) for path in paths]
    assert texts[0] == texts[1]
    assert "fitted to public measurements" in texts[0]
    records = [json.loads(path.read_text()) for path in paths]
    assert records[0]["policies"] == records[1]["policies"]
    assert list(records[0]["policies"]) == list(POLICIES)
    assert len(records[0]["policies"]["janus"]["intervals"]) == 8
    assert records[0]["settings"]["sources"]


def test_fixed_batches_by_command(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    text = run_command(*COMMON, "--max-ranks", "16", "--batches", "64", "--json", str(path))
    assert "1a6e" in text
    records = json.loads(path.read_text())["batches"]
    assert {its["policy"] for its in records} == set(POLICIES)


def test_ten_thousand_gpus() -> None:
    text = run_command(
        *COMMON, "--max-ranks", "10000", "--pod-ranks", "16", "--demand", "diurnal", "--mean-rate", "1e6",
        "--policies", "janus",
    )  # fmt: skip
    assert "100.0%" in text


def test_a_csv_file_by_command_and_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    demand, picture = tmp_path / "d.csv", tmp_path / "p.png"
    demand.write_text("time_s,rate\n0,500\n900,3000\n")
    run_command(*COMMON, "--max-ranks", "8", "--demand", str(demand), "--plot", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*COMMON, "--max-ranks", "8"], "either --demand"),
        ([*COMMON, "--max-ranks", "8", "--demand", "flat"], "--mean-rate"),
        ([*COMMON, "--max-ranks", "8", "--demand", "no.csv"], "is no file"),
        ([*COMMON, "--max-ranks", "8", "--batches", "1,x"], "--batches"),
        ([*COMMON, "--max-ranks", "8", "--batches", "0"], "from 1 on"),
        ([*COMMON, "--max-ranks", "8", "--batches", "1", "--policies", "x"], "unknown policy"),
        (["--profile", "h100", *COMMON[4:], "--max-ranks", "8", "--batches", "1"], "--shape"),
        (["--profile", "b7", *COMMON[4:], "--max-ranks", "8", "--batches", "1"], "shipped"),
        ([*COMMON, "--max-ranks", "8", "--batches", "1", "--plot", "a.png"], "--plot"),
        ([*COMMON, "--max-ranks", "8", "--batches", "1", "--json", "/no/a.json"], "folder"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        run_command(*arguments)


def test_the_command_loads_no_torch() -> None:
    code = (
        "import sys; from janus_hpc.cli import cli; from janus_hpc.launch import read_launch;"
        f"cli.main(['simulate', *{[*COMMON, '--max-ranks', '8', '--batches', '64']!r}], obj=read_launch(),"
        " standalone_mode=False); assert not {'torch', 'mpi4py', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100, stdout=subprocess.DEVNULL)


def test_no_batch_sizes_are_refused() -> None:
    asked = ["--profile", "h100", "--shape", "deepseek-v2", "--slo-tpot-ms", "60"]
    asked += ["--context", "144", "--max-ranks", "8", "--batches", ""]
    done = CliRunner().invoke(cli, ["simulate", *asked], obj=read_launch())
    assert isinstance(done.exception, UsageError) and "--batches ''" in str(done.exception)


def test_a_demand_that_is_nearly_flat_has_its_mean() -> None:
    for ratio in (1.02, 1.1):
        demand = built_in(
            "diurnal", mean_rate=100.0, peak_ratio=ratio, hours=24, interval_s=900, seed=0
        )
        assert demand.rates_T.mean() == pytest.approx(100.0)
        assert demand.rates_T.max() == pytest.approx(100.0 * ratio)
