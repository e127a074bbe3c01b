"""`janus-hpc bench experts` and `bench kernels`: their options, checked before anything heavy is imported."""

from collections.abc import Callable
from typing import Any

import click

from janus_hpc.bench.command_parts import device_and_ops, names, sizes, write_records
from janus_hpc.errors import UsageError
from janus_hpc.launch import LaunchEnv
from janus_hpc.models.shapes import shape_config, shapes

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
    device, ops = device_and_ops(given["device"], env, _num_threads(env, given))

    import torch

    from janus_hpc.bench.experts import ExpertsOptions, run_experts

    options = ExpertsOptions(
        shapes=known,
        num_slots=given["slots"],
        tokens=tokens,
        dtype=getattr(torch, given["dtype"]),
        repeats=given["repeats"],
    )
    write_records(run_experts(ops, device, options), given["json_path"])
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
    if "head_dim" not in values:
        grouped = ", ".join(name for name, its in shapes().items() if "head_dim" in its)
        raise UsageError(f"--shape {given['shape']}: kernels are timed for {grouped}")
    if given["slots"] > values["num_experts"]:
        raise UsageError(
            f"--slots {given['slots']}: {given['shape']} has {values['num_experts']} experts"
        )
    if env.world_rank:
        return 0
    device, ops = device_and_ops(given["device"], env, _num_threads(env, given))

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
    write_records(run_kernels(ops, device, options), given["json_path"])
    return 0


def _num_threads(env: LaunchEnv, given: dict[str, Any]) -> int:
    threads: int = given["threads"] or env.omp_threads or env.num_cpus
    return threads
