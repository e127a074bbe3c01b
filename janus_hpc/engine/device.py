"""Where a rank's tensors live, and how much memory its KV cache may take there."""

from pathlib import Path

import torch

from janus_hpc.config import parse_bytes
from janus_hpc.errors import UsageError

CPU_KV_SHARE = 0.25
CUDA_KV_SHARE = 0.80
MEMINFO = Path("/proc/meminfo")


def choose_device_kind(asked: str) -> str:
    """`cpu` or `cuda` for `auto|cpu|cuda`. Errors: UsageError when cuda is asked for and absent."""
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this rank sees no CUDA device")
    return asked


def rank_device(kind: str, local_rank: int) -> torch.device:
    """The rank's device: its local GPU; several ranks share one where there are more ranks than GPUs."""
    if kind == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def kv_budget_bytes(setting: str, device: torch.device, ranks_sharing: int) -> int:
    """Bytes for this rank's KV cache: as set, or a share of what is free divided by those who share it."""
    if setting != "auto":
        return parse_bytes(setting, "--kv-memory")
    if device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
        return int(free_bytes * CUDA_KV_SHARE / ranks_sharing)
    return int(_available_bytes() * CPU_KV_SHARE / ranks_sharing)


def _available_bytes() -> int:
    for line in MEMINFO.read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    raise UsageError(f"{MEMINFO} has no MemAvailable; give --kv-memory a size")
