"""What a rank is at: written by the thread that works, read by one that watches.

Plain attributes and no lock: each is set in one go. Knows neither MPI nor what is done with it.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from janus_hpc.watch.spans import NoSpans


class Waiting(NamedTuple):
    """What is waited for, in words, and from which world ranks; () for all of them."""

    text: str
    world_ranks: tuple[int, ...] = ()


class Wait(NamedTuple):
    """A wait under way: what for, found out when it is asked for, and since when (`time.monotonic`)."""

    describe: Callable[[], Waiting]
    since_s: float


class Pulse:
    """`where`: free text, what this rank works on; `count` rises with all that is done; `wait` is None while it
    computes.

    `in_steps`: it is in the steps of a batch, where nothing takes long. `attention_s`, `experts_s`: seconds
    computed as either so far; `num_steps` of the model. `spans`: what it spends its time with.
    """

    def __init__(self) -> None:
        self.where = ""
        self.count = 0
        self.wait: Wait | None = None
        self.in_steps = False
        self.num_steps = 0
        self.attention_s = 0.0
        self.experts_s = 0.0
        self.spans = NoSpans()

    def beat(self, where: str) -> None:
        """The next piece of work begins."""
        self.where = where
        self.count += 1

    def tell(self, attention_s: float, experts_s: float) -> None:
        """A step begins; these are the seconds computed so far."""
        self.num_steps += 1
        self.attention_s, self.experts_s = attention_s, experts_s

    def waits(self, describe: Callable[[], Waiting]) -> None:
        """A wait turns out to be no short one; `waited` ends it."""
        self.wait = Wait(describe, time.monotonic())

    def waited(self) -> None:
        self.wait = None
        self.count += 1

    @contextmanager
    def steps(self) -> Iterator[None]:
        """The block is the steps of a batch."""
        self.in_steps = True
        self.beat("steps")
        try:
            yield
        finally:
            self.in_steps = False
            self.spans.leave_steps()
            self.beat("")
