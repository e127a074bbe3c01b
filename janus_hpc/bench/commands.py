"""`janus-hpc bench`: measurements as sub-commands, printed as JSON."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click

from janus_hpc import config
from janus_hpc.bench.balance_command import balance
from janus_hpc.bench.command_parts import names, sizes, write_records
from janus_hpc.bench.kernel_commands import experts, kernels
from janus_hpc.bench.overhead_command import overhead
from janus_hpc.bench.plan_command import plan
from janus_hpc.cli_options import run_options
from janus_hpc.cli_world import start_world
from janus_hpc.errors import UsageError
from janus_hpc.launch import LaunchEnv, threads_per_rank
from janus_hpc.models.config_file import ConfigFile
from janus_hpc.models.shapes import shape_config
from janus_hpc.planner.cost_table import read_table

# What a prompts file or results would be needed for.
NOT_HERE = (
    "prompts", "model", "output", "split", "strict", "fresh", "overwrite", "retry_failed",
    "max_tokens", "temperature", "seed", "max_context", "batch_rows", "rebalance", "trace",
    "routing_trace", "metrics", "shard", "drain_s", "stall_s", "log_level",
    "replan", "slo_tpot_ms", "slo_percentile", "profile",
)  # fmt: skip


@click.group()
def bench() -> None:
    """Measure speed on this machine."""


bench.add_command(balance)
bench.add_command(experts)
bench.add_command(kernels)
bench.add_command(overhead)
bench.add_command(plan)


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
                batches=sizes(batch, "--batch"),
                splits=splits.split(","),
                num_prompt_tokens=prompt_tokens,
                num_new_tokens=new_tokens,
                repeats=repeats,
                peer=peer,
                run=run,
            ),
        )
        if world.world_rank == 0:
            write_records(records, json_path)
    return 0


@bench.command()
@click.option(
    "--kinds", default="one-phase,direct,relay,host,auto", help="also shm on one node [all but shm]"
)
@click.option("--gates", default="egate", help="egate, agate or both [egate]")
@click.option("--inter", default="auto", help="links between nodes, e.g. mpi,ucx [auto]")
@click.option("--splits", default="1a1e", help="e.g. 2a6e,4a4e,6a2e [1a1e]")
@click.option("--tokens", default="64,256,1024", help="tokens a step over all attention ranks")
@click.option("--hidden", default=2048, type=click.IntRange(1), help="hidden size [2048]")
@click.option(
    "--dtype",
    default="bfloat16",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="of rows on their way [bfloat16]",
)
@click.option("--repeats", default=100, type=click.IntRange(1), help="layers timed [100]")
@click.option(
    "--seconds", default=3.0, type=click.FloatRange(0), help="fewer layers, if longer than this [3]"
)
@click.option("--microbatches", default=1, type=click.IntRange(1, 4), help="parts of a step [1]")
@click.option("--top-k", default=8, type=click.IntRange(1), help="choices a token, for agate [8]")
@click.option("--experts", default=64, type=click.IntRange(1), help="experts, for agate [64]")
@click.option("--chunk-bytes", type=click.IntRange(1), help="bytes of rows that travel together")
@click.option(
    "--table", type=click.Path(path_type=Path), help="of `profile --exchange`; else measured now"
)
@click.option("--timeout", default=60.0, help="longest wait for a peer, seconds [60]")
@click.option("--json", "json_path", default="-", help="where the records go; - is standard output")
@click.pass_obj
def exchange(env: LaunchEnv, /, **given: Any) -> int:
    """Dispatch + combine of each kind of exchange, without computing between: time and bytes."""
    tokens = sizes(given["tokens"], "--tokens")
    if given["top_k"] > given["experts"]:
        raise UsageError(f"--top-k {given['top_k']}: more than --experts {given['experts']}")
    inters = given["inter"].split(",")
    costs = None if given["table"] is None else read_table(given["table"]).costs
    if costs and (missing := [its for its in inters if its not in {*costs.links, "auto"}]):
        raise UsageError(f"--table {given['table']}: has no link {missing[0]}")
    world = start_world(env)

    import torch

    from janus_hpc.bench.exchange import ExchangeOptions, run_exchange
    from janus_hpc.comm.exchange import GATES
    from janus_hpc.comm.guard import guard
    from janus_hpc.comm.links.make import INTERS
    from janus_hpc.comm.make import CHUNK_BYTES, KINDS

    options = ExchangeOptions(
        kinds=names(given["kinds"], "--kinds", KINDS),
        gates=names(given["gates"], "--gates", GATES),
        inters=names(given["inter"], "--inter", INTERS),
        splits=given["splits"].split(","),
        tokens=tokens,
        hidden=given["hidden"],
        row_dtype=getattr(torch, given["dtype"]),
        repeats=given["repeats"],
        most_s=given["seconds"],
        num_microbatches=given["microbatches"],
        top_k=given["top_k"],
        num_experts=given["experts"],
        chunk_bytes=given["chunk_bytes"] or CHUNK_BYTES,
        timeout_s=given["timeout"],
        num_threads=threads_per_rank(env, world.num_cores, world.num_local).num_threads,
        ucx_settings=env.ucx_settings,
        costs=costs,
    )
    with guard(world):
        records = run_exchange(world, options)
        if world.world_rank == 0:
            write_records(records, given["json_path"])
    return 0
