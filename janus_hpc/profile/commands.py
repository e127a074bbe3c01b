"""`janus-hpc profile`: measures the ranks it is started on, and writes what runs decide by."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from janus_hpc.cli_world import start_world
from janus_hpc.errors import UsageError
from janus_hpc.launch import LaunchEnv, threads_per_rank
from janus_hpc.planner.cost_table import CostTable, write_table

if TYPE_CHECKING:
    from janus_hpc.comm.world import World


@click.command()
@click.option("--exchange", is_flag=True, help="what messages and memory cost on these ranks")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("exchange.json"),
    help="the table",
)
@click.option(
    "--inter", default="auto", help="links: auto takes all that work; e.g. mpi,ucx [auto]"
)
@click.option("--timeout", default=60.0, help="longest wait for a peer, seconds [60]")
@click.pass_obj
def profile(env: LaunchEnv, /, exchange: bool, output: Path, inter: str, timeout: float) -> int:
    """Measure the ranks this is started on (mpirun, srun) and write a table."""
    if not exchange:
        raise UsageError("nothing to measure: give --exchange")
    world = start_world(env)

    from janus_hpc.comm.guard import guard

    with guard(world):
        table = measure_table(world, env, inter, timeout)
        if world.world_rank == 0:
            write_table(output, table)
            click.echo(json.dumps(msgspec.to_builtins(table.costs), indent=1), err=True)
            click.echo(f"{output}: costs of {len(table.hosts)} ranks", err=True)
    return 0


def measure_table(world: "World", env: LaunchEnv, inter: str, timeout_s: float) -> CostTable:
    """The full measurement. Collective over the world; UsageError for a link that cannot be had."""
    import torch

    from janus_hpc.comm.measure import FULL, measure_costs

    torch.set_num_threads(threads_per_rank(env, world.num_cores, world.num_local).num_threads)
    # "auto" comes to UCX where it works, and else to MPI.
    inters = ["mpi", "auto"] if inter == "auto" else inter.split(",")
    return CostTable(
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        library=world.library_version,
        hosts=world.hosts,
        node_ids=world.node_ids,
        costs=measure_costs(world, inters, effort=FULL, timeout_s=timeout_s),
    )
