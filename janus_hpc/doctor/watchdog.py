"""A child process that ends this one when a check takes too long.

Also where a thread could not: MPI_Init holds Python's lock until all processes have come, and a
dead file server holds a process inside a system call. Must be started before MPI and torch.
"""

import os
import select
import signal


class Watchdog:
    """Ends the process `limit_s` after the last `expect`, with a message; `with` ends the watch."""

    def __init__(self, label: str) -> None:
        """`label` names this process in the message."""
        reader, self._pipe = os.pipe()
        process = os.getpid()
        self._child = os.fork()
        if self._child == 0:
            os.close(self._pipe)
            _watch(reader, process, label)
        os.close(reader)

    def expect(self, what: str, limit_s: float) -> None:
        """From now on this process is doing `what`, which takes at most `limit_s`."""
        os.write(self._pipe, f"{limit_s} {what}\n".encode())

    def __enter__(self) -> "Watchdog":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._pipe)
        os.waitpid(self._child, 0)


def _watch(reader: int, process: int, label: str) -> None:
    """The child's whole life; it never returns into the program it was forked from."""
    try:
        # The terminal's and the launcher's signals are the parent's to answer.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        what, limit_s = "starting", None
        while select.select([reader], [], [], limit_s)[0]:
            told = os.read(reader, 1 << 16)
            if not told:
                os._exit(0)
            text, what = told.decode().splitlines()[-1].split(" ", 1)
            limit_s = float(text)
        message = f"janus-hpc doctor: {label}: {what} takes more than {limit_s:g} s; ended\n"
        os.write(2, message.encode())
        os.kill(process, signal.SIGKILL)
    finally:
        os._exit(1)
