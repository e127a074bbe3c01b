"""The choice of microbatches: the formula against a simulation of the pipeline, and what it chooses where."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from janus_hpc.engine.order import exchange_order
from janus_hpc.planner.pingpong import StageTimes, choose_microbatches, predict_step_s

SECONDS = st.floats(0.1, 10.0)


def simulate(stage_s: list[float], num_layers: int, num_microbatches: int) -> float:
    """Four servers in a row, each serving in the one order: attention, way there, experts, way back."""
    free = [0.0] * len(stage_s)
    back = [0.0] * num_microbatches
    for _, microbatch in exchange_order(range(num_layers), num_microbatches):
        now = back[microbatch]
        for stage, seconds in enumerate(stage_s):
            now = free[stage] = max(now, free[stage]) + seconds
        back[microbatch] = now
    return max(back)


@settings(deadline=None, max_examples=200)
@given(SECONDS, SECONDS, SECONDS, st.integers(1, 40), st.integers(1, 4))
def test_the_prediction_equals_a_simulation(
    attention_s: float, experts_s: float, exchange_s: float, num_layers: int, m: int
) -> None:
    """Stages whose times are in proportion to their tokens."""
    times = StageTimes(
        attention_s=(attention_s, attention_s / 2),
        experts_s=(experts_s, experts_s / 2),
        exchange_s=(exchange_s, exchange_s / 2),
        num_layers=num_layers,
    )
    parts = [attention_s / m, exchange_s / 2 / m, experts_s / m, exchange_s / 2 / m]
    assert predict_step_s(times, m) == pytest.approx(simulate(parts, num_layers, m), rel=1e-9)


def choice(
    attention_s: tuple[float, float], experts_s: tuple[float, float], exchange_s: float = 0.0
) -> int:
    """The number chosen for 30 layers."""
    times = StageTimes(
        attention_s=attention_s,
        experts_s=experts_s,
        exchange_s=(exchange_s, exchange_s / 2),
        num_layers=30,
    )
    return choose_microbatches(times)[0]


def test_equal_stages_that_halve_are_worth_two() -> None:
    assert choice((1.0, 0.5), (1.0, 0.5)) == 2


def test_a_long_way_is_worth_more() -> None:
    """Without it two are enough; with it m >= 2 (1 + T_c / T_f) of MegaScale-Infer asks for more."""
    assert choice((1.0, 0.5), (1.0, 0.5), 0.9) >= 3


def test_one_stage_that_rules_is_not_split() -> None:
    assert choice((1.0, 0.6), (0.05, 0.05)) == 1


def test_half_the_tokens_in_the_same_time_are_not_worth_it() -> None:
    """Memory-bound stages read the same weights for half of the tokens."""
    assert choice((1.0, 0.95), (1.0, 0.98)) == 1
    assert choice((1.0, 1.3), (1.0, 1.2)) == 1


def test_a_gain_within_the_noise_is_left() -> None:
    assert choice((1.0, 0.98), (1.0, 0.98), 0.0) == 1


def test_the_reason_names_what_was_measured_and_predicted() -> None:
    times = StageTimes(
        attention_s=(0.001, 0.0005),
        experts_s=(0.002, 0.0013),
        exchange_s=(0.0003, 0.0002),
        num_layers=1,
    )
    number, why = choose_microbatches(times)
    assert number == 1
    assert "attention 1/0.5, experts 2/1.3, exchange 0.3/0.2" in why
    assert "for 1 to 4: 3.3, 3.3, " in why
