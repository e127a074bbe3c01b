"""What a rank spends its time with, span by span, in bounded memory: the stuff of a timeline.

Knows names and a steady clock; neither ranks nor what a span means.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol


class Span(NamedTuple):
    """`start_ns` and `end_ns` by `time.perf_counter_ns`; `layer` and `microbatch` are -1 where there is none."""

    name: str
    start_ns: int
    end_ns: int
    layer: int
    microbatch: int


class Ranges(Protocol):
    """Named ranges of another tool's, such as NVTX."""

    def range_push(self, name: str) -> object: ...

    def range_pop(self) -> object: ...


Timed = AbstractContextManager[object, bool | None]


class NoSpans:
    """Records nothing."""

    _nothing: Timed = nullcontext()

    def span(self, name: str, layer: int = -1, microbatch: int = -1) -> Timed:
        return self._nothing

    def next_step(self) -> None:
        """A step begins."""

    def leave_steps(self) -> None:
        """What follows lies outside steps."""


class Spans(NoSpans):
    """Keeps at most `max_spans`: when there are more, every second of the steps kept so far is dropped, and of the
    coming ones as many less are kept. What lies outside steps (loading, borders) is kept up to the same number.

    `ranges` is told of every span as well.
    """

    def __init__(
        self,
        max_spans: int,
        ranges: Ranges | None = None,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self.max_spans = max_spans
        self.ranges = ranges
        self.clock = clock
        self.stride = 1
        self.num_steps = 0
        self._outside: list[Span] = []
        self._steps: dict[int, list[Span]] = {}
        self._num_in_steps = 0
        self._current: list[Span] | None = self._outside

    def span(self, name: str, layer: int = -1, microbatch: int = -1) -> Timed:
        """The block is a span."""
        return _Open(self, name, layer, microbatch)

    def close(self, span: Span) -> None:
        """Keep a span that has ended, if its step is one of those that are kept."""
        if self._current is None:
            return
        if self._current is not self._outside or len(self._outside) < self.max_spans:
            self._current.append(span)

    def next_step(self) -> None:
        self._end_step()
        if self.max_spans and self.num_steps % self.stride == 0:
            self._current = self._steps[self.num_steps] = []
        else:
            self._current = None
        self.num_steps += 1

    def leave_steps(self) -> None:
        self._end_step()
        self._current = self._outside

    def all(self) -> list[Span]:
        """Everything kept, in the order of ends."""
        found = [*self._outside, *(span for its in self._steps.values() for span in its)]
        return sorted(found, key=lambda its: its.end_ns)

    def _end_step(self) -> None:
        current = self._current
        if current is None or current is self._outside:
            return
        self._num_in_steps += len(current)
        while self._num_in_steps > self.max_spans and len(self._steps) > 1:
            self.stride *= 2
            for number in [its for its in self._steps if its % self.stride]:
                self._num_in_steps -= len(self._steps.pop(number))


class _Open:
    """One span under way."""

    __slots__ = ("layer", "microbatch", "name", "spans", "start_ns")

    def __init__(self, spans: Spans, name: str, layer: int, microbatch: int) -> None:
        self.spans = spans
        self.name = name
        self.layer = layer
        self.microbatch = microbatch

    def __enter__(self) -> None:
        if self.spans.ranges is not None:
            self.spans.ranges.range_push(f"{self.name} L{self.layer} m{self.microbatch}")
        self.start_ns = self.spans.clock()

    def __exit__(self, *_: object) -> None:
        end_ns = self.spans.clock()
        if self.spans.ranges is not None:
            self.spans.ranges.range_pop()
        self.spans.close(Span(self.name, self.start_ns, end_ns, self.layer, self.microbatch))
