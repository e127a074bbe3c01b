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

    Ranks that take part in the steps tell each other in headers; one that does not tells them by a file.
    """

    def __init__(self, on_repeat: Callable[[], None]) -> None:
        self.signal_name = ""
        self._on_repeat = on_repeat
        self._path: Path | None = None
        self._looked_s = -LOOK_EVERY_S

    def __call__(self) -> bool:
        """Whether a stop was asked for on this rank."""
        return bool(self.signal_name)

    def tell_by(self, path: Path) -> None:
        """From now on a signal to any rank makes this file, which all ranks see."""
        self._path = path
        if self.signal_name:
            self._tell()

    def told_by_any(self) -> bool:
        """Whether the file is there; looked up twice a second at most, since the folder may be far away."""
        now_s = time.monotonic()
        if self._path is None or now_s - self._looked_s < LOOK_EVERY_S:
            return False
        self._looked_s = now_s
        return self._path.exists()

    def _tell(self) -> None:
        """Where the file cannot be made, this rank's own headers still carry the stop."""
        if self._path is not None:
            with suppress(OSError):
                self._path.touch()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal_name == signal.SIGINT.name and number == signal.SIGINT:
            self._on_repeat()
        self.signal_name = signal.Signals(number).name
        self._tell()

    @contextmanager
    def installed(self) -> Iterator["StopFlag"]:
        """Handle the stop signals inside the block; the former handlers come back after it."""
        former = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        try:
            yield self
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
