"""Asking every rank for something when some may not answer: who has not is told, and nobody waits
for ever.

For diagnosis; a run's own waits end the run instead. Knows nothing of what is asked for.
"""

import pickle
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from mpi4py import MPI

from janus_hpc.comm.pulse import Waiting
from janus_hpc.comm.waits import wait_until
from janus_hpc.comm.world import World
from janus_hpc.errors import CommTimeout


class RollCall:
    """Values of all ranks on world rank 0, one question after another."""

    def __init__(self, world: World, timeout_s: float) -> None:
        """Wait at most `timeout_s` for an answer. Collective over the world."""
        self._comm = world.comm.Dup()
        self._policy = world.make_policy(timeout_s)
        self._sent: list[tuple[MPI.Request, bytes]] = []

    def answer(self, question: int, value: object) -> None:
        """Send this rank's value for rank 0 to `collect`; does not wait. Not for rank 0."""
        message = pickle.dumps(value)
        request = self._comm.Isend([message, MPI.BYTE], 0, question)
        # The bytes must outlive the request.
        self._sent.append((request, message))

    def collect(self, question: int, own: object) -> dict[int, Any]:
        """World rank -> value of those that answered in time, its `own` included. For rank 0."""
        found: dict[int, Any] = {0: own}
        with suppress(CommTimeout):
            wait_until(
                partial(self._take, question, found), self._policy, lambda: Waiting("roll call")
            )
        return found

    def _take(self, question: int, found: dict[int, Any]) -> bool:
        """Receive what has come; whether all have answered."""
        status = MPI.Status()
        while (message := self._comm.Improbe(MPI.ANY_SOURCE, question, status)) is not None:
            buffer = bytearray(status.Get_count(MPI.BYTE))
            message.Recv([buffer, MPI.BYTE])
            found[status.Get_source()] = pickle.loads(buffer)
        return len(found) == self._comm.size

    def finish(self) -> None:
        """Let go of what was sent; everything has been collected by then."""
        for request, _ in self._sent:
            request.Wait()
        self._sent.clear()


def private_world(world: World, timeout_s: float) -> World:
    """The same ranks over communicators of their own, with waits of at most `timeout_s`.

    What fails half-way on one of them leaves nothing behind that the world could stumble over.
    Collective over the world.
    """
    world.barrier()
    policy = world.make_policy(timeout_s)
    return replace(world, comm=world.comm.Dup(), node_comm=world.node_comm.Dup(), policy=policy)
