"""Rows over time, and how they ended."""

import math

import numpy as np

from janus_hpc.results.report.axes import (
    HALF_WIDTH,
    LEFT,
    draw_axes,
    figure,
    legend,
    plot_area,
    sentence,
    ticks,
)
from janus_hpc.results.report.facts import Facts
from janus_hpc.results.report.streams import column_stream, known, summarize
from janus_hpc.results.report.svg import (
    duration,
    element,
    label,
    number,
    path,
    percent,
    rect,
    time_unit,
)
from janus_hpc.results.schema import FINISH_REASONS

_NUM_BINS = 300
# An axis needs a length, even if all rows were finished at once.
_MIN_AXIS_S = 1e-3
_ROW_HEIGHT = 58.0
_BAR_HEIGHT = 34.0
_TOP = 30.0
_FINISH_CSS = {"stop": "fill-c", "length": "fill-a", "error": "fill-bad"}


def rows_figure(facts: Facts) -> str:
    """Finished and failed rows, summed up over the time since the first was finished."""
    title = "Rows finished over time"
    name = "rows/finished_at_unix_s"
    summary = summarize(known(column_stream(facts.columns, name), 0.0))
    unknown = facts.num_rows - summary.count
    if not summary.count:
        return sentence(title, "The file does not say when rows were finished.")
    span_s = summary.most - summary.least
    axis_s = max(span_s, _MIN_AXIS_S)
    edges = np.linspace(0, axis_s, _NUM_BINS + 1)
    done, failed = _counts(facts, summary.least, edges)
    factor, unit = time_unit(axis_s)
    plot = plot_area((0, axis_s * factor), (0, max(int(done.sum()), 1) * 1.05))
    axes = draw_axes(
        plot,
        f"time since the first row was finished, {unit}",
        "rows",
        y_ticks=ticks(0, plot.y.most),
    )
    total = np.concatenate([[0], np.cumsum(done)])
    points = [
        (plot.x(float(at) * factor), plot.y(float(its)))
        for at, its in zip(edges, total, strict=True)
    ]
    closed = [*points, (plot.x.stop, plot.bottom), (plot.x.start, plot.bottom)]
    bad = [
        (plot.x(float(at) * factor), plot.y(float(its)))
        for at, its in zip(edges, np.concatenate([[0], np.cumsum(failed)]), strict=True)
    ]
    names = [("fill-a", "finished"), *([("fill-bad", "failed")] if failed.any() else [])]
    drawing = "".join(
        [
            axes,
            path(closed, class_="area-a"),
            path(points, class_="line-a"),
            path(bad, class_="line-bad") if failed.any() else "",
            legend(LEFT, 294, names),
        ]
    )
    half_s = min(float(edges[int(np.searchsorted(total, total[-1] / 2))]), span_s)
    note = (
        f"{number(summary.count)} rows in {duration(span_s)}, half of them by {duration(half_s)}."
    )
    if unknown:
        note += f" Of {number(unknown)} more rows it is not known when they were finished."
    return figure(title, drawing, 300, note=note)


def _counts(
    facts: Facts, begin_s: float, edges: "np.ndarray[tuple[int], np.dtype[np.float64]]"
) -> (
    "tuple[np.ndarray[tuple[int], np.dtype[np.int64]], np.ndarray[tuple[int], np.dtype[np.int64]]]"
):
    """All rows and the failed ones between the edges, in seconds since `begin_s`."""
    done = np.zeros(len(edges) - 1, np.int64)
    failed = np.zeros(len(edges) - 1, np.int64)
    times = column_stream(facts.columns, "rows/finished_at_unix_s")
    states = column_stream(facts.columns, "rows/status")
    for finished_s, status in zip(times(), states(), strict=True):
        keep = (finished_s != 0) & np.isfinite(finished_s)
        since_s = np.clip(finished_s - begin_s, edges[0], edges[-1])
        done += np.histogram(since_s[keep], edges)[0]
        failed += np.histogram(since_s[keep & (status != 0)], edges)[0]
    return done, failed


def finish_figure(facts: Facts) -> str:
    """How samples ended, and rows that have none."""
    title = "Why samples ended, and rows that failed"
    counts = np.zeros(256, np.int64)
    for codes in column_stream(facts.columns, "samples/finish_reason")():
        counts += np.bincount(codes, minlength=256)
    bars = [
        (f"{name}", int(counts[code]), facts.num_samples, _FINISH_CSS[name])
        for code, name in enumerate(FINISH_REASONS)
        if counts[code] or name != "error"
    ]
    bars.append(("row failed", facts.num_failed, facts.num_rows, "fill-bad"))
    if not facts.num_rows:
        return sentence(title, "The file has no rows.")
    most = max(count for _, count, _, _ in bars) or 1
    parts, width = [], HALF_WIDTH - 96 - 130
    for at, (name, count, of, css) in enumerate(bars):
        y, long = _TOP + at * _ROW_HEIGHT, width * count / most
        share = percent(count / of if of else math.nan)
        parts += [
            label(88, y + 21, name, class_="tick end"),
            rect(
                96, y, max(long, 1 if count else 0), _BAR_HEIGHT, f"{name}: {count:,}", class_=css
            ),
            label(96 + long + 8, y + 21, f"{count:,} ({share})", class_="tick"),
        ]
    note = (
        "stop: an end token or stop text; length: as many tokens as allowed. Shares are of the"
        " samples; of failed rows, of the rows."
    )
    return figure(title, element("g", "".join(parts)), _TOP + len(bars) * _ROW_HEIGHT, note=note)
