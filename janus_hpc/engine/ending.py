"""When a run's steps end: no rows left, a stop that was asked for, or a job whose time is nearly over.

Pure rules over headers and clocks; every rank that applies them to the same headers decides alike.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from janus_hpc.comm.exchange import StepHeader
from janus_hpc.engine.tallies import Tallies

# Of a job's time at its start, the most that is kept for draining.
MAX_DRAIN_SHARE = 0.1


def is_last(headers: Sequence[StepHeader]) -> bool:
    """Whether no step follows these headers: all rows are done, a rank asks to stop, or nothing is in flight and
    nobody takes rows any more.
    """
    if all(its.done for its in headers) or any(its.stop for its in headers):
        return True
    return not any(its.num_tokens or its.want_rows for its in headers)


def drain_after_s(left_s: float, drain_s: float) -> float:
    """After how many seconds to stop in a job that ends in `left_s`: `drain_s` before, but in a short job no more
    than MAX_DRAIN_SHARE of what it has left.
    """
    return left_s - min(drain_s, left_s * MAX_DRAIN_SHARE)


def merge_until_s(left_s: float, drain_s: float) -> float:
    """Until when the results may be merged: half of the time that is kept for draining is for that, the rest for an
    end in order.
    """
    return (left_s + drain_after_s(left_s, drain_s)) / 2


@dataclass(frozen=True)
class Horizon:
    """The time at which this launch stops; `end_s` by `clock`, None where nothing limits it.

    The clock is monotonic: a wall clock that is set anew moves no deadline.
    """

    end_s: float | None
    clock: Callable[[], float] = time.monotonic

    @classmethod
    def after(cls, left_s: float | None) -> "Horizon":
        """So many seconds from now."""
        return cls(None if left_s is None else time.monotonic() + left_s)

    def is_over(self) -> bool:
        return self.end_s is not None and self.clock() >= self.end_s

    def admits(self, tallies: Tallies, tokens_admitted: float) -> bool:
        """Whether a row taken now would end in time, at this rank's rate so far: the mean time of its steps, and
        the mean tokens of its finished answers (`tokens_admitted`, the most that rows may have, before the
        first is finished).
        """
        if self.end_s is None or not tallies.num_decode_steps:
            return not self.is_over()
        expected = tokens_admitted
        if tallies.answers_done:
            expected = tallies.answer_tokens / tallies.answers_done
        step_s = tallies.decode_s / tallies.num_decode_steps
        return self.clock() + expected * step_s < self.end_s


NO_HORIZON = Horizon(None)


def horizons(left_s: float | None, drain_s: float) -> tuple[Horizon, Horizon]:
    """Of answering and of merging, in a job that ends in `left_s`; None where nothing limits it."""
    if left_s is None:
        return NO_HORIZON, NO_HORIZON
    return Horizon.after(drain_after_s(left_s, drain_s)), Horizon.after(
        merge_until_s(left_s, drain_s)
    )
