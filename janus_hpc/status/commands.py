"""`janus-hpc status`: options in, lines or JSON out."""

import json
import sys
import time
from pathlib import Path

import click

from janus_hpc.errors import UsageError
from janus_hpc.status.runs import ENDED, RunStatus, find_runs, read_run
from janus_hpc.status.show import lines, record
from janus_hpc.watch.beat import Beat


@click.command()
@click.argument("place", type=click.Path(path_type=Path), default=Path("."))
@click.option("--watch", is_flag=True, help="look again until all runs have ended")
@click.option("--interval-s", type=click.FloatRange(0.1), default=2.0, help="between two looks [2]")
@click.option("--json", "as_json", is_flag=True, help="a list of records instead of lines")
def status(place: Path, watch: bool, interval_s: float, as_json: bool) -> None:
    """How far the runs in PLACE are: a folder, a results file, or its run folder [the working folder].

    Reads files alone, from any host that sees them.
    """
    before: dict[Path, dict[int, Beat]] = {}
    while True:
        runs = _read_runs(place)
        earlier = {run.output: before.get(run.output, {}) for run in runs}
        if as_json:
            click.echo(json.dumps([record(run, earlier[run.output]) for run in runs], indent=1))
        else:
            if watch and sys.stdout.isatty():
                click.clear()
            click.echo("\n".join(line for run in runs for line in lines(run, earlier[run.output])))
        if not watch or all(run.state in (*ENDED, "no news") for run in runs):
            return
        before = {run.output: run.beats for run in runs}
        time.sleep(interval_s)


def _read_runs(place: Path) -> list[RunStatus]:
    """Of several runs, one whose files are none is said and left out."""
    outputs = find_runs(place)
    runs = []
    for output in outputs:
        try:
            runs.append(read_run(output, time.time()))
        except UsageError as error:
            if len(outputs) == 1:
                raise
            click.echo(f"janus-hpc: {error}", err=True)
    return runs
