"""Axes of a plot: scales, ticks, grid, labels, and the figure around them. Knows no data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from janus_hpc.results.report.svg import element, escape, label, line, number

# Widths in the drawing's own units; text in wide figures is set smaller by the style sheet.
HALF_WIDTH = 548.0
WIDE_WIDTH = 820.0
# Where plots begin: room for tick labels as wide as "40,000" and the axis' name beside them.
LEFT = 70.0
_NAME_LEFT = 56.0
_STEPS = (1.0, 2.0, 2.5, 5.0, 10.0)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Values `least` to `most` lie at `start` to `stop`."""

    least: float
    most: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        span = self.most - self.least
        share = (value - self.least) / span if span else 0.0
        return self.start + share * (self.stop - self.start)


@dataclass(frozen=True, kw_only=True)
class Plot:
    """The area of a plot and its two scales, `y` rising upwards."""

    x: Scale
    y: Scale

    @property
    def bottom(self) -> float:
        return self.y.start

    @property
    def top(self) -> float:
        return self.y.stop


def ticks(least: float, most: float, count: int = 5) -> list[float]:
    """About `count` round values within the two; just `least` where they are the same."""
    if not most > least:
        return [least]
    rough = (most - least) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(its * power for its in _STEPS if its * power >= rough * (1 - 1e-9))
    first = math.ceil(least / step - 1e-9)
    last = math.floor(most / step + 1e-9)
    return [its * step for its in range(first, last + 1)]


def whole_ticks(least: float, most: float, count: int = 8) -> list[float]:
    """Round values that are whole numbers."""
    return sorted({float(its) for its in ticks(least, most, count) if its == round(its)})


def plot_area(
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    *,
    left: float = LEFT,
    right: float = HALF_WIDTH - 16,
    top: float = 16,
    bottom: float = 236,
) -> Plot:
    """A plot within the given borders."""
    x = Scale(least=x_range[0], most=x_range[1], start=left, stop=right)
    return Plot(x=x, y=Scale(least=y_range[0], most=y_range[1], start=bottom, stop=top))


def draw_axes(
    plot: Plot,
    x_label: str,
    y_label: str,
    *,
    x_ticks: Sequence[float] | None = None,
    y_ticks: Sequence[float] | None = None,
) -> str:
    """Grid, tick labels and the axes' names with their units."""
    x, y = plot.x, plot.y
    parts = []
    for value in ticks(y.least, y.most) if y_ticks is None else y_ticks:
        at = y(value)
        parts.append(line(x.start, at, x.stop, at, class_="grid"))
        parts.append(label(x.start - 7, at + 4, number(value), class_="tick end"))
    for value in ticks(x.least, x.most, 7) if x_ticks is None else x_ticks:
        at = x(value)
        parts.append(line(at, plot.bottom, at, plot.bottom + 4, class_="axis"))
        parts.append(label(at, plot.bottom + 18, number(value), class_="tick middle"))
    parts.append(line(x.start, plot.bottom, x.stop, plot.bottom, class_="axis"))
    middle = (x.start + x.stop) / 2
    parts.append(label(middle, plot.bottom + 38, x_label, class_="name middle"))
    height, left = (plot.top + plot.bottom) / 2, x.start - _NAME_LEFT
    turned = f"rotate(-90 {left:.1f} {height:.1f})"
    parts.append(label(left, height, y_label, class_="name middle", transform=turned))
    return "".join(parts)


def legend(x: float, y: float, entries: Sequence[tuple[str, str]], step: float = 108) -> str:
    """Names beside squares of their fills (CSS classes), in a row."""
    parts = []
    for at, (css, name) in enumerate(entries):
        left = x + at * step
        parts.append(element("rect", x=left, y=y - 9, width=10, height=10, class_=css))
        parts.append(label(left + 15, y, name, class_="tick"))
    return "".join(parts)


def figure(title: str, drawing: str, height: float, *, wide: bool = False, note: str = "") -> str:
    """A drawing under its title; `note` (markup) stands below."""
    width = WIDE_WIDTH if wide else HALF_WIDTH
    svg = element("svg", drawing, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=title)
    caption = element("figcaption", escape(title))
    below = element("p", note, class_="note") if note else ""
    return element("figure", caption + svg + below, class_="wide" if wide else "half")


def sentence(title: str, why: str, *, wide: bool = False) -> str:
    """In place of a plot that has nothing to show."""
    caption = element("figcaption", escape(title))
    text = element("p", escape(why), class_="nothing")
    return element("figure", caption + text, class_="wide empty" if wide else "half empty")
