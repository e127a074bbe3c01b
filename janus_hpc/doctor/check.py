"""What a check is: facts gathered on every rank, and findings made of them on rank 0.

Knows no particular check.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from janus_hpc.doctor.context import Context
from janus_hpc.doctor.finding import Finding


class Skip(Exception):
    """Raised by `gather`, on all ranks alike or on one: the check cannot be made here, and why."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """`gather` runs on every rank and returns something that can be pickled.

    `judge` gets the facts of all ranks in rank order, with rank 0's context, and is pure; a check
    without a finding above "ok" gives one that says what was seen. `communicates`: `gather` is
    collective over `context.world`.
    """

    name: str
    gather: Callable[[Context], Any]
    judge: Callable[[Sequence[Any], Context], list[Finding]]
    communicates: bool = False
