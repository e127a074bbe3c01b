"""Whether a run stands still, judged from all ranks' heartbeats as one rank sees them over time.

Pure: heartbeats and a clock in, a verdict out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from janus_hpc.watch.beat import Beat


@dataclass(frozen=True, kw_only=True)
class Stall:
    """All ranks at the moment a stall was found; `silent` are those without a heartbeat."""

    beats: Mapping[int, Beat]
    silent: frozenset[int]
    quiet_s: float

    @property
    def reporter(self) -> int:
        """Which rank is to tell: the lowest that has a heartbeat."""
        alive = [rank for rank in self.beats if rank not in self.silent]
        return min(alive, default=min(self.beats))


class Observer:
    """Looks at the heartbeats again and again; a rank that beats no more for `limit_s` is silent.

    A stall: for `limit_s` no rank has done anything, and each waits or is in the steps of a batch, where nothing
    takes that long. A rank that computes outside of steps (it loads, or writes results) keeps others waiting
    rightly; but for `limit_s` more only, where a rank is silent: that one may be gone, and MPI may wait for it
    inside a call that looks like work.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._seen: dict[int, tuple[int, int]] = {}
        self._number_since_s: dict[int, float] = {}
        self._count_since_s: dict[int, float] = {}

    def look(self, beats: Mapping[int, Beat], now_s: float) -> Stall | None:
        """`now_s` by a monotonic clock; the time between two looks that are far apart does not count."""
        for rank, beat in beats.items():
            number, count = self._seen.get(rank, (-1, -1))
            if beat.number != number:
                self._number_since_s[rank] = now_s
            if beat.count != count:
                self._count_since_s[rank] = now_s
            self._seen[rank] = (beat.number, beat.count)
        quiet_s = min((now_s - self._count_since_s[rank] for rank in beats), default=0.0)
        silent = frozenset(
            rank for rank in beats if now_s - self._number_since_s[rank] >= self.limit_s
        )
        if quiet_s < self.limit_s:
            return None
        # A rank that loads or merges may only be unable to write its heartbeat.
        stuck = all(beat.waiting or beat.in_steps for beat in beats.values())
        stuck |= bool(silent) and quiet_s >= 2 * self.limit_s
        return Stall(beats=dict(beats), silent=silent, quiet_s=quiet_s) if stuck else None
