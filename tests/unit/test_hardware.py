"""Shipped hardware: files, fits, shapes, and profiles made from them."""

import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest

from janus_hpc.errors import UsageError
from janus_hpc.models.shapes import shape_config
from janus_hpc.planner.a_max_lookup import AMaxLookup, uniform_routing
from janus_hpc.planner.hardware import hardware_profile, names, profile_for
from janus_hpc.planner.hardware_files import parse, read_hardware
from janus_hpc.planner.hardware_fit import TERMS, mean_errors, predicted_s, refit
from janus_hpc.planner.plan_shapes import plan_configs, plan_shape, plan_spec
from janus_hpc.planner.profile_file import read_profile, write_profile
from janus_hpc.planner.system import Context, System, make_grid
from janus_hpc.planner.tpot import step_times

FITTED = ["h100", "h200"]


def test_what_ships_says_what_it_rests_on() -> None:
    assert names() == ["a100", "h100", "h20", "h200", "l40s"]
    for name in names():
        hardware = read_hardware(name)
        is_fitted = name in FITTED
        assert hardware.name == name
        assert (hardware.basis == "fitted to public measurements") == is_fitted
        assert (hardware.basis == "from peak rates and bandwidths") == (not is_fitted)
        assert bool(hardware.points) == is_fitted
        assert hardware.sources
        assert all(" " in source for source in hardware.sources)


@pytest.mark.parametrize("name", FITTED)
def test_the_coefficients_are_the_fit_of_the_points(name: str) -> None:
    hardware = read_hardware(name)
    found = refit(hardware)
    assert found
    for key, value in found.items():
        assert getattr(hardware, key) == pytest.approx(value, rel=1e-4), key
    for kind, error in mean_errors(hardware, "fit").items():
        assert hardware.residuals[kind] == pytest.approx(error, abs=1e-4)
        assert error < 0.09, kind


@pytest.mark.parametrize("name", FITTED)
def test_points_left_out_of_the_fit_are_met(name: str) -> None:
    errors = mean_errors(read_hardware(name), "check")
    assert errors["experts"] < 0.12
    assert all(error < 0.12 for error in errors.values())


def test_held_coefficients_are_those_of_h200_in_proportion_to_the_peaks() -> None:
    base = read_hardware("h200")
    for name in names():
        hardware = read_hardware(name)
        if hardware.based_on != "h200":
            continue
        for key in hardware.held:
            peak = "peak_rate" if key in ("expert_rate", "dense_rate", "kv_rate") else "peak_flops"
            peak = "peak_link_rate" if key == "link_rate" else peak
            ratio = getattr(hardware, peak) / getattr(base, peak)
            wanted = getattr(base, key) * (1 if key.endswith("_s") else ratio)
            assert getattr(hardware, key) == pytest.approx(wanted, rel=1e-4), (name, key)
        fitted = {its for kind, (_, terms) in TERMS.items() for its in terms.values()}
        assert hardware.points or fitted <= set(hardware.held)


def test_rates_stay_below_their_peaks() -> None:
    for name in names():
        its = read_hardware(name)
        assert max(its.expert_rate, its.dense_rate, its.kv_rate) < its.peak_rate
        assert max(its.expert_flops, its.dense_flops, its.mla_flops) <= its.peak_flops
        assert its.link_rate < its.peak_link_rate


def test_bad_files_are_refused_with_the_key() -> None:
    good = msgspec.to_builtins(read_hardware("h20"))
    for change, words in [
        ({"kv_rate": -1.0}, "kv_rate is -1"),
        ({"version": 9}, "version 9"),
        ({"speed": 1}, "speed"),
        ({"price": "dear"}, "price"),
    ]:
        with pytest.raises(UsageError, match=words):
            parse("x", msgspec.json.encode(good | change))
    with pytest.raises(UsageError, match="hardware x"):
        parse("x", b"{")


@pytest.mark.parametrize(
    ("name", "params", "expert_gb"),
    [
        ("deepseek-v2", 236e9, 445),
        ("deepseek-v3", 671e9, 1308),
        ("qwen3-235b-a22b", 235e9, 454),
        ("qwen3-30b-a3b", 30.5e9, 58.0),
    ],
)
def test_shapes_have_the_published_sizes(name: str, params: float, expert_gb: float) -> None:
    spec, shape = plan_spec(name), plan_shape(name)
    experts = shape.expert_bytes * shape.num_experts * shape.num_sparse_layers
    gates = shape.gate_bytes / 4
    assert (shape.attention_bytes + experts) / 2 + gates == pytest.approx(params, rel=3e-3)
    assert experts / 1e9 == pytest.approx(expert_gb, rel=2e-3)
    assert experts == 2 * spec.num_expert_params()


