"""Measures what moving bytes costs on the ranks of a world: over a link, and in memory.

Knows links and shared memory, no exchange; what follows from the figures is the planner's.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from mpi4py import MPI

from janus_hpc.comm.costs import ExchangeCosts, LinkCosts, MemoryCosts
from janus_hpc.comm.links.link import Link, Transfer
from janus_hpc.comm.links.make import make_link
from janus_hpc.comm.pulse import Waiting
from janus_hpc.comm.shm_memory import SharedMemory
from janus_hpc.comm.waits import WaitPolicy, wait_until
from janus_hpc.comm.world import World

_TAG = 1
_SMALL = 1024


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much to measure: message sizes with round trips of each, and rounds of bulk messages."""

    sizes: Sequence[tuple[int, int]]
    num_small: int
    num_rounds: int
    num_bulk: int
    bulk_bytes: int
    memory_bytes: int


FULL = Effort(
    sizes=[(_SMALL << i, 40 if i < 8 else 8) for i in range(13)],
    num_small=200,
    num_rounds=7,
    num_bulk=16,
    bulk_bytes=1 << 18,
    memory_bytes=1 << 23,
)
# About a second where a node sends 1 Gbit/s.
QUICK = Effort(
    sizes=[(_SMALL, 30), (1 << 14, 20), (1 << 16, 10), (1 << 18, 5), (1 << 20, 3)],
    num_small=50,
    num_rounds=4,
    num_bulk=8,
    bulk_bytes=1 << 18,
    memory_bytes=1 << 22,
)


def measure_costs(
    world: World,
    inters: Sequence[str] = ("auto",),
    *,
    effort: Effort,
    timeout_s: float = 60.0,
    ucx_settings: Mapping[str, str] | None = None,
) -> ExchangeCosts:
    """Costs on all ranks of the world, alike on every rank. Collective over the world.

    `inters`: links as `make_link` takes them, like `ucx_settings`; each comes under its real name.
    Errors as there.
    """
    policy = world.make_policy(timeout_s)
    links = {}
    for inter in inters:
        ranks = range(world.world_size)
        link = make_link(world.comm, ranks, inter, policy=policy, user_settings=ucx_settings)
        links[link.name] = _Meter(world, link, policy, effort).costs()
        link.free()
    return ExchangeCosts(links=links, memory=_memory_costs(world, policy, effort))


@dataclass(frozen=True, kw_only=True)
class PairTimes:
    """One way seconds: pair of world ranks -> message size -> time. `link` and `detail` as of a link."""

    link: str
    detail: str
    times: dict[tuple[int, int], dict[int, float]]


def measure_pairs(
    world: World,
    inter: str,
    rounds: Sequence[Sequence[tuple[int, int]]],
    sizes: Sequence[tuple[int, int]],
    *,
    ucx_settings: Mapping[str, str] | None = None,
) -> PairTimes:
    """Times of pairs, round after round, alike on every rank; the pairs of a round go at once.

    `sizes`: message sizes with round trips of each. Waits are the world's. Errors as `make_link`.
    Collective over the world.
    """
    ranks = range(world.world_size)
    link = make_link(world.comm, ranks, inter, policy=world.policy, user_settings=ucx_settings)
    meter = _Meter(world, link, world.policy, replace(QUICK, sizes=sizes, bulk_bytes=0))
    times: dict[tuple[int, int], dict[int, float]] = {pair: {} for its in rounds for pair in its}
    for pairs in rounds:
        for size, repeats in sizes:
            for pair, time_s in meter.pair_times_s(pairs, size, repeats).items():
                times[pair][size] = time_s
    link.free()
    return PairTimes(link=link.name, detail=link.detail, times=times)


