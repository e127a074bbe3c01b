"""A picture of a simulation: GPUs of every policy over time, above the demand. The only user of matplotlib here."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from janus_hpc.errors import UsageError
from janus_hpc.simulate.demand import Demand
from janus_hpc.simulate.timeline import Timeline

_COLOURS = {
    "janus": "#1b6ca8",
    "megascale": "#e07b39",
    "xdeepserve": "#5a9a5a",
    "monolithic": "#8a8a8a",
}


def plot(path: Path, demand: Demand, timelines: Sequence[Timeline], title: str) -> None:
    """Write it in the format that the file name's ending says. Errors: UsageError without matplotlib, or where the file
    cannot be written.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UsageError("--plot needs matplotlib: pip install 'janus-hpc[report]'") from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(9, 5), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    ends_h = (demand.starts_T + demand.lengths_T - demand.starts_T[0]) / 3600
    edges_h = np.append(0.0, ends_h)
    # The first one lies on top, where lines meet.
    for depth, its in enumerate(timelines):
        ranks = [0 if one.plan is None else one.plan.num_ranks for one in its.intervals]
        summary = its.summary()
        label = f"{its.policy}: {summary['gpu_hours'] + summary['move_gpu_hours']:,.0f} GPU-hours"
        top.stairs(
            ranks,
            edges_h,
            label=label,
            baseline=None,
            color=_COLOURS.get(its.policy),
            linewidth=1.5,
            zorder=9 - depth,
        )
    top.set_ylabel("GPUs")
    top.set_ylim(bottom=0)
    figure.legend(
        frameon=False,
        loc="outside lower center",
        ncols=4,
        fontsize=9,
        handlelength=1,
        columnspacing=1.5,
    )
    top.set_title(title, fontsize=10, loc="left")
    bottom.stairs(demand.rates_T, edges_h, fill=True, color="#c9d7e3")
    bottom.set_ylabel("tokens/s")
    bottom.set_xlabel("hours")
    bottom.set_xlim(0, float(edges_h[-1]))
    for axes in (top, bottom):
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise UsageError(f"--plot {path}: cannot be written: {error}") from error
    finally:
        plt.close(figure)
