"""The list of checks, in the order they are made: those that need little first. Pure."""

from janus_hpc.doctor import (
    bandwidth,
    clocks,
    gpus,
    hdf5,
    kernels,
    limits,
    memory,
    model,
    mpi,
    output,
    ranks,
    shm,
    slurm,
    threads,
    ucx,
    versions,
)
from janus_hpc.doctor.check import Check
from janus_hpc.errors import UsageError

CHECKS = (
    mpi.CHECK,
    ranks.CHECK,
    versions.CHECK,
    slurm.CHECK,
    limits.CHECK,
    threads.CHECK,
    shm.CHECK,
    output.CHECK,
    hdf5.CHECK,
    model.CHECK,
    memory.CHECK,
    kernels.CHECK,
    gpus.GPUS,
    gpus.ALLOCATOR,
    gpus.CUDA_IPC,
    ucx.CHECK,
    clocks.CHECK,
    bandwidth.CHECK,
)


def chosen(only: str | None, skip: str | None) -> list[Check]:
    """The checks of `--only` without those of `--skip`. UsageError listing the known names."""
    known = [check.name for check in CHECKS]
    wanted = set(_names(only, "--only", known) if only is not None else known)
    wanted -= set(_names(skip, "--skip", known) if skip is not None else ())
    if not wanted:
        raise UsageError(f"--only and --skip leave no check; known are {', '.join(known)}")
    return [check for check in CHECKS if check.name in wanted]


def _names(text: str, option: str, known: list[str]) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"{option}: {unknown[0]!r} is unknown; known are {', '.join(known)}")
    return names