class _Meter:
    """One rank's part in measuring a link. Its methods are collective over the world."""

    def __init__(self, world: World, link: Link, policy: WaitPolicy, effort: Effort) -> None:
        self._world, self._link, self._policy, self._effort = world, link, policy, effort
        nodes = sorted(set(world.node_ids))
        self._ranks_of = [
            [rank for rank, node in enumerate(world.node_ids) if node == its] for its in nodes
        ]
        most = max([effort.bulk_bytes, *(size for size, _ in effort.sizes)])
        self._out_B = torch.zeros(most, dtype=torch.uint8)
        self._in_B = torch.zeros(most, dtype=torch.uint8)

    def costs(self) -> LinkCosts:
        across: tuple[tuple[int, float], ...] = ()
        busy_s, rate = 0.0, 0.0
        if len(self._ranks_of) > 1:
            across = self._table([(self._ranks_of[0][0], self._ranks_of[1][0])])
            busy_s = self._one_way_s(self._pairs_across(), _SMALL, self._effort.num_small)
            rate = self._node_rate()
        return LinkCosts(
            across=across,
            across_busy_s=busy_s,
            node_rate=rate,
            inside=self._table(_pairs_inside(self._ranks_of)),
        )

    def _table(self, pairs: list[tuple[int, int]]) -> tuple[tuple[int, float], ...]:
        if not pairs:
            return ()
        sizes = self._effort.sizes
        return tuple((size, self._one_way_s(pairs, size, repeats)) for size, repeats in sizes)

    def _pairs_across(self) -> list[tuple[int, int]]:
        """Ranks of nodes 0 and 1, of nodes 2 and 3, and so on."""
        evens, odds = self._ranks_of[0::2], self._ranks_of[1::2]
        return [
            pair
            for these, those in zip(evens, odds, strict=False)
            for pair in zip(these, those, strict=False)
        ]

    def _one_way_s(self, pairs: list[tuple[int, int]], num_bytes: int, repeats: int) -> float:
        """The median over pairs, which all go at once."""
        return statistics.median(self.pair_times_s(pairs, num_bytes, repeats).values())

    def pair_times_s(
        self, pairs: Sequence[tuple[int, int]], num_bytes: int, repeats: int
    ) -> dict[tuple[int, int], float]:
        """Half the median round trip of each pair; all go at once, and no rank is in two of them."""
        me, times_s = self._world.world_rank, []
        peer = next((b if me == a else a for a, b in pairs if me in (a, b)), None)
        self._world.barrier()
        for _ in range(repeats + 1 if peer is not None else 0):
            assert peer is not None
            started_s = time.perf_counter()
            steps = [self._send, self._recv] if (me, peer) in pairs else [self._recv, self._send]
            for step in steps:
                self._wait([step(peer, num_bytes)])
            times_s.append(time.perf_counter() - started_s)
        # The first one may connect.
        mine = statistics.median(times_s[1:]) / 2 if times_s and (me, peer) in pairs else None
        found = self._world.allgather(mine)
        return {(a, b): found[a] for a, b in pairs}

    def _node_rate(self) -> float:
        """All ranks of a node send to those of its neighbour, then the other way."""
        forth = self._pairs_across()
        senders = [self._world.node_ids[a] for a, _ in forth]
        most = max(senders.count(node) for node in senders)
        elapsed_s = self._bulk_s(forth) + self._bulk_s([(b, a) for a, b in forth])
        return 2 * most * self._effort.num_bulk * self._effort.bulk_bytes / elapsed_s

    def _bulk_s(self, pairs: list[tuple[int, int]]) -> float:
        """Seconds until all bulk messages have come: the lower quartile of the rounds.

        What else goes on makes rounds longer; that ranks do not start at quite one time makes a few
        seem shorter.
        """
        world, effort, times_s = self._world, self._effort, []
        peers = [(self._send, b) for a, b in pairs if a == world.world_rank]
        peers += [(self._recv, a) for a, b in pairs if b == world.world_rank]
        for _ in range(effort.num_rounds + 1):
            world.barrier()
            started_s = time.perf_counter()
            self._wait([step(peer, effort.bulk_bytes) for step, peer in peers * effort.num_bulk])
            times_s.append(time.perf_counter() - started_s)
        slowest_s: list[float] = sorted(map(max, zip(*world.allgather(times_s[1:]), strict=True)))
        return slowest_s[len(slowest_s) // 4]

    def _send(self, peer: int, num_bytes: int) -> Transfer:
        return self._link.send(peer, _TAG, self._out_B[:num_bytes])

    def _recv(self, peer: int, num_bytes: int) -> Transfer:
        return self._link.recv(peer, _TAG, self._in_B[:num_bytes])

    def _wait(self, transfers: list[Transfer]) -> None:
        link = self._link

        def is_ready() -> bool:
            link.progress()
            while transfers and transfers[-1].is_done():
                transfers.pop()
            return not transfers

        wait_until(
            is_ready,
            self._policy,
            lambda: Waiting(f"{self._world.label} measures link {link.name}"),
        )


def _pairs_inside(ranks_of: list[list[int]]) -> list[tuple[int, int]]:
    """Neighbours of each node."""
    return [pair for its in ranks_of for pair in zip(its[0::2], its[1::2], strict=False)]


def _memory_costs(world: World, policy: WaitPolicy, effort: Effort) -> MemoryCosts:
    """The slowest rank's rates: all wait for it."""
    numel = effort.memory_bytes // 8
    parts = torch.ones(2, numel, dtype=torch.float64)
    total = torch.zeros(numel, dtype=torch.float64)
    copies, sums = [], []
    for _ in range(effort.num_rounds + 1):
        world.barrier()
        started_s = time.perf_counter()
        total.copy_(parts[0])
        copied_s = time.perf_counter()
        torch.sum(parts, dim=0, out=total)
        sums.append(time.perf_counter() - copied_s)
        copies.append(copied_s - started_s)
    mine = statistics.median(copies[1:]), statistics.median(sums[1:])
    copy_s, sum_s = map(max, zip(*world.allgather(mine), strict=True))
    return MemoryCosts(
        copy_rate=effort.memory_bytes / copy_s,
        add_rate=2 * effort.memory_bytes / sum_s,
        signal_s=_signal_s(world, policy, effort.num_small),
    )


def _signal_s(world: World, policy: WaitPolicy, repeats: int) -> float:
    """Half a round trip through two counters of the first two ranks of each node; 0 without any."""
    comm = world.node_comm.Dup()
    assert isinstance(comm, MPI.Intracomm)
    shared = SharedMemory(comm, 128)
    words = shared.memory.cast("B").cast("q")
    mine, theirs = (0, 8) if world.local_rank == 0 else (8, 0)

    def describe() -> Waiting:
        return Waiting(f"{world.label} waits for a counter")

    world.barrier()
    started_s = time.perf_counter()
    takes_part = world.num_local > 1 and world.local_rank < 2
    for number in range(1, repeats + 1 if takes_part else 0):
        if world.local_rank == 0:
            words[mine] = number
        wait_until(partial(_has_come, words, theirs, number), policy, describe)
        shared.fence()
        words[mine] = number
    elapsed_s = time.perf_counter() - started_s if takes_part else 0.0
    found = [its for its in world.allgather(elapsed_s) if its]
    words.release()
    shared.free(policy)
    return max(found, default=0.0) / 2 / repeats


def _has_come(words: memoryview, place: int, number: int) -> bool:
    return bool(words[place] >= number)
