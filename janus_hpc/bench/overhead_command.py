"""`janus-hpc bench overhead`: options in, one record out."""

import tempfile
from pathlib import Path
from typing import Any

import click

from janus_hpc import config
from janus_hpc.bench.command_parts import write_records
from janus_hpc.cli_world import start_world
from janus_hpc.launch import LaunchEnv
from janus_hpc.models.shapes import shape_config


@click.command()
@click.option("--shape", default="moe-211m", help="named shape with random weights [moe-211m]")
@click.option("--split", default="1a1e", help="[1a1e]")
@click.option("--rows", default=128, type=click.IntRange(1), help="answered in a run [128]")
@click.option("--prompt-tokens", default=32, type=click.IntRange(1), help="prompt length [32]")
@click.option("--new-tokens", default=64, type=click.IntRange(2), help="answer length [64]")
@click.option("--pairs", default=15, type=click.IntRange(2), help="runs of each kind [15]")
@click.option(
    "--folder", type=click.Path(path_type=Path), help="for journals [a temporary one beside]"
)
@click.option(
    "--json", "json_path", default="-", help="where the record goes; - is standard output"
)
@click.pass_obj
def overhead(
    env: LaunchEnv,
    /,
    shape: str,
    split: str,
    rows: int,
    prompt_tokens: int,
    new_tokens: int,
    pairs: int,
    folder: Path | None,
    json_path: str,
) -> int:
    """What journal, watchdog, routing trace and metrics cost together, in runs with and without them in turn."""
    run = config.load(None, {"prompts": "", "microbatches": "1"})
    values = shape_config(shape)
    world = start_world(env)

    from janus_hpc.bench.e2e import E2eOptions
    from janus_hpc.bench.overhead import OverheadOptions, run_overhead
    from janus_hpc.comm.guard import guard

    with guard(world), tempfile.TemporaryDirectory(dir=folder or Path()) as own:
        shared = Path(world.bcast(own))
        e2e = E2eOptions(
            config_values=values,
            model_dir=None,
            batches=[],
            splits=[],
            num_prompt_tokens=prompt_tokens,
            num_new_tokens=new_tokens,
            repeats=1,
            peer=False,
            run=run,
        )
        options = OverheadOptions(
            e2e=e2e, split=split, num_rows=rows, num_pairs=pairs, folder=shared
        )
        records: list[dict[str, Any]] = run_overhead(world, env, options)
        world.barrier()
        if world.world_rank == 0:
            write_records(records, json_path)
    return 0
