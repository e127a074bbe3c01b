"""What the time of a decode step went to, batch by batch."""

import math

import numpy as np

from janus_hpc.results.report.axes import (
    LEFT,
    WIDE_WIDTH,
    Plot,
    draw_axes,
    figure,
    legend,
    plot_area,
    sentence,
    ticks,
    whole_ticks,
)
from janus_hpc.results.report.facts import Batches
from janus_hpc.results.report.groups import grouped, grouping_note
from janus_hpc.results.report.svg import label, line, number, percent, rect, time_unit

_STAGES = (
    ("attention", "attention_s", "fill-a"),
    ("experts", "moe_s", "fill-b"),
    ("exchange and waiting", "comm_s", "fill-x"),
)


def stages_figure(batches: Batches) -> str:
    """Stacked: attention, experts, and the rest of a decode step in each batch."""
    title = "Where the time of a decode step went, batch by batch"
    if not batches.count:
        return sentence(title, "The file tells of no batches.", wide=True)
    groups = grouped(batches)
    whole = groups.mean(batches.numbers["decode_tpot_s"])
    most_s = max((its for its in whole if math.isfinite(its)), default=0.0)
    stages = [(name, groups.mean(batches.numbers[key]), css) for name, key, css in _STAGES]
    heights = [
        sum(max(its, 0) for _, of, _ in stages if math.isfinite(its := of[at]))
        for at in range(len(whole))
    ]
    if most_s <= 0 and not any(heights):
        return sentence(title, "No batch says how long its decode steps took.", wide=True)
    factor, unit = time_unit(max(most_s, *heights))
    plot = _plot(batches.count, max(most_s, *heights) * factor)
    bars = [
        _bar(plot, bounds, at, stages, whole[at], factor, unit)
        for at, bounds in enumerate(groups.bounds)
    ]
    told = any(math.isfinite(its) for _, of, _ in stages for its in of)
    names = [(css, name) for name, _, css in _STAGES] if told else []
    names += [] if told else [("fill-p", "not told apart")]
    drawing = "".join(
        [
            draw_axes(
                plot,
                "batch",
                f"mean decode step, {unit}",
                x_ticks=whole_ticks(0, batches.count - 1),
                y_ticks=ticks(0, plot.y.most),
            ),
            *bars,
            _splits(plot, batches),
            legend(LEFT, 284, names, step=110),
        ]
    )
    return figure(
        title, drawing, 292, wide=True, note=_stages_note(batches, told) + grouping_note(groups)
    )


def _plot(count: int, most: float) -> Plot:
    return plot_area(
        (-0.5, count - 0.5), (0, most * 1.08), right=WIDE_WIDTH - 10, top=30, bottom=226
    )


def _bar(
    plot: Plot,
    bounds: tuple[int, int],
    at: int,
    stages: list[tuple[str, list[float], str]],
    whole_s: float,
    factor: float,
    unit: str,
) -> str:
    left, right = plot.x(bounds[0] - 0.5), plot.x(bounds[1] - 0.5)
    gap = min(3.0, (right - left) / 6)
    left, width = left + gap, right - left - 2 * gap
    width = min(width, 60.0)
    left = (plot.x(bounds[0] - 0.5) + right - width) / 2
    parts, reached = [], 0.0
    for name, values, css in stages:
        value = values[at] * factor
        if math.isfinite(value) and value > 0:
            bottom, top = plot.y(reached), plot.y(reached + value)
            hint = f"batch {_batches(bounds)}: {name} {number(value)} {unit}"
            parts.append(rect(left, top, width, bottom - top, hint, class_=css))
            reached += value
    whole = whole_s * factor
    if math.isfinite(whole):
        if not reached:
            hint = f"batch {_batches(bounds)}: {number(whole)} {unit}"
            top = plot.y(whole)
            parts.append(rect(left, top, width, plot.bottom - top, hint, class_="fill-p"))
        parts.append(
            line(left - gap, plot.y(whole), left + width + gap, plot.y(whole), class_="whole")
        )
    return "".join(parts)


def _batches(bounds: tuple[int, int]) -> str:
    return f"{bounds[0]}" if bounds[1] - bounds[0] == 1 else f"{bounds[0]} to {bounds[1] - 1}"


def _splits(plot: Plot, batches: Batches) -> str:
    """The split above the batch that begins with it, where there is room for its name."""
    parts: list[str] = []
    free_from = -math.inf
    for at, split in enumerate(batches.splits):
        if at and split == batches.splits[at - 1]:
            continue
        left = plot.x(at - 0.5)
        if left >= free_from:
            parts.append(line(left, plot.bottom, left, plot.top - 14, class_="change"))
            parts.append(label(left + 4, plot.top - 6, split, class_="tick strong"))
            free_from = left + 12 + 8 * len(split)
    return "".join(parts)


def _stages_note(batches: Batches, told: bool) -> str:
    if not told:
        return "On GPUs computing is not told apart from waiting: only the whole step is known."
    numbers = batches.numbers
    weights = np.maximum(numbers["num_decode_steps"].astype(np.float64), 1.0)
    sums = [float(np.nansum(numbers[key] * weights)) for _, key, _ in _STAGES]
    total = float(np.nansum(numbers["decode_tpot_s"] * weights))
    shares = [
        f"{name} {percent(its / total)}" for (name, _, _), its in zip(_STAGES, sums, strict=True)
    ]
    note = f"Over all decode steps: {', '.join(shares)}. The line across a bar is the whole step."
    if len(batches.shards) > 1:
        note += " The batches of all shards stand one after the other."
    if np.any(numbers["comm_s"] < 0):
        note += " Where the bar is higher, microbatches overlapped attention and experts."
    return note
