"""What the kernel says about the cores this process may use. Knows no ranks."""

import os
from pathlib import Path

CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUPS = Path("/proc/self/cgroup")
ONLINE = Path("/sys/devices/system/cpu/online")


def parse_cpu_list(text: str) -> frozenset[int]:
    """`0-3,8` -> {0, 1, 2, 3, 8}. ValueError for anything else."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


def own_cpus() -> frozenset[int]:
    """CPUs this process is bound to."""
    return frozenset(os.sched_getaffinity(0))


def allowed_cpus() -> frozenset[int]:
    """CPUs this process could be bound to: its control group's, else all that are online."""
    for folder in _groups("cpuset"):
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus"):
            cpus = _cpus_in(folder / name)
            if cpus:
                return cpus
    return _cpus_in(ONLINE) or own_cpus()


def quota_cores() -> float | None:
    """Cores' worth of time that the control groups grant (docker --cpus); None without a limit."""
    limits = [_quota_of(group) for group in _groups("cpu")]
    return min((its for its in limits if its is not None), default=None)


def _groups(controller: str) -> list[Path]:
    """This process's folder of a controller and those above, in either version of control groups.

    In a container the first ones may lie outside of what it sees.
    """
    found = []
    for line in _read(CGROUPS).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root = CGROUP_ROOT / controllers
        folder = root / path.lstrip("/")
        found += [its for its in (folder, *folder.parents) if its.is_relative_to(root)]
    return found


def _quota_of(group: Path) -> float | None:
    text = _read(group / "cpu.max").split()
    if not text:
        text = [_read(group / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    try:
        quota, period = float(text[0]), float(text[1])
    except (ValueError, IndexError):
        return None
    return quota / period if quota > 0 and period > 0 else None


def _cpus_in(path: Path) -> frozenset[int]:
    try:
        return parse_cpu_list(_read(path))
    except ValueError:
        return frozenset()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
