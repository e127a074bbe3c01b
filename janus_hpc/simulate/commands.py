"""`janus-hpc simulate`: options in; tables, JSON and pictures out. One process, no MPI, no torch."""

import json
from pathlib import Path
from typing import Any

import click

from janus_hpc.errors import UsageError
from janus_hpc.launch import LaunchEnv

_POSITIVE = click.FloatRange(0, min_open=True)
_COUNT = click.IntRange(1)
_PATH = click.Path(path_type=Path)


@click.command()
@click.option("--profile", required=True, help="a shipped hardware's name, or a profile's file")
@click.option("--shape", help="a named model shape, for shipped hardware")
@click.option("--slo-tpot-ms", required=True, type=_POSITIVE, help="most time for an output token")
@click.option("--context", required=True, type=_POSITIVE, help="mean tokens behind a sequence")
@click.option("--context-std", default=0.0, type=click.FloatRange(0), help="their deviation [0]")
@click.option("--max-ranks", required=True, type=_COUNT, help="GPUs there are")
@click.option("--demand", help="diurnal, bursty, flat, or a CSV file of time_s,rate")
@click.option("--batches", help="instead of a demand: plans at these batch sizes, e.g. 64,256")
@click.option("--mean-rate", type=_POSITIVE, help="tokens/s of a built-in demand")
@click.option("--peak-ratio", default=7.5, type=click.FloatRange(1), help="peak over mean [7.5]")
@click.option("--hours", default=24.0, type=_POSITIVE, help="length of a built-in demand [24]")
@click.option("--interval-min", default=15.0, type=_POSITIVE, help="between plans [15]")
@click.option("--seed", default=0, type=click.IntRange(0), help="of a built-in demand [0]")
@click.option(
    "--policies",
    default="janus,megascale,xdeepserve,monolithic",
    help="the first is compared [all]",
)
@click.option("--trace", type=_PATH, help="routing trace: how experts are chosen [evenly]")
@click.option("--pod-ranks", default=128, type=_COUNT, help="most GPUs of one deployment [128]")
@click.option("--max-pods", type=_COUNT, help="deployments side by side [as many as fit]")
@click.option("--max-sequences", default=512, type=_COUNT, help="in flight an attention rank [512]")
@click.option(
    "--part-bytes",
    default=2,
    type=_COUNT,
    help="of a value of expert outputs on its way: 2 as in published systems, 8 as here [2]",
)
@click.option("--ranks-per-node", default=0, type=click.IntRange(0), help="[0: the profile's]")
@click.option(
    "--move-cost",
    default="ranks",
    type=click.Choice(["ranks", "checkpoint", "none"]),
    help="where weights come from when plans change [ranks]",
)
@click.option(
    "--least-saving", default=0.0, type=click.FloatRange(0, 1), help="or keep the plan [0]"
)
@click.option("--lag", default=0, type=click.IntRange(0), help="intervals plans are behind [0]")
@click.option("--headroom", default=0.0, type=click.FloatRange(0), help="share planned on top [0]")
@click.option(
    "--json", "json_to", help="write all intervals as JSON to a file, or - for standard output"
)
@click.option("--plot", "plot_to", type=_PATH, help="draw GPUs over time, e.g. a.png")
@click.pass_obj
def simulate(env: LaunchEnv, /, json_to: str | None, plot_to: Path | None, **given: Any) -> None:
    """Compare planning policies over a demand that changes, or at fixed batch sizes.

    Every interval each policy takes its cheapest plan that meets the SLO. Nothing is run: times are a profile's.
    """
    # Under mpirun or srun one process is enough.
    if env.world_rank != 0:
        return
    if (given["demand"] is None) == (given["batches"] is None):
        raise UsageError(
            "give either --demand (plans over time) or --batches (plans at batch sizes)"
        )
    if given["batches"] is not None and plot_to is not None:
        raise UsageError("--plot draws a demand over time; it does not go with --batches")
    for path in (plot_to, Path(json_to) if json_to not in (None, "-") else None):
        if path is not None and not path.parent.is_dir():
            raise UsageError(f"{path}: the folder {path.parent} does not exist")

    from janus_hpc.simulate.run import run_batches, run_demand

    made = (
        run_batches(given, env.cache_dir)
        if given["batches"] is not None
        else run_demand(given, env.cache_dir)
    )
    # Standard output is the JSON's alone where it goes there.
    click.echo(made.text, err=json_to == "-")
    if plot_to is not None:
        made.draw(plot_to)
    if json_to == "-":
        click.echo(json.dumps(made.record))
    elif json_to is not None:
        try:
            Path(json_to).write_text(json.dumps(made.record) + "\n", encoding="utf-8")
        except OSError as error:
            raise UsageError(f"--json {json_to}: cannot be written: {error.strerror}") from error
