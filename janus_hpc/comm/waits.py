"""Bounded waits that give up the core: poll, then yield, then sleep.

Knows neither MPI nor shared memory, only something to poll and how long.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Protocol

from janus_hpc.comm.pulse import Pulse, Waiting
from janus_hpc.errors import CommTimeout

# A gap between two polls that is longer counts as this much: a process that was stopped (by a
# debugger, or a suspended job) has not waited for its peers in that time.
_MAX_GAP_S = 1.0


class Testable(Protocol):
    """What a wait needs of an MPI request."""

    def Test(self) -> bool:
        """Whether the operation is complete; drives MPI's progress."""


@dataclass(frozen=True, kw_only=True)
class WaitPolicy:
    """How to wait: `num_spins` bare polls, then polls with a yield for `yield_s`, then with sleeps.

    A sleep is a twentieth of the time waited so far, within `min_sleep_s` and `max_sleep_s`, so
    that it adds little to any wait. `timeout_s` bounds the whole wait. `pulse` is told of waits that
    come to sleep.
    """

    timeout_s: float = inf
    num_spins: int = 20
    yield_s: float = 1e-3
    min_sleep_s: float = 1e-6
    max_sleep_s: float = 1e-3
    pulse: Pulse | None = None


def make_policy(
    timeout_s: float = inf, *, ranks_per_core: float = 1.0, pulse: Pulse | None = None
) -> WaitPolicy:
    """The policy of a node: where ranks take turns on a core, a waiting one soon sleeps.

    Yielding ranks are scheduled in turn with each other and with whatever else runs there, and so
    keep those that compute from the core; a sleeping one is woken ahead of them.
    """
    if ranks_per_core <= 1:
        return WaitPolicy(timeout_s=timeout_s, pulse=pulse)
    return WaitPolicy(timeout_s=timeout_s, num_spins=2, yield_s=0.1e-3, pulse=pulse)


def shorten_sleeps() -> None:
    """Let this thread's shortest sleeps take some 20 us; Linux adds 50 us unless told not to.

    Where the kernel does not allow it sleeps last a little longer, and nothing else changes.
    """
    with suppress(OSError):
        Path("/proc/self/timerslack_ns").write_text("1000")


def wait_until(
    is_ready: Callable[[], bool], policy: WaitPolicy, describe: Callable[[], Waiting]
) -> None:
    """Return once `is_ready()`; CommTimeout with the text of `describe()` after `timeout_s`."""
    for _ in range(policy.num_spins):
        if is_ready():
            return
    waited_s, last_s = 0.0, time.monotonic()
    pulse = policy.pulse
    while not is_ready():
        if waited_s < policy.yield_s:
            os.sched_yield()
        else:
            if pulse is not None and pulse.wait is None:
                pulse.waits(describe)
            time.sleep(min(max(waited_s / 20, policy.min_sleep_s), policy.max_sleep_s))
        now_s = time.monotonic()
        waited_s += min(now_s - last_s, _MAX_GAP_S)
        last_s = now_s
        if waited_s > policy.timeout_s:
            raise CommTimeout(f"{describe().text}: no answer in {policy.timeout_s:g} s")
    if pulse is not None and pulse.wait is not None:
        pulse.waited()


def wait_request(request: Testable, policy: WaitPolicy, describe: Callable[[], Waiting]) -> None:
    """Return once the MPI request is complete; CommTimeout as in `wait_until`."""
    wait_until(request.Test, policy, describe)
