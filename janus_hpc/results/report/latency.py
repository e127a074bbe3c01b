"""Distributions of times and of lengths: a histogram, the share at or below each value, quantiles."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from janus_hpc.results.report.axes import (
    LEFT,
    Plot,
    Scale,
    draw_axes,
    figure,
    legend,
    plot_area,
    sentence,
    ticks,
    whole_ticks,
)
from janus_hpc.results.report.facts import Facts, Latency
from janus_hpc.results.report.streams import Stream, histogram, quantiles, summarize
from janus_hpc.results.report.svg import (
    duration,
    label,
    line,
    number,
    path,
    percent,
    rect,
    time_unit,
)

_NUM_BARS = 60
_RIGHT = 498.0
_HEIGHT = 300.0
# The axis ends a little beyond the 99th percentile; what lies further is told in words.
_BEYOND_P99 = 1.3


@dataclass(frozen=True, kw_only=True)
class _Mark:
    """An upright line: its value, name, CSS class and the row its name stands in."""

    value: float
    name: str
    css: str
    row: int


def tpot_figure(facts: Facts) -> str:
    """Time per output token against the SLO."""
    its, slo_s = facts.tpot, facts.slo_tpot_s
    title = "Time per output token (TPOT) of each sample"
    if not its.summary.count:
        return sentence(
            title, "No sample has two tokens or more, so none has a time between tokens."
        )
    note = _latency_note(its)
    if math.isfinite(slo_s):
        kept = "kept" if facts.slo_measured_s <= slo_s else "missed"
        note += f" SLO {duration(slo_s)} ({facts.slo_percentile}): {kept}."
    return _times_figure(title, its, note, slo_s)


def ttft_figure(facts: Facts) -> str:
    """Time to the first token; no SLO stands for it."""
    title = "Time to the first token (TTFT) of each sample, since its row was admitted"
    if not facts.ttft.summary.count:
        return sentence(title, "No sample has a token.")
    return _times_figure(title, facts.ttft, _latency_note(facts.ttft), math.nan)


def lengths_figure(title: str, what: str, stream: Stream, counted: str) -> str:
    """The lengths in tokens of prompts or answers; `counted` names what has a length."""
    summary = summarize(stream)
    if not summary.count:
        return sentence(title, f"There are no {counted}.")
    most = max(summary.most, 1.0)
    width = max(1, math.ceil((most + 1) / _NUM_BARS))
    edges = np.arange(0, most + 1 + width, width) - 0.5
    p50, p90, p99 = quantiles(stream, (0.5, 0.9, 0.99))
    note = (
        f"{number(summary.count)} {counted}: mean {number(summary.mean)} tokens, p50 {number(p50)},"
        f" p90 {number(p90)}, p99 {number(p99)}, longest {number(summary.most)}."
    )
    marks = [_Mark(value=p50, name="p50", css="mark", row=0)]
    drawing = _distribution(stream, edges, 1.0, f"{what}, tokens", counted, marks)
    return figure(title, drawing, _HEIGHT, note=note)


def _latency_note(its: Latency) -> str:
    return (
        f"{number(its.summary.count)} samples: mean {duration(its.summary.mean)},"
        f" p50 {duration(its.p50_s)}, p90 {duration(its.p90_s)}, p99 {duration(its.p99_s)},"
        f" largest {duration(its.summary.most)}."
    )


def _times_figure(title: str, its: Latency, note: str, slo_s: float) -> str:
    shown = [its.p99_s * _BEYOND_P99, *([slo_s * 1.1] if math.isfinite(slo_s) else [])]
    end_s = max(min(max(shown), max(its.summary.most * 1.02, *shown[1:], 0)), 1e-9)
    factor, unit = time_unit(end_s)
    edges = np.linspace(min(its.summary.least, 0.0), end_s, _NUM_BARS + 1)
    marks = [
        _Mark(value=its.p50_s, name="p50", css="mark", row=0),
        _Mark(value=its.p90_s, name="p90", css="mark", row=1),
        _Mark(value=its.p99_s, name="p99", css="mark", row=2),
    ]
    if math.isfinite(slo_s):
        marks.append(_Mark(value=slo_s, name=f"SLO {duration(slo_s)}", css="slo", row=3))
    drawing = _distribution(its.stream, edges, factor, f"time, {unit}", "samples", marks)
    return figure(title, drawing, _HEIGHT, note=note)


def _distribution(
    stream: Stream,
    edges: "np.ndarray[tuple[int], np.dtype[np.float64]]",
    factor: float,
    x_label: str,
    counted: str,
    marks: Sequence[_Mark],
) -> str:
    """Bars of how many, a line of the share at or below, and marks; x values times `factor`."""
    counts, below, above = histogram(stream, edges)
    total = int(counts.sum()) + below + above
    x_range = float(edges[0]) * factor, float(edges[-1]) * factor
    plot = plot_area(x_range, (0, max(int(counts.max()), 1) * 1.08), right=_RIGHT)
    # Edges between whole numbers: the values are whole.
    x_ticks = whole_ticks(*x_range, 7) if edges[0] % 1 else None
    bars = []
    for count, left, right in zip(counts.tolist(), edges[:-1], edges[1:], strict=True):
        if count:
            start, stop, top = plot.x(left * factor), plot.x(right * factor), plot.y(count)
            hint = f"{number(left * factor)} to {number(right * factor)}: {count:,}"
            gap = min(0.8, (stop - start) / 4)
            height = plot.bottom - top
            bars.append(rect(start, top, stop - start - gap, height, hint, class_="fill-a"))
    share = Scale(least=0, most=1, start=plot.bottom, stop=plot.y(max(int(counts.max()), 1)))
    reached = np.concatenate([[below], below + np.cumsum(counts)]) / total
    points = [
        (plot.x(float(at) * factor), share(float(its)))
        for at, its in zip(edges, reached, strict=True)
    ]
    parts = [
        draw_axes(plot, x_label, counted, x_ticks=x_ticks, y_ticks=ticks(0, plot.y.most)),
        *bars,
        path(points, class_="line-b"),
        _share_axis(plot, share),
        _marks(plot, [its for its in marks if edges[0] <= its.value <= edges[-1]], factor),
        legend(LEFT, 294, [("fill-a", counted), ("fill-b", "share at or below")]),
    ]
    if above:
        parts.append(label(_RIGHT, 294, f"{above:,} further right", class_="tick end"))
    return "".join(parts)


def _share_axis(plot: Plot, share: Scale) -> str:
    labels = [
        label(plot.x.stop + 6, share(its) + 4, percent(its).replace(".0", ""), class_="tick")
        for its in (0, 0.25, 0.5, 0.75, 1)
    ]
    return "".join(labels)


def _marks(plot: Plot, marks: Sequence[_Mark], factor: float) -> str:
    """Lines first, so that none crosses a name."""
    lines, names = [], []
    for its in marks:
        at = plot.x(its.value * factor)
        right = at > plot.x.stop - 80
        css = f"{its.css}-name end" if right else f"{its.css}-name"
        lines.append(line(at, plot.bottom, at, plot.top - 6, class_=its.css))
        y = plot.top + 4 + 13 * its.row
        names.append(label(at - 4 if right else at + 4, y, its.name, class_=css))
    return "".join(lines + names)
