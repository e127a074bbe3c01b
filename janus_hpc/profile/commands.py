"""`janus-hpc profile`: measures the ranks it is started on, and writes what runs decide by."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

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
    if not output.parent.is_dir():
        raise UsageError(f"-o {output}: the folder {output.parent} does not exist")
    world = start_world(env)

    from janus_hpc.comm.guard import guard

    with guard(world):
        table = measure_table(world, env, inter, timeout)
        if world.world_rank == 0:
            write_table(output, table)
            for line in _lines(table):
                click.echo(line, err=True)
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
        costs=measure_costs(
            world, inters, effort=FULL, timeout_s=timeout_s, ucx_settings=env.ucx_settings
        ),
    )


def _lines(table: CostTable) -> Iterator[str]:
    """The figures in short."""
    for name, link in table.costs.links.items():
        if link.across:
            yield (
                f"{name} between nodes: {link.across[0][1] * 1e6:.0f} us a small message, "
                f"{link.across_busy_s * 1e6:.0f} us while all send some, "
                f"{link.node_rate / 1e6:.0f} MB/s a node"
            )
        if link.inside:
            size, time_s = link.inside[-1]
            yield (
                f"{name} inside a node: {link.inside[0][1] * 1e6:.0f} us a small message, "
                f"{size / time_s / 1e6:.0f} MB/s"
            )
    memory = table.costs.memory
    yield (
        f"memory: {memory.copy_rate / 1e6:.0f} MB/s copied, {memory.add_rate / 1e6:.0f} MB/s added, "
        f"{memory.signal_s * 1e6:.1f} us a counter"
    )
