"""Brings ranks to one start before each timed piece of work, and says how long the slowest of a node took.

Knows nothing of what is computed.
"""

import statistics
import time
from collections.abc import Sequence

import torch

from janus_hpc.comm.objects import barrier
from janus_hpc.comm.waits import WaitPolicy
from janus_hpc.comm.world import World

# More than the caches that cores share.
MOST_SWEPT = 64 << 20
NUM_EMPTY = 20
# A rank's node, and when its pieces began and ended.
_Marks = tuple[int, list[float], list[float]]


def usual_s(seconds: Sequence[float]) -> float:
    """The lower quartile: what else goes on only makes a piece longer."""
    return sorted(seconds)[len(seconds) // 4]


class Pace:
    """All ranks of the world call `begin` equally often; those that compute call `end` after each piece.

    Those that do not compute wait as the ranks of the other role do in a run, which costs what it costs there.
    `swept_bytes` of each node's memory are read before a piece: what the other role would have read.
    """

    def __init__(
        self, world: World, policy: WaitPolicy, device: torch.device, swept_bytes: int = 0
    ) -> None:
        self._world, self._policy, self._device = world, policy, device
        self._apart_s = 0.0
        self._begins_s: list[float] = []
        self._ends_s: list[float] = []
        num_swept = min(swept_bytes, MOST_SWEPT) // world.num_local // 4
        self._swept = torch.ones(num_swept if device.type == "cpu" else 0)

    def begin(self) -> None:
        """Collective over the world."""
        barrier(self._world.comm, self._policy)
        if self._swept.numel():
            self._swept.sum()
            barrier(self._world.comm, self._policy)
        self._begins_s.append(time.perf_counter())

    def end(self) -> None:
        """The piece is done on this rank."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._ends_s.append(time.perf_counter())

    def calibrate(self, takes_part: bool) -> None:
        """Learn how far apart ranks begin that have nothing to compute. Collective over the world."""
        for _ in range(NUM_EMPTY):
            self.begin()
        begins = self._begins_of_nodes(takes_part)
        self._begins_s = []
        apart = [
            statistics.median(max(its) - min(its) for its in zip(*of_ranks, strict=True))
            for of_ranks in begins
        ]
        self._apart_s = max(apart)

    def take_s(self) -> list[float]:
        """Seconds of each piece since the last call, on the slowest node. Collective over the world.

        From when the first rank of a node began until the last ended, since ranks may take turns on cores; less
        what they begin apart anyway, which an exchange takes too; at least what the slowest rank took.
        """
        mine = (self._world.node_id, self._begins_s, self._ends_s)
        of_ranks = [its for its in self._world.allgather(mine) if its[2]]
        self._begins_s, self._ends_s = [], []
        return [
            max(self._piece_s(of_ranks, node, number) for node in {its[0] for its in of_ranks})
            for number in range(len(of_ranks[0][2]))
        ]

    def _piece_s(self, of_ranks: Sequence[_Marks], node: int, number: int) -> float:
        spans = [(begins[number], ends[number]) for its, begins, ends in of_ranks if its == node]
        whole_s = max(end for _, end in spans) - min(begin for begin, _ in spans)
        return max(whole_s - self._apart_s, *(end - begin for begin, end in spans))

    def _begins_of_nodes(self, takes_part: bool) -> list[list[list[float]]]:
        mine = (self._world.node_id, self._begins_s if takes_part else [])
        of_ranks = [its for its in self._world.allgather(mine) if its[1]]
        return [
            [begins for its, begins in of_ranks if its == node]
            for node in {its for its, _ in of_ranks}
        ]
