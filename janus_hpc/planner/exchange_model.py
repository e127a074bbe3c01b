"""How long a layer's dispatch and combine take: the plans of all ranks run on a clock, with measured costs.

Pure: the steps are `comm.plan`'s, their order on a rank that of `comm.staged`. Messages share the links
of their nodes and occupy the processors of both their ranks for a while.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import inf

from janus_hpc.comm.costs import LinkCosts, MemoryCosts
from janus_hpc.comm.plan.build import plan_rank
from janus_hpc.comm.plan.fabric import Fabric, preorder
from janus_hpc.comm.plan.steps import (
    Add,
    AwaitAnswered,
    AwaitGathered,
    Chain,
    Chunk,
    Land,
    Payload,
    Recv,
    Reduce,
    Send,
)
from janus_hpc.planner.event_clock import Clock, Process, Resource, Signal
from janus_hpc.planner.exchange_bytes import ROUTED_META_BYTES
from janus_hpc.planner.shared_links import SharedLinks

_PART_BYTES, _SUM_BYTES = 8, 4


# Layer and microbatch.
Turn = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class RowSizes:
    """Bytes of a token's row, hidden size, and, with the gate on the attention side, rows a token."""

    row_bytes: int
    hidden: int
    top_k: int | None = None


class LayerModel:
    """Layers back to back on all ranks of a fabric. A turn is a microbatch of a layer."""

    def __init__(
        self,
        fabric: Fabric,
        counts: Sequence[Sequence[int]],
        sizes: RowSizes,
        link: LinkCosts,
        memory: MemoryCosts,
        chunk_rows: int | None,
    ) -> None:
        """counts[m][a]: tokens of fabric.attention_ranks[a] in microbatch m."""
        self._fabric, self._sizes, self._link, self._memory = fabric, sizes, link, memory
        ranks = fabric.attention_ranks
        self._tokens = [dict(zip(ranks, its, strict=True)) for its in counts]
        self._plans = [
            {rank: plan_rank(fabric, its, rank, chunk_rows) for rank in fabric.group_of}
            for its in counts
        ]
        self._clock = Clock()
        self._signals: defaultdict[Hashable, Signal] = defaultdict(Signal)
        self._cpus: defaultdict[int, Resource] = defaultdict(Resource)
        self._links = SharedLinks(self._clock, link.node_rate, _lone_rate(link))

    def layer_s(self, num_layers: int = 2) -> float:
        """Seconds of the last one of some layers."""
        ends_s = [[0.0] * num_layers for _ in self._fabric.group_of]
        for its, rank in zip(ends_s, self._fabric.group_of, strict=True):
            self._clock.start(self._rank(rank, its))
        self._clock.run()
        last_s: list[float] = [max(column) for column in zip(*ends_s, strict=True)]
        return last_s[-1] - last_s[-2]

    def _rank(self, rank: int, ends_s: list[float]) -> Process:
        """The calls of one rank, layer after layer."""
        group = self._fabric.group_of[rank]
        gives, answers = rank in group.attention, rank in group.experts
        for layer in range(len(ends_s)):
            turns = [(layer, m) for m in range(len(self._plans))]
            if answers:
                taking = {turn: self._start("take", rank, turn) for turn in turns}
            if gives and not answers:
                for turn in turns:
                    yield from self._give(rank, turn)
            for turn in turns:
                if gives and answers:
                    yield from self._give(rank, turn)
                if answers:
                    yield from self._answer(rank, turn, taking[turn])
                if gives:
                    yield from self._receive(rank, turn)
            if gives:
                ends_s[layer] = self._clock.now_s

    def _give(self, rank: int, turn: Turn) -> Process:
        yield self._copy(rank, self._put_bytes(self._tokens[turn[1]][rank]))
        self._post(("sent", rank, turn))
        for what in ("fetch", "feed"):
            self._signals[what, rank, turn] = self._together(self._start(what, rank, turn))
        if self._plans[turn[1]][rank].feed:
            yield from self._await_all("sent", self._fabric.group_of[rank].attention, turn)

    def _answer(self, rank: int, turn: Turn, taking: list[Signal]) -> Process:
        group, plan = self._fabric.group_of[rank], self._plans[turn[1]][rank]
        yield from self._await_all("sent", group.attention, turn)
        for need in plan.needs_tokens:
            yield self._signals["landed", group.index, need.chunk, need.origin, turn]
        yield from taking
        if self._sizes.top_k is not None:
            num_tokens = sum(self._tokens[turn[1]].values())
            share = 1 / len(self._fabric.expert_ranks)
            yield self._copy(rank, self._routed_bytes(num_tokens) * share)
        self._post(("answered", rank, turn))
        self._start("reply", rank, turn)
        if plan.reply:
            yield from self._await_all("answered", group.experts, turn)

    def _receive(self, rank: int, turn: Turn) -> Process:
        group = self._fabric.group_of[rank]
        yield from self._await_all("answered", group.experts, turn)
        for need in self._plans[turn[1]][rank].needs_sums:
            yield self._signals["landed", group.index, need.chunk, need.origin, turn]
        yield self._signals["fetch", rank, turn]
        yield self._signals["feed", rank, turn]
        num_parts = len(group.experts) + len(self._fabric.trees[group.index][group.index])
        yield self._add(rank, num_parts * self._tokens[turn[1]][rank])

    def _together(self, signals: list[Signal]) -> Signal:
        """When all of them are set."""

        def wait() -> Process:
            yield from signals

        return self._clock.start(wait())

    def _start(self, what: str, rank: int, turn: Turn) -> list[Signal]:
        chains: tuple[Chain, ...] = getattr(self._plans[turn[1]][rank], what)
        return [self._clock.start(self._chain(chain, rank, turn)) for chain in chains]

    def _await_all(self, what: str, ranks: Sequence[int], turn: Turn) -> Process:
        for rank in ranks:
            yield self._signals[what, rank, turn]

    def _chain(self, chain: Chain, rank: int, turn: Turn) -> Process:
        group = self._fabric.group_of[rank]
        leaving = []
        for step in chain:
            match step:
                case AwaitGathered():
                    yield from self._await_all("sent", group.attention, turn)
                case AwaitAnswered():
                    yield from self._await_all("answered", group.experts, turn)
                case Recv(chunk, payload, sender, _):
                    yield self._signals[_message(chunk, payload, sender, rank, turn)]
                    yield self._overhead(sender, rank, self._num_bytes(step, group.index), rank)
                case Land(chunk, origin):
                    self._post(("landed", group.index, chunk, origin, turn))
                case Reduce(chunk):
                    alone = len(group.experts) == 1 and not any(
                        isinstance(its, Recv) for its in chain
                    )
                    if not alone:
                        yield self._add(rank, len(group.experts) * chunk.rows.num_rows)
                case Add(chunk, _):
                    yield self._add(rank, 2 * chunk.rows.num_rows)
                case Send(chunk, payload, receiver, target):
                    num_bytes = self._num_bytes(step, target)
                    yield self._overhead(rank, receiver, num_bytes, rank)
                    arrived = self._move(rank, receiver, num_bytes)
                    key = _message(chunk, payload, rank, receiver, turn)
                    self._clock.start(self._deliver(arrived, key))
                    leaving.append(arrived)
        yield from leaving

    def _deliver(self, arrived: Signal, key: Hashable) -> Process:
        yield arrived
        self._clock.set(self._signals[key])

    # Costs.

    def _move(self, sender: int, receiver: int, num_bytes: float) -> Signal:
        """The signal: a message has come. Inside a node its time is all in the ranks' work."""
        nodes = [self._fabric.group_of[rank].node_id for rank in (sender, receiver)]
        if nodes[0] != nodes[1]:
            return self._links.move((sender, receiver), (nodes[0], nodes[1]), num_bytes)
        arrived = Signal()
        self._clock.set(arrived)
        return arrived

    def _overhead(self, sender: int, receiver: int, num_bytes: float, rank: int) -> float:
        """When a rank has done its half of the work of a message."""
        groups = self._fabric.group_of
        cost_s = self._link.across_busy_s
        if groups[sender].node_id == groups[receiver].node_id:
            cost_s = interpolate(self._link.inside, num_bytes)
        return self._busy(rank, cost_s / 2)

    def _copy(self, rank: int, num_bytes: float) -> float:
        return self._busy(rank, num_bytes / self._memory.copy_rate)

    def _add(self, rank: int, num_rows: int) -> float:
        num_bytes = num_rows * self._sizes.hidden * _PART_BYTES
        return self._busy(rank, num_bytes / self._memory.add_rate)

    def _busy(self, rank: int, duration_s: float) -> float:
        return self._cpus[rank].take(self._clock.now_s, duration_s)[1]

    def _post(self, key: Hashable) -> None:
        """Others see a counter a little later."""
        self._clock.set_at(self._clock.now_s + self._memory.signal_s, self._signals[key])

    # Sizes.

    def _num_bytes(self, step: Send | Recv, group: int) -> float:
        """Bytes of a message; `group` receives it, where it is of tokens."""
        rows, sizes = step.chunk.rows.num_rows, self._sizes
        if step.payload is Payload.PARTS:
            return rows * sizes.hidden * _PART_BYTES
        if step.payload is Payload.SUMS:
            return rows * sizes.hidden * _SUM_BYTES
        if sizes.top_k is None:
            return rows * sizes.row_bytes
        tree = self._fabric.trees[step.chunk.source]
        experts = sum(len(self._fabric.groups[its].experts) for its in preorder(tree, group))
        return self._routed_bytes(rows) * experts / len(self._fabric.expert_ranks)

    def _put_bytes(self, tokens: int) -> float:
        """What an attention rank writes into its group's memory."""
        sizes = self._sizes
        return tokens * sizes.row_bytes if sizes.top_k is None else self._routed_bytes(tokens)

    def _routed_bytes(self, num_tokens: int) -> float:
        """Of tokens whose choices fall evenly on all expert ranks."""
        rows = num_tokens * (self._sizes.top_k or 0)
        return rows * (self._sizes.row_bytes + ROUTED_META_BYTES)


def interpolate(points: Sequence[tuple[int, float]], num_bytes: float) -> float:
    """Seconds of a message of this size, on straight lines between and beyond the measured ones."""
    if not points:
        return 0.0
    if len(points) == 1 or num_bytes <= points[0][0]:
        return points[0][1]
    place = min(bisect_left(points, (num_bytes, 0.0)), len(points) - 1)
    (size, time_s), (next_size, next_s) = points[place - 1], points[place]
    return time_s + (num_bytes - size) * (next_s - time_s) / (next_size - size)


def _lone_rate(link: LinkCosts) -> float:
    """Bytes a second of a large message with nothing else under way, from the two largest ones."""
    if len(link.across) < 2:
        return inf
    (size, time_s), (next_size, next_s) = link.across[-2:]
    return (next_size - size) / (next_s - time_s) if next_s > time_s else next_size / next_s


def _message(chunk: Chunk, payload: Payload, sender: int, receiver: int, turn: Turn) -> Hashable:
    return "message", chunk, payload is Payload.TOKENS, sender, receiver, turn
