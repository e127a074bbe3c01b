"""What a simulation found, as a table for people and as JSON for programs."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from janus_hpc.simulate.timeline import Interval, Timeline

_COLUMNS = {
    "policy": "",
    "slo_intervals": "intervals in SLO",
    "slo_tokens": "tokens in SLO",
    "gpu_hours": "GPU-hours",
    "move_gpu_hours": "moving",
    "num_moves": "moves",
    "min_gpus": "fewest GPUs",
    "mean_gpus": "mean",
    "max_gpus": "most",
    "mean_tpg": "tokens/s/GPU",
}
_SHARES = ("slo_intervals", "slo_tokens")


def text_table(timelines: Sequence[Timeline]) -> str:
    """A line a policy, and how many GPU-hours the first one saves against each other."""
    summaries = [{"policy": its.policy} | its.summary() for its in timelines]
    rows = [list(_COLUMNS.values())]
    rows += [[_cell(its, key) for key in _COLUMNS] for its in summaries]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    lines = [
        row[0].ljust(widths[0])
        + "".join(f"  {c:>{w}}" for c, w in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    first = timelines[0]
    for other in timelines[1:]:
        saved = _saving(first.summary(), other.summary())
        if saved is not None:
            lines.append(f"{first.policy} against {other.policy}: {-saved:+.1%} GPU-hours")
    return "\n".join(lines)


def as_record(settings: Mapping[str, Any], timelines: Sequence[Timeline]) -> dict[str, Any]:
    """Settings, and for each policy its sums and all intervals."""
    return {
        "format": "janus-hpc simulation",
        "version": 1,
        "settings": dict(settings),
        "policies": {
            its.policy: {
                "summary": its.summary(),
                "intervals": [_interval(one) for one in its.intervals],
            }
            for its in timelines
        },
    }


def _interval(its: Interval) -> dict[str, Any]:
    plan = its.plan
    return {
        "start_s": its.start_s,
        "length_s": its.length_s,
        "rate": its.rate,
        "served": its.served,
        "meets_slo": its.meets_slo,
        "tpot_s": its.tpot_s,
        "split": None if plan is None else str(plan),
        "gpus": 0 if plan is None else plan.num_ranks,
        "slots": 0 if plan is None else plan.num_slots,
        "move": asdict(its.move),
    }


def _saving(one: Mapping[str, float], other: Mapping[str, float]) -> float | None:
    total = other["gpu_hours"] + other["move_gpu_hours"]
    if not total:
        return None
    return 1 - (one["gpu_hours"] + one["move_gpu_hours"]) / total


def _cell(summary: Mapping[str, Any], key: str) -> str:
    value = summary[key]
    if isinstance(value, str):
        return value
    if key in _SHARES:
        return f"{value:.1%}"
    if isinstance(value, int):
        return str(value)
    return f"{value:.1f}" if value < 1000 else f"{value:.0f}"
