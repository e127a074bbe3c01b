"""Where a rank's tensors live, and how much memory a KV cache may take there."""

from pathlib import Path

import torch

from janus_hpc.comm.world import World
from janus_hpc.config import parse_bytes
from janus_hpc.errors import UsageError

CPU_KV_SHARE = 0.25
CUDA_KV_SHARE = 0.80
MEMINFO = Path("/proc/meminfo")
CGROUPS = Path("/proc/self/cgroup")
CGROUP_ROOT = Path("/sys/fs/cgroup")


def choose_device_kind(asked: str) -> str:
    """`cpu` or `cuda` for `auto|cpu|cuda`. Errors: UsageError when cuda is asked for and absent."""
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: this rank sees no CUDA device")
    return asked


def agree_on_device(world: World, asked: str) -> str:
    """The same on every rank: `auto` takes cuda only where all see a GPU. Collective over the world.

    Errors: UsageError on all ranks where cuda is asked for and absent on one.
    """
    error: Exception | None = None
    kind = "cpu"
    try:
        kind = choose_device_kind(asked)
    except UsageError as problem:
        error = problem
    world.agree(error)
    return "cuda" if all(its == "cuda" for its in world.allgather(kind)) else "cpu"


def rank_device(kind: str, local_rank: int) -> torch.device:
    """The rank's device: its local GPU; several ranks share one where there are more ranks than GPUs."""
    if kind == "cpu":
        return torch.device("cpu")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def kv_budget_bytes(
    setting: str, device: torch.device, ranks_sharing: int, weight_bytes: int
) -> int:
    """Bytes for this rank's KV cache: as set, or a share of what weights leave free, divided by those who
    share it. To be asked before weights are loaded."""
    if setting != "auto":
        return parse_bytes(setting, "--kv-memory")
    if device.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(device)
        return int(max(free_bytes / ranks_sharing - weight_bytes, 0) * CUDA_KV_SHARE)
    host_bytes = min(_available_bytes(), _cgroup_room_bytes())
    return int(max(host_bytes / ranks_sharing - weight_bytes, 0) * CPU_KV_SHARE)


def room_bytes(kind: str, local_rank: int, num_local: int) -> int:
    """This rank's share of the memory that is free where its tensors will live; ask before loading."""
    if kind == "cpu":
        return int(min(_available_bytes(), _cgroup_room_bytes()) / num_local)
    count = torch.cuda.device_count()
    free_bytes, _ = torch.cuda.mem_get_info(local_rank % count)
    sharing = len(range(local_rank % count, num_local, count))
    return int(free_bytes / sharing)


def _cgroup_room_bytes() -> float:
    """What the memory limits of this process's control groups leave (Slurm's --mem); inf without a limit."""
    room = float("inf")
    for line in CGROUPS.read_text(encoding="ascii").splitlines() if CGROUPS.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root, names = (CGROUP_ROOT, ("memory.max", "memory.current"))
        if controllers:
            root = CGROUP_ROOT / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            room = min(room, _room_of(group, *names))
            if group == root:
                break
    return max(room, 0.0)


def _room_of(group: Path, limit_name: str, usage_name: str) -> float:
    try:
        limit = (group / limit_name).read_text(encoding="ascii").strip()
        usage = (group / usage_name).read_text(encoding="ascii").strip()
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return float("inf")
    counts = dict(line.split() for line in lines)
    # Files in the page cache count as usage, and give way: a model that was copied here fills it.
    total = "total_" if "total_inactive_file" in counts else ""
    cached = sum(int(counts.get(f"{total}{kind}_file", 0)) for kind in ("active", "inactive"))
    used = max(int(usage) - cached, 0)
    return float("inf") if limit == "max" else float(limit) - used


def _available_bytes() -> int:
    for line in MEMINFO.read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    raise UsageError(f"{MEMINFO} has no MemAvailable; give --kv-memory a size")
