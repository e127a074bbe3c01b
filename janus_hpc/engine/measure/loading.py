"""How fast weights come: from the model's files, and from another rank."""

import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from janus_hpc.comm.costs import ExchangeCosts
from janus_hpc.comm.measure import QUICK, measure_costs
from janus_hpc.engine.measure.bed import Bed
from janus_hpc.weights.checkpoint import SINGLE_NAME, Checkpoint

# Of the model's files as much is read.
MOST_BYTES = 256 << 20


def message_costs(bed: Bed, timeout_s: float) -> ExchangeCosts:
    """What messages and memory cost on all ranks. Collective over the world."""
    one_node = len(set(bed.world.node_ids)) == 1
    return measure_costs(
        bed.world,
        ("mpi",) if one_node else ("auto",),
        effort=QUICK,
        timeout_s=timeout_s,
        ucx_settings=bed.env.ucx_settings,
    )


def link_rate(costs: ExchangeCosts) -> float:
    """Bytes a second of a large message, between nodes where there are several; of a copy on a rank alone."""
    link = next(iter(costs.links.values()))
    if link.across:
        return link.node_rate
    if link.inside:
        num_bytes, seconds = link.inside[-1]
        return num_bytes / seconds
    return costs.memory.copy_rate


def checkpoint_rate(bed: Bed, model_dir: Path | None) -> tuple[float, str]:
    """Bytes a second that a node reads, as they are held, the slowest node's, and what was read.

    A checkpoint in another dtype than the run's is so counted by what becomes of it. Collective over the world.
    """
    mine = _read_rate(bed, model_dir) if bed.world.local_rank == 0 else None
    rate = min(its for its in bed.world.allgather(mine) if its is not None)
    what = f"the files of {model_dir}" if model_dir is not None else "a temporary file"
    return rate, f"read rate of {what}, which the page cache may have held"


def _read_rate(bed: Bed, model_dir: Path | None) -> float:
    if model_dir is not None:
        return _rate_of(model_dir, bed.dtype)
    with tempfile.TemporaryDirectory() as folder:
        tensor = torch.ones(bed.effort.file_bytes // bed.dtype.itemsize, dtype=bed.dtype)
        save_file({"weights": tensor}, Path(folder) / SINGLE_NAME)
        return _rate_of(Path(folder), bed.dtype)


def _rate_of(folder: Path, dtype: torch.dtype) -> float:
    started_s, held_bytes = time.perf_counter(), 0
    with Checkpoint(folder) as checkpoint:
        for name in checkpoint.names():
            # Mapped files are read when their values are.
            tensor = checkpoint.read(name, checkpoint.shape(name))
            held_bytes += tensor.to(dtype, copy=True).nbytes
            if checkpoint.bytes_read > MOST_BYTES:
                break
        return held_bytes / (time.perf_counter() - started_s)
