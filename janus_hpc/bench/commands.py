"""`janus-hpc bench`: measurements as sub-commands, printed as JSON."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from janus_hpc import config
from janus_hpc.bench.shapes import shape_config
from janus_hpc.cli_options import run_options
from janus_hpc.cli_world import start_world
from janus_hpc.errors import UsageError
from janus_hpc.launch import LaunchEnv
from janus_hpc.models.config_file import ConfigFile

# What a prompts file or results would be needed for.
NOT_HERE = (
    "prompts", "model", "output", "split", "strict", "fresh", "overwrite", "retry_failed",
    "max_tokens", "temperature", "seed", "max_context",
)  # fmt: skip


def _sizes(text: str) -> list[int]:
    sizes = text.split(",")
    if not all(size.isdigit() and int(size) > 0 for size in sizes):
        raise UsageError(f"--batch: expected numbers such as 1,8,32, got {text!r}")
    return [int(size) for size in sizes]


@click.group()
def bench() -> None:
    """Measure speed on this machine."""


@bench.command()
@click.option("--shape", default="moe-211m", help="named shape with random weights [moe-211m]")
@click.option(
    "--model", "model_dir", type=click.Path(path_type=Path), help="a model folder instead"
)
@click.option("--batch", default="1,8,32,128", help="batch sizes")
@click.option("--splits", default="colocated", help="e.g. colocated,1a2e")
@click.option("--prompt-tokens", default=32, type=click.IntRange(1), help="prompt length")
@click.option("--new-tokens", default=64, type=click.IntRange(2), help="answer length")
@click.option("--repeats", default=3, type=click.IntRange(1), help="timed runs, the median counts")
@click.option("--peer/--no-peer", default=True, help="time transformers beside")
@click.option("--json", "json_path", default="-", help="where the records go; - is standard output")
@run_options(skip=NOT_HERE)
@click.pass_obj
def e2e(
    env: LaunchEnv,
    /,
    shape: str,
    model_dir: Path | None,
    batch: str,
    splits: str,
    prompt_tokens: int,
    new_tokens: int,
    repeats: int,
    peer: bool,
    json_path: str,
    **flags: Any,
) -> int:
    """Decode speed of the engine, and of transformers' generate in the same run."""
    given = {name: value for name, value in flags.items() if value is not None}
    run = config.load(None, {"prompts": ""} | given)
    values = ConfigFile.load(model_dir).values if model_dir else shape_config(shape)

    if peer and find_spec("transformers") is None:
        click.echo("transformers is not installed: no peer is timed", err=True)
        peer = False
    world = start_world(env)

    from janus_hpc.bench.e2e import E2eOptions, run_e2e
    from janus_hpc.comm.guard import guard

    with guard(world):
        records = run_e2e(
            world,
            env,
            E2eOptions(
                config_values=values,
                model_dir=model_dir,
                batches=_sizes(batch),
                splits=splits.split(","),
                num_prompt_tokens=prompt_tokens,
                num_new_tokens=new_tokens,
                repeats=repeats,
                peer=peer,
                run=run,
            ),
        )
        if world.world_rank == 0:
            with click.open_file(json_path, "w") as out:
                out.write(json.dumps(records, indent=1) + "\n")
    return 0
