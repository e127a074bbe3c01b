"""Who gets which of the pending rows: decided by every rank alike from the step headers, without a message.

Pure; the one rule that spreads rows over attention ranks by the room they announce.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# Ascending indices of rows; an array, since there may be a million.
RowIds = npt.NDArray[np.int64]


def share_rows(wants: Sequence[int], num_available: int) -> list[int]:
    """How many rows each attention rank gets: one at a time in turn, to those that still want, while rows last."""
    counts = [0] * len(wants)
    left = num_available
    while left > 0:
        asking = [i for i, want in enumerate(wants) if counts[i] < want]
        if not asking:
            break
        if len(asking) <= left:
            each = min(*(wants[i] - counts[i] for i in asking), left // len(asking))
            for i in asking:
                counts[i] += each
            left -= each * len(asking)
        else:
            for i in asking[:left]:
                counts[i] += 1
            left = 0
    return counts


class ClaimQueue:
    """The replicated pointer into the pending rows: every rank calls `claim` with the same wants each step."""

    def __init__(self, pending_rows: RowIds, role_rank: int) -> None:
        self.pending_rows = pending_rows
        self.role_rank = role_rank
        self._next = 0

    @property
    def num_left(self) -> int:
        return len(self.pending_rows) - self._next

    def claim(self, wants: Sequence[int]) -> list[int]:
        """Advance past all rows given out this step; returns those of this rank, in input order."""
        counts = share_rows(wants, self.num_left)
        start = self._next + sum(counts[: self.role_rank])
        self._next += sum(counts)
        mine = self.pending_rows[start : start + counts[self.role_rank]]
        return [int(row) for row in mine]
