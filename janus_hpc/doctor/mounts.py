"""Which file system a path is on, by the kernel's table of mounts. Knows nothing of what is done there."""

import os
import re
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
# Seen by several hosts, as their drivers call themselves.
SHARED_KINDS = (
    "nfs",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "panfs",
    "wekafs",
    "cifs",
    "smb",
    "9p",
    "orangefs",
)
# A host's own memory: gone with the host.
MEMORY_KINDS = ("tmpfs", "ramfs")


def file_system_of(path: Path, table: str | None = None) -> str:
    """The kind (`ext4`, `lustre`, ...) of the mount that holds `path`; "" where it cannot be told.

    `table`: the text of a mountinfo file instead of this process's.
    """
    if table is None:
        try:
            table = MOUNTS.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
    real, best, kind = os.path.realpath(path), "", ""
    for line in table.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        if len(fields) < 5 or not right:
            continue
        place = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        holds = real == place or real.startswith(place.rstrip("/") + "/")
        # The last mount on a place hides those before.
        if holds and len(place) >= len(best):
            best, kind = place, right.split()[0]
    return kind


def is_shared_kind(kind: str) -> bool:
    """Whether it is a file system that several hosts usually share."""
    return kind.startswith(SHARED_KINDS)