def test_sizes_that_the_paper_prints() -> None:
    """Janus: Qwen3-235B 423 of 438 GB, which are binary ones, and DeepSeek-V2 472 GB."""
    qwen = plan_shape("qwen3-235b-a22b")
    experts = qwen.expert_bytes * qwen.num_experts * qwen.num_sparse_layers
    assert experts / 2**30 == pytest.approx(423, rel=1e-3)
    assert (experts + qwen.attention_bytes) / 2**30 == pytest.approx(438, rel=3e-3)
    two = plan_shape("scaled-ds-2")
    assert (two.num_experts, two.top_k) == (200, 8)
    assert two.expert_bytes == 3 * 5120 * 1536 * 2
    assert plan_shape("scaled-ds-1").expert_bytes == 3 * 5120 * 1024 * 2


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(UsageError, match="a100, h100, h20, h200, l40s"):
        hardware_profile("b200", "deepseek-v2")
    with pytest.raises(UsageError, match="qwen3-30b-a3b"):
        hardware_profile("h100", "gpt-4")
    with pytest.raises(UsageError, match="--dtype bfloat16"):
        profile_for("h100", plan_spec("deepseek-v2"), "float32", 4, "x")


def test_profiles_pass_the_checks_of_measured_ones(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    for name in names():
        for shape_name in plan_configs():
            profile = hardware_profile(name, shape_name)
            write_profile(path, profile)
            assert read_profile(path) == profile
            assert profile.sources


def test_coefficients_come_from_the_sizes() -> None:
    hardware, profile = read_hardware("h200"), hardware_profile("h200", "qwen3-30b-a3b")
    experts = profile.experts[0]
    assert experts.beta == pytest.approx(9.437e6 / hardware.expert_rate, rel=1e-3)
    assert experts.beta * 1e6 == pytest.approx(2.16, abs=0.05)
    layer = profile.attention[0].sparse
    assert layer.c_kv == pytest.approx(2048 / hardware.kv_rate)
    plain = hardware_profile("h200", "qwen3-30b-a3b", balances=False, part_bytes=2)
    assert experts.c_e - plain.experts[0].c_e == pytest.approx(hardware.balance_s)
    assert profile.exchange.per_part_s == pytest.approx(4 * plain.exchange.per_part_s)
    # With 128 heads latent attention is bound by arithmetic.
    latent = hardware_profile("h200", "deepseek-v2").attention[0].sparse
    assert latent.c_kv == pytest.approx(2 * 128 * (576 + 512) / hardware.mla_flops)


# Batch, context, milliseconds of 48 layers of one H200, put together from tables of single kernels.
LAYERS = [
    (16, 512, 10.1),
    (64, 512, 16.4),
    (128, 512, 18.6),
    (256, 512, 22.6),
    (64, 2048, 18.5),
    (128, 2048, 22.9),
]
# Batch and median time between tokens in ms of vLLM on one H100 (ml-energy/leaderboard at 0cd52da); the lengths of
# its prompts are not known, and 1000 tokens are assumed.
SERVED = [(8, 12.9), (16, 17.6), (32, 22.6), (64, 28.9), (96, 32.1)]


def step_ms(hardware: str, batch: int, context: float, *, with_head: bool) -> float:
    """Of Qwen3-30B on one GPU."""
    profile = hardware_profile(hardware, "qwen3-30b-a3b", balances=False)
    system = System(
        attention=profile,
        experts=profile,
        a_max=AMaxLookup(uniform_routing(128, 8)),
        context=Context(mean=context),
        microbatches=(1,),
    )
    times = step_times(system, make_grid(system, [], [], colocated=[1]), np.array([batch]))
    head = profile.attention[0]
    outside = 0.0 if with_head else head.head_0 + head.head_1 * batch
    return (float(times.tpot_s[0]) - outside) * 1e3


@pytest.mark.parametrize(("batch", "context", "wanted_ms"), LAYERS)
def test_all_layers_of_a_step_on_one_gpu(batch: int, context: int, wanted_ms: float) -> None:
    found = step_ms("h200", batch, context, with_head=False)
    assert found == pytest.approx(wanted_ms, rel=0.25 if batch == 16 else 0.1)


@pytest.mark.parametrize(("batch", "served_ms"), SERVED)
def test_a_step_takes_at_most_what_an_engine_was_measured_at(batch: int, served_ms: float) -> None:
    """Its host adds to the kernels' times: a prediction a fifth below is right, one above is not."""
    found = step_ms("h100", batch, 1000, with_head=True)
    assert 0.75 * served_ms < found < 1.05 * served_ms


def test_points_of_every_kind_are_predicted() -> None:
    hardware = read_hardware("h200")
    kinds = {its.kind for its in hardware.points}
    assert kinds == set(TERMS)
    assert all(predicted_s(hardware, its) > 0 for its in hardware.points)


def test_no_torch_is_loaded() -> None:
    code = (
        "import sys, janus_hpc.planner.hardware, janus_hpc.planner.policies, janus_hpc.simulate.run;"
        "bad = {'torch', 'mpi4py', 'matplotlib'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_shapes_of_the_models_package_are_there_too() -> None:
    assert plan_spec("moe-211m").hidden == shape_config("moe-211m")["hidden_size"]
