"""How many microbatches a step is cut into, from measured times of its stages (MegaScale-Infer, section 7.3's model).

Pure arithmetic: it knows neither what was measured nor how.
"""

from dataclasses import dataclass

MAX_MICROBATCHES = 4
# A larger number has to be predicted faster by this much: below it, noise would decide.
LEAST_GAIN = 0.03


@dataclass(frozen=True, kw_only=True)
class StageTimes:
    """Seconds of each stage of one MoE layer: (all tokens of a step, half of them).

    The first is the time of a stage that runs while the others wait, the second that of one that runs
    while the others are at work on the other half. `exchange_s` is a whole round, there and back.
    """

    attention_s: tuple[float, float]
    experts_s: tuple[float, float]
    exchange_s: tuple[float, float]
    num_layers: int


def choose_microbatches(times: StageTimes) -> tuple[int, str]:
    """The number with the smallest predicted step time, and why; the smaller one within LEAST_GAIN."""
    predicted_s = [predict_step_s(times, m) for m in range(1, MAX_MICROBATCHES + 1)]
    best = 1
    for m in range(2, MAX_MICROBATCHES + 1):
        if predicted_s[m - 1] < predicted_s[best - 1] * (1 - LEAST_GAIN):
            best = m
    return best, _why(times, predicted_s)


def predict_step_s(times: StageTimes, num_microbatches: int) -> float:
    """Seconds of a step's layers: the first microbatch's way through a layer, then a period a layer.

    A period lasts as long as the busiest stage has work, m * max(T_a, T_e, T_c / 2), or as one
    microbatch needs to come round, T_a + T_e + T_c. With the former it is equation 5 of
    MegaScale-Infer, and the former rules from m = (T_a + T_e + T_c) / max(T_a, T_e, T_c / 2) on.
    """
    m = num_microbatches
    attention_s, experts_s, exchange_s = (
        _part_s(stage_s, m) for stage_s in (times.attention_s, times.experts_s, times.exchange_s)
    )
    # The two directions of an exchange do not share a link.
    busiest_s = max(attention_s, experts_s, exchange_s / 2)
    round_s = attention_s + experts_s + exchange_s
    return round_s + (times.num_layers - 1) * max(m * busiest_s, round_s) + (m - 1) * busiest_s


def _part_s(stage_s: tuple[float, float], num_microbatches: int) -> float:
    """A stage's time for 1/m of the tokens: a line through the two measured points, for m > 2 too.

    Never more than for half of them, and not less than in proportion to half of them.
    """
    whole_s, half_s = stage_s
    if num_microbatches == 1:
        return whole_s
    slope_s = max(0.0, 2 * (whole_s - half_s))
    line_s = half_s - slope_s * (0.5 - 1 / num_microbatches)
    return max(line_s, 2 * half_s / num_microbatches) if slope_s else half_s


def _why(times: StageTimes, predicted_s: list[float]) -> str:
    stages = ", ".join(
        f"{name} {_ms(whole_s)}/{_ms(half_s)}"
        for name, (whole_s, half_s) in (
            ("attention", times.attention_s),
            ("experts", times.experts_s),
            ("exchange", times.exchange_s),
        )
    )
    steps = ", ".join(_ms(its) for its in predicted_s)
    return f"measured ms a layer for all/half of a step's tokens: {stages}; predicted ms a step for 1 to 4: {steps}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}"
