"""A small discrete-event clock: processes that wait for times and for signals, and resources used in order.

Pure; knows nothing of what is simulated. Times are seconds from 0.
"""

import heapq
from collections.abc import Callable, Generator
from itertools import count


class Signal:
    """Something that happens once."""

    def __init__(self) -> None:
        self.is_set = False
        self.waiting: list[Callable[[], None]] = []


# A process yields the time it sleeps until, or the signal it waits for.
Process = Generator[float | Signal, None, None]


class Clock:
    """Runs processes in the order of their times, and of their starts where times are equal."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def at(self, time_s: float, action: Callable[[], None]) -> None:
        """Do it then."""
        heapq.heappush(self._queue, (time_s, next(self._order), action))

    def start(self, process: Process) -> Signal:
        """Begin a process now; the signal is set when it has ended."""
        ended = Signal()
        self._go_on(process, ended)
        return ended

    def set(self, signal: Signal) -> None:
        """It happens now."""
        signal.is_set = True
        for action in signal.waiting:
            self.at(self.now_s, action)
        signal.waiting.clear()

    def set_at(self, time_s: float, signal: Signal) -> None:
        """It will happen then."""
        self.at(time_s, lambda: self.set(signal))

    def run(self) -> None:
        """Until nothing is left to happen."""
        while self._queue:
            self.now_s, _, action = heapq.heappop(self._queue)
            action()

    def _go_on(self, process: Process, ended: Signal) -> None:
        for wanted in process:
            if isinstance(wanted, Signal):
                if not wanted.is_set:
                    wanted.waiting.append(lambda: self._go_on(process, ended))
                    return
            elif wanted > self.now_s:
                self.at(wanted, lambda: self._go_on(process, ended))
                return
        self.set(ended)


class Resource:
    """Something that one user at a time has, in the order they ask."""

    def __init__(self) -> None:
        self._free_s = 0.0

    def take(self, now_s: float, duration_s: float) -> tuple[float, float]:
        """(start, end) of the next turn."""
        start_s = max(now_s, self._free_s)
        self._free_s = start_s + duration_s
        return start_s, self._free_s
