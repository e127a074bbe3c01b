"""Waiting for weights: every message that comes is a sign of life, however long all of them take."""

from typing import Any

from janus_hpc.comm.pulse import Pulse
from janus_hpc.comm.waits import WaitPolicy
from janus_hpc.engine.carrier import Carrier


class Message:
    """Done after some looks at it."""

    num_bytes = 1

    def __init__(self, num_looks: int) -> None:
        self._num_looks = num_looks

    def is_done(self) -> bool:
        self._num_looks -= 1
        return self._num_looks < 0


def test_messages_that_come_are_told() -> None:
    pulse = Pulse()
    link: Any = None
    carrier = Carrier(0, link, WaitPolicy(timeout_s=60, pulse=pulse))
    messages: Any = [Message(num_looks) for num_looks in (0, 3, 9)]
    carrier.wait(messages, lambda: "weights")
    assert pulse.count >= 3
