"""How evenly experts and their ranks were loaded: experts by their load, and a_max by layer."""

import math

import numpy as np
import numpy.typing as npt

from janus_hpc.results.join_stats import read_layers
from janus_hpc.results.report.axes import (
    LEFT,
    Plot,
    draw_axes,
    figure,
    legend,
    plot_area,
    sentence,
    ticks,
    whole_ticks,
)
from janus_hpc.results.report.facts import Facts
from janus_hpc.results.report.heat import share_ratios
from janus_hpc.results.report.svg import label, line, number, path, percent, rect
from janus_hpc.results.stats import LayerStats

# Legend: L MoE layers, E experts.


class ExpertFigures:
    """The figures over layers and experts of one file."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self.layers = read_layers(facts.columns.file)

    def load_order(self) -> str:
        """How far the load falls from the busiest expert to the idlest."""
        title = "Load by expert, busiest first: the mean of the layers and their range"
        layers = self.layers
        if layers is None or not layers.expert_activations.sum():
            return sentence(title, "The run counted no expert activations.")
        ordered_LE = -np.sort(-share_ratios(layers.expert_activations), axis=1)
        count = ordered_LE.shape[1]
        plot = plot_area((0.5, count + 0.5), (0, float(ordered_LE.max()) * 1.05))
        high, low, mean = ordered_LE.max(axis=0), ordered_LE.min(axis=0), ordered_LE.mean(axis=0)
        band = [*_points(plot, high), *_points(plot, low)[::-1]]
        drawing = "".join(
            [
                draw_axes(
                    plot,
                    "experts by load, busiest first",
                    "times the even share",
                    x_ticks=[1.0, *(its for its in whole_ticks(2, count, 6))],
                    y_ticks=ticks(0, plot.y.most),
                ),
                path(band, class_="area-b"),
                path(_points(plot, mean), class_="line-b"),
                line(plot.x.start, plot.y(1), plot.x.stop, plot.y(1), class_="even"),
                label(plot.x.stop, plot.y(1) - 5, "even share", class_="tick end"),
                legend(
                    62, 294, [("fill-b", "mean of layers"), ("fill-band", "range of layers")], 140
                ),
            ]
        )
        tenth = max(1, round(count / 10))
        share = float(ordered_LE[:, :tenth].sum() / ordered_LE.sum())
        note = (
            f"The busiest {tenth} of {count} experts of a layer take {percent(share)} of its tokens;"
            f" evenly it would be {percent(tenth / count)}."
        )
        return figure(title, drawing, 300, note=note)

    def a_max(self) -> str:
        """Activated experts on the fullest rank a layer, and what perfect balance would give."""
        title = "Activated experts on the fullest expert rank (a_max), by layer"
        layers = self.layers
        if layers is None or not layers.num_steps:
            return sentence(title, "The run counted no activated experts.")
        if not np.isfinite(layers.a_max_mean).any():
            why = "With --gate agate no rank sees all tokens, so a_max is not known."
            return sentence(title, why)
        bound = _lower_bound(self._facts, layers)
        most = float(max(layers.a_max_max.max(), np.nanmax(layers.a_max_mean), 1))
        plot = plot_area((-0.5, len(layers.a_max_max) - 0.5), (0, most * 1.08))
        parts = [
            draw_axes(
                plot,
                "MoE layer",
                "activated experts",
                x_ticks=whole_ticks(0, len(layers.a_max_max) - 1),
                y_ticks=whole_ticks(0, plot.y.most, 5),
            ),
            *_a_max_bars(plot, layers, bound),
        ]
        names = [("fill-b", "mean a_max"), ("fill-band", "largest"), ("fill-ink", "lower bound")]
        if bound is None:
            names.pop()
        note = f"Over {number(layers.num_steps)} passes; a pass is one microbatch of a step."
        if bound is not None:
            excess = float(np.nanmean(layers.a_max_mean / bound)) - 1
            side = "above" if excess >= 0 else "below"
            note += (
                f" Lower bound: activated replicas over expert ranks, as perfect balance would have"
                f" it; the mean lies {percent(abs(excess))} {side}."
            )
        drawing = "".join([*parts, legend(LEFT, 294, names)])
        return figure(title, drawing, 300, note=note)


def _points(plot: Plot, values: npt.NDArray[np.float64]) -> list[tuple[float, float]]:
    return [(plot.x(at), plot.y(its)) for at, its in enumerate(values.tolist(), start=1)]


def _lower_bound(facts: Facts, layers: LayerStats) -> npt.NDArray[np.float64] | None:
    """Activated replicas over expert ranks [L]; over batches of several splits weighted by passes."""
    batches = facts.batches
    activated = layers.activated_mean
    if activated is None or not np.isfinite(activated).any():
        return None
    ranks = np.array([its.count("e") + its.count("c") for its in batches.roles], np.float64)
    passes = batches.numbers["num_passes"].astype(np.float64)
    keep = (ranks > 0) & (passes > 0)
    if not keep.any():
        return None
    share = float((passes[keep] / ranks[keep]).sum() / passes[keep].sum())
    bound: npt.NDArray[np.float64] = activated * share
    return bound


def _a_max_bars(plot: Plot, layers: LayerStats, bound: npt.NDArray[np.float64] | None) -> list[str]:
    width = min(34.0, (plot.x.stop - plot.x.start) / len(layers.a_max_max) * 0.7)
    parts = []
    for layer, (mean, most) in enumerate(
        zip(layers.a_max_mean.tolist(), layers.a_max_max.tolist(), strict=True)
    ):
        left = plot.x(layer) - width / 2
        least = math.nan if bound is None else float(bound[layer])
        hint = f"layer {layer}: mean {number(mean)}, largest {most}, lower bound {number(least)}"
        for value, css in ((most, "fill-band"), (mean, "fill-b")):
            if math.isfinite(value):
                top = plot.y(value)
                parts.append(rect(left, top, width, plot.bottom - top, hint, class_=css))
        if math.isfinite(least):
            parts.append(
                line(left - 2, plot.y(least), left + width + 2, plot.y(least), class_="whole")
            )
    return parts
