"""`janus-hpc profile`: measures the ranks it is started on, and writes what runs decide by."""

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from janus_hpc.cli_world import start_world
from janus_hpc.demo import demo_model_dir
from janus_hpc.errors import ModelError, UsageError
from janus_hpc.launch import LaunchEnv, threads_per_rank
from janus_hpc.models.config_file import ConfigFile
from janus_hpc.models.registry import spec_of
from janus_hpc.models.shapes import shape_config
from janus_hpc.planner.cost_table import CostTable, write_table
from janus_hpc.planner.profile_file import write_profile
from janus_hpc.profile.report import profile_lines, table_lines

if TYPE_CHECKING:
    from janus_hpc.comm.world import World

DTYPES = ("float32", "bfloat16", "float16")


@click.command()
@click.option("--exchange", is_flag=True, help="only what messages and memory cost on these ranks")
@click.option("--model", "model_dir", type=click.Path(path_type=Path), help="folder [demo model]")
@click.option("--shape", help="a named shape instead, e.g. moe-211m")
@click.option(
    "--dtype",
    default="auto",
    type=click.Choice(["auto", *DTYPES]),
    help="of weights and KV cache; auto takes the checkpoint's [auto]",
)
@click.option("--device", default="auto", type=click.Choice(["auto", "cpu", "cuda"]), help="[auto]")
@click.option(
    "--max-context", default=0, type=click.IntRange(0), help="longest sequence [the model's]"
)
@click.option("--quick", is_flag=True, help="fewer points: seconds instead of a minute")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="[profile.json; exchange.json with --exchange]",
)
@click.option(
    "--inter", default="auto", help="links: auto takes all that work; e.g. mpi,ucx [auto]"
)
@click.option("--timeout", default=60.0, help="longest wait for a peer, seconds [60]")
@click.pass_obj
def profile(
    env: LaunchEnv,
    /,
    exchange: bool,
    model_dir: Path | None,
    shape: str | None,
    dtype: str,
    device: str,
    max_context: int,
    quick: bool,
    output: Path | None,
    inter: str,
    timeout: float,
) -> int:
    """Measure the ranks this is started on (mpirun, srun): what a model's layers take, for plans.

    Start as many ranks a node as will run. With --exchange: what messages cost, for --exchange-table.
    """
    output = output or Path("exchange.json" if exchange else "profile.json")
    _check_output(output)
    if exchange:
        return _exchange(env, output, inter, timeout)
    if model_dir is not None and shape is not None:
        raise UsageError("--model and --shape: give one of them")
    name = shape or str(model_dir or demo_model_dir())
    config = _config(model_dir, shape)
    spec = spec_of(config)
    dtype = spec.stored_dtype if dtype == "auto" else dtype
    if dtype not in DTYPES:
        raise ModelError(f"{config.path}: dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if max_context > spec.max_context:
        raise UsageError(
            f"--max-context {max_context} exceeds the model's {spec.max_context} positions"
        )
    world = start_world(env)

    from janus_hpc.comm.guard import guard
    from janus_hpc.engine.device import agree_on_device
    from janus_hpc.engine.measure.effort import FULL, QUICK
    from janus_hpc.engine.measure.measure import measure_profile

    with guard(world):
        started_s = time.monotonic()
        measured = measure_profile(
            world,
            env,
            spec,
            name=name,
            dtype=dtype,
            device_kind=agree_on_device(world, device),
            effort=QUICK if quick else FULL,
            timeout_s=timeout,
            max_context=max_context,
            model_dir=None if shape else model_dir or demo_model_dir(),
        )
        if world.world_rank == 0:
            write_profile(output, measured)
            for line in profile_lines(measured, time.monotonic() - started_s):
                click.echo(line, err=True)
            click.echo(f"{output}: profile of {name} on {measured.hardware.name}", err=True)
    return 0


def _config(model_dir: Path | None, shape: str | None) -> ConfigFile:
    if shape is not None:
        return ConfigFile(Path(f"shape {shape}"), shape_config(shape))
    return ConfigFile.load(model_dir or demo_model_dir())


def _check_output(path: Path) -> None:
    """UsageError, before minutes of measuring, where the file could not be written."""
    if not path.parent.is_dir():
        raise UsageError(f"-o {path}: the folder {path.parent} does not exist")
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"-o {path}: cannot be written")


def _exchange(env: LaunchEnv, output: Path, inter: str, timeout_s: float) -> int:
    world = start_world(env)

    from janus_hpc.comm.guard import guard

    with guard(world):
        table = measure_table(world, env, inter, timeout_s)
        if world.world_rank == 0:
            write_table(output, table)
            for line in table_lines(table):
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
