"""Draws the roles of all ranks over time, batch by batch. Needs matplotlib (the `report` extra)."""

from collections.abc import Sequence
from pathlib import Path

from janus_hpc.errors import UsageError
from janus_hpc.results.batches import Record

# By the letter of `batches/roles`.
ROLES = {
    "a": ("attention", "#3b6fb6"),
    "e": ("expert", "#d9822b"),
    "c": ("colocated", "#5a9e5d"),
    "p": ("parked", "#c9c9c9"),
}


def draw_roles(batches: Sequence[Record], output: Path) -> None:
    """A bar a rank and batch; the split above, batches apart where ranks moved.

    UsageError without matplotlib, and for a merged file: its shards have ranks and clocks of their own.
    """
    num_shards = len({its["shard"] for its in batches})
    if num_shards > 1:
        raise UsageError(
            f"--plot draws the ranks of one run, got batches of {num_shards} shards;"
            " janus-hpc results report draws a panel for each"
        )
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot
        from matplotlib.patches import Patch
    except ImportError as error:
        raise UsageError(f"--plot needs matplotlib ({error}): install janus-hpc[report]") from None
    num_ranks = max((len(its["roles"]) for its in batches), default=0)
    figure, axes = pyplot.subplots(figsize=(9, 1.6 + 0.32 * num_ranks), layout="constrained")
    for number, its in enumerate(batches):
        for rank, letter in enumerate(its["roles"]):
            axes.barh(
                rank,
                its["seconds"],
                left=its["began_s"],
                height=0.8,
                color=ROLES[letter][1],
                edgecolor="white",
            )
        before = batches[number - 1]["split"] if number else ""
        if its["split"] != before:
            axes.annotate(
                its["split"],
                (its["began_s"], num_ranks - 0.45),
                fontsize=9,
                annotation_clip=False,
            )
    used = [letter for letter in ROLES if any(letter in its["roles"] for its in batches)]
    axes.legend(
        handles=[Patch(color=ROLES[letter][1], label=ROLES[letter][0]) for letter in used],
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
    )
    axes.set_xlabel("seconds since the run began to answer")
    axes.set_ylabel("world rank")
    axes.set_yticks(range(num_ranks))
    axes.set_ylim(-0.6, num_ranks)
    axes.spines[["top", "right"]].set_visible(False)
    try:
        figure.savefig(output, dpi=130)
    except (OSError, ValueError) as error:
        raise UsageError(f"--plot {output}: cannot be written: {error}") from None
    finally:
        pyplot.close(figure)
