"""What the planner predicted of a decode step and its stages, beside what was measured."""

import math

import numpy as np

from janus_hpc.results.report.axes import (
    WIDE_WIDTH,
    Plot,
    draw_axes,
    figure,
    plot_area,
    sentence,
    ticks,
    whole_ticks,
)
from janus_hpc.results.report.facts import Batches
from janus_hpc.results.report.groups import Floats, Groups, grouped, grouping_note
from janus_hpc.results.report.svg import label, line, number, path, rect, time_unit

_PREDICTED = (
    ("TPOT", "decode_tpot_s", "tpot_predicted_s", "whole"),
    ("attention", "attention_s", "attention_predicted_s", "a"),
    ("experts", "moe_s", "moe_predicted_s", "b"),
    ("exchange", "comm_s", "comm_predicted_s", "x"),
)


def predicted_figure(batches: Batches) -> str:
    """Predicted and measured times of a step and its stages, side by side."""
    title = "Predicted against measured: a decode step and its stages, batch by batch"
    numbers = batches.numbers
    if not batches.count:
        return sentence(title, "The file tells of no batches.", wide=True)
    pairs = [(name, numbers[found], numbers[told], css) for name, found, told, css in _PREDICTED]
    if not any(np.any(np.isfinite(told)) for _, _, told, _ in pairs):
        why = "Nothing was predicted: the run had no profile to plan by."
        return sentence(title, why, wide=True)
    groups = grouped(batches)
    width = (WIDE_WIDTH - 40 + 34) / len(pairs)
    panels = [
        _panel(name, groups, found, told, css, 40 + at * width, width, batches.count)
        for at, (name, found, told, css) in enumerate(pairs)
    ]
    note = (
        "Dots are measured, the line is predicted. In brackets: measured over predicted, the median"
        " of the batches, without those below 0, where microbatches overlapped."
    )
    return figure(title, "".join(panels), 250, wide=True, note=note + grouping_note(groups))


def _panel(
    name: str,
    groups: Groups,
    found: Floats,
    told: Floats,
    css: str,
    left: float,
    width: float,
    count: int,
) -> str:
    measured, predicted = groups.mean(found), groups.mean(told)
    values = [its for its in (*measured, *predicted) if math.isfinite(its)]
    least_s, most_s = min(values, default=0.0), max(values, default=0.0)
    extent_s = max(most_s, -least_s)
    ratio = _ratio(found, told)
    factor, unit = time_unit(max(extent_s, 1e-9))
    head = f"{name}, {unit}" + (f" (\u00d7\u2009{number(ratio)})" if math.isfinite(ratio) else "")
    title = label(left, 16, head, class_="tick strong")
    if extent_s <= 0:
        return title + label(left, 40, "not known", class_="tick")
    plot = plot_area(
        (-0.5, count - 0.5),
        (min(least_s, 0.0) * factor * 1.08, max(most_s, 0.0) * factor * 1.08),
        left=left,
        right=left + width - 44,
        top=30,
        bottom=196,
    )
    centres = [(start + stop - 1) / 2 for start, stop in groups.bounds]
    axes = draw_axes(
        plot,
        "batch",
        "",
        x_ticks=whole_ticks(0, count - 1, 3),
        y_ticks=ticks(plot.y.least, plot.y.most, 4),
    )
    dots = []
    for at, its in zip(centres, measured, strict=True):
        if math.isfinite(its):
            x, y, hint = plot.x(at), plot.y(its * factor), f"{number(its * factor)} {unit}"
            dots.append(rect(x - 3, y - 3, 6, 6, hint, class_=f"fill-{css}", rx=3))
    if least_s < 0:
        axes += line(plot.x.start, plot.y(0), plot.x.stop, plot.y(0), class_="axis")
    return title + axes + _steps(plot, groups, predicted, factor) + "".join(dots)


def _ratio(found: Floats, told: Floats) -> float:
    """Measured over predicted, the median; NaN where no batch has both, neither below 0."""
    both = np.isfinite(found) & np.isfinite(told) & (found >= 0) & (told > 0)
    return float(np.median(found[both] / told[both])) if both.any() else math.nan


def _steps(plot: Plot, groups: Groups, values: list[float], factor: float) -> str:
    """A level a group, joined where neighbours are known."""
    lines, points = [], []
    for (start, stop), value in zip(groups.bounds, values, strict=True):
        if math.isfinite(value):
            y = plot.y(value * factor)
            points += [(plot.x(start - 0.5), y), (plot.x(stop - 0.5), y)]
        elif points:
            lines.append(path(points, class_="told"))
            points = []
    return "".join([*lines, path(points, class_="told") if points else ""])
