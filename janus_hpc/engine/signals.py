"""Signals turned into a flag that travels in step headers, so that all ranks stop at the same step border."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

LOOK_EVERY_S = 0.5


class StopFlag:
    """Set by a signal, whose name it keeps; `on_repeat` is called at the second SIGINT, for users who insist.

    `on_signal` is called at each, between two steps of the interpreter: for a rank that only waits.
    """

    def __init__(self, on_repeat: Callable[[], None]) -> None:
        self.signal_name = ""
        self._on_repeat = on_repeat
        self.on_signal: Callable[[], None] = do_nothing

    def __call__(self) -> bool:
        """Whether a stop was asked for on this rank."""
        return bool(self.signal_name)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal_name == signal.SIGINT.name and number == signal.SIGINT:
            self._on_repeat()
        self.signal_name = signal.Signals(number).name
        self.on_signal()

    @contextmanager
    def installed(self) -> Iterator["StopFlag"]:
        """Handle the stop signals inside the block; the former handlers come back after it."""
        former = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        try:
            yield self
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)


class StopFile:
    """How a rank that takes no part in the steps asks those for a stop that do."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._looked_s = -LOOK_EVERY_S

    def tell(self) -> None:
        """Raises nothing: where the file cannot be made, the signal is noted all the same."""
        with suppress(OSError):
            self._path.touch()

    def told(self) -> bool:
        """Whether anybody told; looked up twice a second at most, since the folder may be far away."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_EVERY_S:
            return False
        self._looked_s = now_s
        return self._path.exists()


def do_nothing() -> None:
    """What a signal does beside being noted, unless something else is asked for."""
