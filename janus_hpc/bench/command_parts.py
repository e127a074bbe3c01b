"""What the benchmarks' commands share: lists on the command line, the device and its kernels, and JSON out.

Imports nothing heavy before it is called.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from janus_hpc.errors import UsageError
from janus_hpc.launch import LaunchEnv

if TYPE_CHECKING:
    import torch

    from janus_hpc.kernels.ops import Ops


def sizes(text: str, option: str) -> list[int]:
    """Positive numbers separated by commas. UsageError for anything else."""
    found = text.split(",")
    if not all(size.isdigit() and int(size) > 0 for size in found):
        raise UsageError(f"{option}: expected numbers such as 1,8,32, got {text!r}")
    return [int(size) for size in found]


def names(text: str, option: str, known: Sequence[str]) -> list[str]:
    """Names separated by commas, all of them known. UsageError listing these."""
    found = text.split(",")
    if unknown := [name for name in found if name not in known]:
        raise UsageError(f"{option}: {unknown[0]!r} is unknown; known are {', '.join(known)}")
    return found


def device_and_ops(kind: str, env: LaunchEnv, num_threads: int) -> "tuple[torch.device, Ops]":
    """The device for `auto|cpu|cuda` and its kernels, with so many threads for them and for torch."""
    import torch

    from janus_hpc.engine.device import choose_device_kind
    from janus_hpc.kernels.make import make_ops

    device = torch.device(choose_device_kind(kind))
    torch.set_num_threads(num_threads)
    ops = make_ops(device, num_threads, env.cache_dir)
    if ops.why:
        click.echo(ops.why, err=True)
    return device, ops


def write_records(records: list[dict[str, Any]], json_path: str) -> None:
    """JSON into a file, or on standard output for -."""
    with click.open_file(json_path, "w") as out:
        out.write(json.dumps(records, indent=1) + "\n")
