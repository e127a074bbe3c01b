"""`janus-hpc plan`: options in, a plan in words, as JSON or as a batch script out. One process, no MPI, no torch."""

import json
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from janus_hpc.errors import UsageError
from janus_hpc.launch import LaunchEnv
from janus_hpc.plan.job import make_request

_GIVEN = ParameterSource.COMMANDLINE
_POSITIVE = click.FloatRange(0, min_open=True)
_COUNT = click.IntRange(1)
_PATH = click.Path(path_type=Path)


@click.command()
@click.option("--job", type=_PATH, help="job file: its keys and its table [plan], flags win")
@click.option("--profile", help="file of janus-hpc profile, or a shipped hardware's name")
@click.option("--expert-profile", help="the expert ranks' hardware, where it is another")
@click.option("--shape", help="a named model shape, for a shipped hardware")
@click.option("--model", type=_PATH, help="model folder: the profile must be of it")
@click.option("--dtype", default="auto", help="of weights and cache, for --model [auto: as stored]")
@click.option("--rate", type=_POSITIVE, help="tokens/s to reach with the fewest ranks")
@click.option("--ranks", type=_COUNT, help="a fixed allocation to make the most of")
@click.option("--max-ranks", type=_COUNT, help="the most that may be taken [64]")
@click.option("--prompts", type=_PATH, help="rows to answer: lengths come from them")
@click.option("--rows", type=_COUNT, help="rows to answer, without a file")
@click.option("--mean-prompt", type=_POSITIVE, help="their tokens, for --rows")
@click.option("--mean-answer", type=_POSITIVE, help="tokens of an answer [each row's max_tokens]")
@click.option("--max-tokens", type=_COUNT, default=256, help="for rows that name none [256]")
@click.option("--deadline", help="seconds or HH:MM:SS for these rows, at the fewest rank-hours")
@click.option("--slo-tpot-ms", type=_POSITIVE, help="most time for an output token [no limit]")
@click.option("--slo-percentile", type=click.Choice(["mean", "p99"]), default="mean", help="[mean]")
@click.option("--context", type=_POSITIVE, help="mean tokens behind a sequence in decode")
@click.option("--context-std", type=click.FloatRange(0), help="their standard deviation [0]")
@click.option("--ranks-per-node", type=_COUNT, help="[the profile's]")
@click.option(
    "--price-attention", type=_POSITIVE, help="of an attention rank's hour [the profile's]"
)
@click.option("--price-expert", type=_POSITIVE, help="of an expert rank's hour [the profile's]")
@click.option("--trace", type=_PATH, help="routing trace or results file: how experts are chosen")
@click.option(
    "--balance",
    type=click.Choice(["aebs", "greedy", "eplb", "random", "first"]),
    default="aebs",
    help="which replica serves [aebs]",
)
@click.option("--gate", type=click.Choice(["egate", "agate"]), default="egate", help="[egate]")
@click.option(
    "--slots", type=click.IntRange(0), default=0, help="of an expert rank [0: all choices]"
)
@click.option("--max-sequences", type=_COUNT, default=128, help="in flight an attention rank [128]")
@click.option("--max-step-tokens", type=_COUNT, default=512, help="a step and attention rank [512]")
@click.option(
    "--microbatches", type=click.Choice(["auto", "1", "2", "3", "4"]), default="auto", help="[auto]"
)
@click.option(
    "--exchange", default="auto", help="kinds between nodes, e.g. direct,relay [auto: all]"
)
@click.option("--baselines/--no-baselines", default=True, help="also say what others would choose")
@click.option(
    "--json", "json_to", help="write the plan as JSON to a file, or - for standard output"
)
@click.option("--emit", type=click.Choice(["slurm"]), help="also write a batch script and rank map")
@click.option(
    "-o", "--output", type=_PATH, default=Path("."), help="their folder [the working one]"
)
@click.option("--overwrite", is_flag=True, help="replace an existing script and rank map")
@click.pass_context
def plan(
    context: click.Context,
    /,
    json_to: str | None,
    emit: str | None,
    output: Path,
    overwrite: bool,
    **options: Any,
) -> None:
    """Say which ranks should do attention and which experts, and why.

    With --rate: the fewest ranks for so many tokens/s; with --ranks: the most of a fixed allocation; with
    --prompts or --rows: the fewest rank-hours, by --deadline if given. Exit code 2: no plan meets these.
    """
    env: LaunchEnv = context.obj
    # Under mpirun or srun one process is enough.
    if env.world_rank != 0:
        return
    asked = {name for name in options if context.get_parameter_source(name) is _GIVEN}
    request = make_request(options, asked)
    request.check()
    _check_places(json_to)

    from janus_hpc.plan.make import make_plan

    made = make_plan(request, env.cache_dir)
    if emit is not None:
        from janus_hpc.plan.emit_slurm import emit_slurm

        for path in emit_slurm(made, output, overwrite):
            click.echo(f"wrote {path}", err=True)
    click.echo(made.text, err=json_to == "-")
    if json_to is not None:
        _write_json(json_to, made.record)


def _check_places(json_to: str | None) -> None:
    if json_to not in (None, "-") and Path(str(json_to)).is_dir():
        raise UsageError(f"--json {json_to} is a folder; name a file, or - for standard output")


def _write_json(where: str, record: dict[str, Any]) -> None:
    text = json.dumps(record, indent=1)
    if where == "-":
        click.echo(text)
        return
    try:
        Path(where).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--json {where}: cannot be written: {error.strerror}") from error
