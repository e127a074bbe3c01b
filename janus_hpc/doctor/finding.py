"""What a check says: plain values, as they are printed and as `--json` writes them.

Knows no check and no rank's facts.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import TypeVar

import msgspec

_MOST_NAMED = 6
T = TypeVar("T", int, str)


class Level(StrEnum):
    """How bad it is, in ascending order."""

    OK = "ok"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"

    @property
    def badness(self) -> int:
        """0 (ok) to 3 (error)."""
        return list(Level).index(self)


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing found. `check` and `hosts` are filled in by the runner of checks.

    `ranks`: world ranks concerned, ascending; () where it concerns the whole job.
    """

    check: str = ""
    level: Level
    what: str
    why: str = ""
    fix: str = ""
    ranks: tuple[int, ...] = ()
    hosts: tuple[str, ...] = ()


def fine(what: str) -> Finding:
    """Nothing wrong; `what` was seen."""
    return Finding(level=Level.OK, what=what)


def note(what: str, *, why: str = "", fix: str = "", ranks: Iterable[int] = ()) -> Finding:
    """Worth knowing, wrong neither way; also a check that cannot be made here, with the reason."""
    return Finding(level=Level.INFO, what=what, why=why, fix=fix, ranks=tuple(sorted(ranks)))


def warning(what: str, *, why: str, fix: str, ranks: Iterable[int] = ()) -> Finding:
    """A run works, but slower or less safely than it could."""
    return Finding(level=Level.WARNING, what=what, why=why, fix=fix, ranks=tuple(sorted(ranks)))


def error(what: str, *, why: str, fix: str, ranks: Iterable[int] = ()) -> Finding:
    """A run fails, or gives what nobody wants."""
    return Finding(level=Level.ERROR, what=what, why=why, fix=fix, ranks=tuple(sorted(ranks)))


def some(items: Sequence[T], most: int = _MOST_NAMED) -> str:
    """The first few items, separated by commas, and how many more there are."""
    text = ", ".join(map(str, items[:most]))
    return text if len(items) <= most else f"{text} and {len(items) - most} more"


def size(num_bytes: float) -> str:
    """Bytes for people, in powers of 1000."""
    value, units = float(num_bytes), ["bytes", "kB", "MB", "GB", "TB", "PB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.3g} {units[0]}"
