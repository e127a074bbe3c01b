"""`janus-hpc bench experts` and `bench kernels`: their options, checked before anything heavy is imported."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from janus_hpc.bench.lists import names, sizes
from janus_hpc.errors import UsageError
from janus_hpc.launch import LaunchEnv
from janus_hpc.models.shapes import shape_config, shapes

if TYPE_CHECKING:
    import torch

    from janus_hpc.kernels.ops import Ops

Command = Callable[..., Any]


def _common(command: Command) -> Command:
    """Options of both."""
    options = [
        click.option(
            "--dtype",
            default="bfloat16",
            type=click.Choice(["float32", "bfloat16", "float16"]),
            help="of weights [bfloat16]",
        ),
        click.option("--repeats", default=7, type=click.IntRange(1), help="runs, of which the median counts [7]"),
        click.option("--threads", type=click.IntRange(1), help="threads on a CPU [OMP_NUM_THREADS, else its cores]"),
        click.option(
            "--device", default="auto", type=click.Choice(["auto", "cpu", "cuda"]), help="where to compute"
        ),
        click.option(
            "--json", "json_path", default="-", help="where the records go; - is standard output"
        ),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@click.option(
    "--shape", default="moe-211m", help="named shapes, e.g. moe-211m,qwen3-30b-a3b [moe-211m]"
)
@click.option("--slots", type=click.IntRange(1), help="experts on this rank [all of the shape]")
@click.option("--tokens", default="1,2,4,8,16,32,64,128", help="tokens of a batch")
@_common
@click.pass_obj
def experts(env: LaunchEnv, /, **given: Any) -> int:
    """The routed experts of one rank against torch's grouped product and a loop, over batch sizes."""
    tokens = sizes(given["tokens"], "--tokens")
    known = names(given["shape"], "--shape", sorted(shapes()))
    if env.world_rank:
        return 0
    device, ops = _prepare(env, given)

    import torch

    from janus_hpc.bench.experts import ExpertsOptions, run_experts

    options = ExpertsOptions(
        shapes=known,
        num_slots=given["slots"],
        tokens=tokens,
        dtype=getattr(torch, given["dtype"]),
        repeats=given["repeats"],
    )
    _write(run_experts(ops, device, options), given["json_path"])
    return 0


@click.command()
@click.option("--shape", default="qwen3-30b-a3b", help="whose sizes to take [qwen3-30b-a3b]")
@click.option("--slots", default=16, type=click.IntRange(1), help="experts on this rank [16]")
@click.option(
    "--context", default=512, type=click.IntRange(1), help="positions a token attends to [512]"
)
@click.option("--tokens", default="1,8,64", help="tokens of a batch [1,8,64]")
@click.option("--kernels", "kernel_names", help="of those the records name [all]")
@_common
@click.pass_obj
def kernels(env: LaunchEnv, /, **given: Any) -> int:
    """Each kernel against its plain torch twin, and a library's where there is one."""
    tokens = sizes(given["tokens"], "--tokens")
    values = shape_config(given["shape"])
    if given["slots"] > values["num_experts"]:
        raise UsageError(
            f"--slots {given['slots']}: {given['shape']} has {values['num_experts']} experts"
        )
    if env.world_rank:
        return 0
    device, ops = _prepare(env, given)

    import torch

    from janus_hpc.bench.kernels import KERNELS, KernelsOptions, run_kernels

    options = KernelsOptions(
        kernels=names(given["kernel_names"] or ",".join(KERNELS), "--kernels", list(KERNELS)),
        shape=given["shape"],
        num_slots=given["slots"],
        context=given["context"],
        tokens=tokens,
        dtype=getattr(torch, given["dtype"]),
        repeats=given["repeats"],
    )
    _write(run_kernels(ops, device, options), given["json_path"])
    return 0


def _prepare(env: LaunchEnv, given: dict[str, Any]) -> "tuple[torch.device, Ops]":
    """The device and its kernels, with so many threads for them and for torch."""
    import torch

    from janus_hpc.engine.device import choose_device_kind
    from janus_hpc.kernels.make import make_ops

    device = torch.device(choose_device_kind(given["device"]))
    num_threads = given["threads"] or env.omp_threads or env.num_cpus
    torch.set_num_threads(num_threads)
    ops = make_ops(device, num_threads, env.cache_dir)
    if ops.why:
        click.echo(ops.why, err=True)
    return device, ops


def _write(records: list[dict[str, Any]], json_path: str) -> None:
    with click.open_file(Path(json_path) if json_path != "-" else "-", "w") as out:
        out.write(json.dumps(records, indent=1) + "\n")
