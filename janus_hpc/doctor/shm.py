"""Check `shm`: /dev/shm, where MPI and shared weights keep what ranks of a node share."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from janus_hpc.doctor.check import Check
from janus_hpc.doctor.context import Context
from janus_hpc.doctor.finding import Finding, error, fine, size, some, warning

FOLDER = Path("/dev/shm")
# What MPI and the exchange take on a node of many ranks; docker's default is 64 MiB.
_LEAST_BYTES, _FEW_BYTES = 64 << 20, 512 << 20
# A file younger than this may belong to a job that starts right now.
_OLD_S = 600.0
_MANY_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class ShmFacts:
    """Of one node. `left`: this user's old files that no process has open, and their bytes."""

    exists: bool = True
    total_bytes: int = 0
    free_bytes: int = 0
    left: tuple[tuple[str, int], ...] = ()


def gather(context: Context) -> ShmFacts | None:
    """None on ranks that are not their node's first."""
    return look(FOLDER) if context.is_first_on_node else None


def look(folder: Path) -> ShmFacts:
    """The facts of a folder."""
    if not folder.is_dir():
        return ShmFacts(exists=False)
    stats = os.statvfs(folder)
    return ShmFacts(
        total_bytes=stats.f_blocks * stats.f_frsize,
        free_bytes=stats.f_bavail * stats.f_frsize,
        left=tuple(_left(folder)),
    )


def _left(folder: Path) -> list[tuple[str, int]]:
    now_s, used, found = time.time(), None, []
    for entry in sorted(os.scandir(folder), key=lambda its: its.name):
        try:
            stat = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        is_old = now_s - stat.st_mtime > _OLD_S
        if stat.st_uid != os.getuid() or not is_old or not entry.is_file(follow_symlinks=False):
            continue
        used = _in_use(folder) if used is None else used
        if entry.path not in used:
            found.append((entry.name, stat.st_blocks * 512))
    return found


def _in_use(folder: Path) -> set[str]:
    """Files of the folder that a process, as far as one may look, has mapped or open."""
    used: set[str] = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            for line in (process / "maps").read_text(errors="replace").splitlines():
                if f" {folder}/" in line:
                    used.add(line.split(maxsplit=5)[5])
            used.update(os.readlink(link) for link in (process / "fd").iterdir())
        except OSError:
            continue
    return used


def judge(facts: Sequence[ShmFacts | None], context: Context) -> list[Finding]:
    """Pure."""
    findings: list[Finding] = []
    found = {r: its for r, its in enumerate(facts) if its is not None}
    for r, its in found.items():
        ranks = context.places.ranks_of[context.places.node_ids[r]]
        if len(ranks) > 1:
            findings += _small(its, ranks, context.places.hosts[r])
        findings += _leftovers(its, r, context.places.hosts[r])
    least = min(found.values(), key=lambda its: its.free_bytes)
    room = f"{size(least.free_bytes)} of {size(least.total_bytes)} free"
    return findings or [fine(f"{FOLDER}: {room if least.total_bytes else 'no limit'}")]


def _small(its: ShmFacts, ranks: Sequence[int], host: str) -> list[Finding]:
    fix = (
        "docker: --shm-size=16g or --ipc=host; Apptainer: share the host's; on a host: "
        "mount -o remount,size=50% /dev/shm"
    )
    why = "ranks of a node share weights and messages there: MPI ends with a bus error when it is full"
    if not its.exists:
        return [error(f"{host}: there is no {FOLDER}", why=why, fix=fix, ranks=ranks)]
    # None of any size: a tmpfs without a limit of its own.
    if its.free_bytes >= _FEW_BYTES or not its.total_bytes:
        return []
    say = error if its.free_bytes < _LEAST_BYTES else warning
    what = f"{host}: {FOLDER} has {size(its.free_bytes)} of {size(its.total_bytes)} free"
    return [say(what, why=why, fix=fix, ranks=ranks)]


def _leftovers(its: ShmFacts, first: int, host: str) -> list[Finding]:
    total = sum(num_bytes for _, num_bytes in its.left)
    if not total or total < min(_MANY_BYTES, (its.total_bytes or _MANY_BYTES) // 4):
        return []
    largest = sorted(its.left, key=lambda file: -file[1])
    return [
        warning(
            f"{host}: {len(its.left)} files of yours in {FOLDER} that nobody has open take {size(total)}",
            why="jobs that were killed leave them, and they take memory until the host restarts",
            fix=f"remove them: {some([f'{FOLDER}/{name}' for name, _ in largest], 3)}",
            ranks=[first],
        )
    ]


CHECK = Check(name="shm", gather=gather, judge=judge)
