"""The exchange in groups: rows meet in a group's memory, cross to other groups over a link, and their
sums come back the same way, as the plan says.

Knows the protocol; what lies where is `comm.staged.group_memory`'s, who sends what `comm.plan`'s. T: one
attention rank's tokens in a microbatch, N: all of them, D: hidden size.

Every counter in a group's memory has one writer and only grows. `number` counts a microbatch's
messages, alike on all ranks. sent[m][a]: the last message whose rows attention rank a has put into
its group's memory; landed[m][chunk]: the last one of which a chunk came from another group;
answered[m][e]: the last one expert rank e has answered; returned[m][chunk]: the last one whose sums
came back. A writer stores its data, then a fence, then the counter; a reader sees the counter, then
a fence, then reads. Nothing is overwritten while someone may read it:

* headers, two slots by step parity. A slot is written again two steps later. Whoever opens step
  s + 2 has finished opening s + 1, hence every rank has arrived in s + 1, and a rank arrives there
  only after it has read the headers of s.
* tokens, one slot. Attention rank a writes message k + 1 after `recv_outputs` of k: it has sums of
  all expert ranks, and an expert rank answers k when it has finished with all rows of k. The same
  holds for what is sent on from the slot: sums of k exist only where its tokens have arrived.
* partial sums, one slab an expert rank. It writes k + 1 after `recv_tokens` saw all rows of k + 1,
  and rows of k + 1 come from ranks that have finished with the sums of k.
* sums that came back: those of k + 1 exist only when every rank with rows has sent k + 1.
* In a new step rows move to other places, but every rank opened it after it had finished with the
  step before, and nobody writes before all have opened it, or to memory that others read.

A rank without tokens may run ahead of the others. It writes no rows then, and counters are compared
with "at least"; with the gate on the attention side it waits for the others' counts.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from mpi4py import MPI
from torch import Tensor

from janus_hpc.comm.exchange import (
    HEADER_WORDS,
    RoutedRows,
    Routing,
    StepHeader,
    header_words,
    read_headers,
)
from janus_hpc.comm.header_words import allgather_words
from janus_hpc.comm.layout import Peers, Sizes, StepLayout
from janus_hpc.comm.links.link import Link
from janus_hpc.comm.plan.build import plan_rank
from janus_hpc.comm.plan.fabric import Fabric
from janus_hpc.comm.plan.steps import Chunk, RankPlan, Recv, Send
from janus_hpc.comm.pulse import Waiting
from janus_hpc.comm.staged.cargo import DenseCargo
from janus_hpc.comm.staged.chains import ChainRunner
from janus_hpc.comm.staged.group_memory import GroupMemory
from janus_hpc.comm.staged.places import Places
from janus_hpc.comm.staged.routed_cargo import RoutedCargo
from janus_hpc.comm.staged.turn import Expected, Turn, TurnMaker
from janus_hpc.comm.waits import WaitPolicy, wait_until

_MAX_PLANS = 64


class StagedExchange:
    """Rows and sums by way of the group's memory, and of a link where there are several groups."""

    def __init__(
        self,
        comm: MPI.Intracomm,
        peers: Peers,
        fabric: Fabric,
        sizes: Sizes,
        memory: GroupMemory,
        cargo: DenseCargo | RoutedCargo,
        link: Link | None,
        chunk_rows: int | None,
        policy: WaitPolicy,
        *,
        kind: str,
        why: str,
    ) -> None:
        """`comm`: the active ranks in world order, for headers; taken over, like memory and link."""
        self.kind, self.why, self.gate = kind, why, cargo.gate
        self.bytes_between_nodes = 0
        self._comm, self._peers, self._fabric, self._sizes = comm, peers, fabric, sizes
        self._memory, self._cargo, self._link = memory, cargo, link
        self._lines, self._words = memory.lines, memory.words
        self._chunk_rows, self._policy = chunk_rows, policy
        self._turn_maker = TurnMaker(fabric, peers.world_rank, sizes, memory)
        self._group = self._turn_maker.group
        self._a, self._e = self._turn_maker.attention, self._turn_maker.expert
        active = peers.topology.active_ranks
        assert fabric.attention_ranks == peers.row_order
        self._attention = [active.index(rank) for rank in peers.row_order]
        # Headers are handed out in role order, rows lie in another.
        self._shown = [peers.row_order.index(rank) for rank in peers.topology.attention_ranks]
        self._chains = ChainRunner(self._group.index, sizes.hidden, link, self)
        num_sums = 0 if self._a is None else sizes.max_tokens_per_rank
        self._sums_TD = torch.empty(num_sums, sizes.hidden, dtype=torch.float64)
        self._y_TD = torch.empty(num_sums, sizes.hidden, dtype=torch.float32)
        self._num_steps = 0
        self._num_sent = [0] * sizes.num_microbatches
        self._num_posted = [0] * sizes.num_microbatches
        self._num_taken = [0] * sizes.num_microbatches
        self._num_received = [0] * sizes.num_microbatches
        self._plans: dict[tuple[int, ...], RankPlan] = {}
        self._turns: list[Turn] = []

    def open_step(self, header: StepHeader | None, *, stop: bool = False) -> list[StepHeader]:
        """The headers of all attention ranks. Collective over the active ranks."""
        self._sizes.check(header, self._peers)
        self._drain()
        self._num_steps += 1
        words = self._header_words(header_words(header, stop))
        headers = read_headers(words, self._attention)
        # A step may leave out microbatches, whose receives were then posted for nothing.
        self._num_posted = list(self._num_taken)
        layout = self._layout = StepLayout(headers, self._sizes.num_microbatches)
        places = self._places = Places(self._fabric, self._group, layout)
        self._cargo.open(places, layout)
        self._turns = [
            self._turn_maker.make(self._plan(tuple(counts)), layout, places, m)
            for m, counts in enumerate(layout.counts)
        ]
        return [headers[i] for i in self._shown]

    def send_tokens(
        self, layer: int, microbatch: int, x_TD: Tensor, routing: Routing | None = None
    ) -> None:
        """Put the rows into the group's memory, and start what this rank sends for the group."""
        turn, lines = self._turns[microbatch], self._lines
        assert self._a is not None and x_TD.dtype == self._sizes.row_dtype, f"{x_TD.dtype=}"
        assert x_TD.shape == (turn.num_own, self._sizes.hidden), f"{x_TD.shape=} {turn.num_own=}"
        self._num_sent[microbatch] += 1
        number, where = self._num_sent[microbatch], (layer, microbatch)
        counted, sent = lines.counted[microbatch][self._a], lines.sent[microbatch][self._a]

        def await_counts() -> None:
            self._post(counted, number)
            self._await(turn.counted, number, "routing", where)

        self._cargo.put(layer, microbatch, self._a, x_TD, routing, await_counts)
        self._post(sent, number)
        self._chains.start(turn.plan.fetch, microbatch, number)
        if turn.plan.feed:
            self._chains.start(turn.plan.feed, microbatch, number)
            # Messages leave now rather than when this rank comes back from its computing.
            self._await(turn.gathered, number, "tokens", where)

    def recv_tokens(self, layer: int, microbatch: int) -> tuple[Tensor, list[int]]:
        """Wait for all attention ranks; the rows are read in the group's memory itself."""
        self._take(layer, microbatch)
        return self._cargo.rows(microbatch), list(self._layout.counts[microbatch])

    def recv_routed(self, layer: int, microbatch: int) -> RoutedRows:
        """Wait for all attention ranks; the rows are copied from their frames."""
        self._take(layer, microbatch)
        assert self._e is not None
        return self._cargo.routed(layer, microbatch, self._e)

    def num_rows(self, microbatch: int) -> int:
        """N."""
        return self._layout.totals[microbatch]

    def output_buffer(self, layer: int, microbatch: int, num_rows: int) -> Tensor:
        """This expert rank's slab of the group's memory; not zeroed."""
        slab_ND = self._turns[microbatch].slab_ND
        assert slab_ND is not None and num_rows == slab_ND.shape[0], f"{num_rows=}"
        return slab_ND

    def send_outputs(self, layer: int, microbatch: int, y_ND: Tensor) -> None:
        """Say that the sums are in the slab, and start what this rank returns for the group."""
        turn, number = self._turns[microbatch], self._num_taken[microbatch]
        assert self._e is not None and turn.slab_ND is not None
        assert y_ND.dtype == torch.float64 and y_ND.shape == turn.slab_ND.shape, f"{y_ND.shape=}"
        if y_ND.data_ptr() != turn.slab_ND.data_ptr():
            turn.slab_ND.copy_(y_ND)
        self._post(self._lines.answered[microbatch][self._e], number)
        if turn.plan.reply:
            self._chains.start(turn.plan.reply, microbatch, number)
            self._await(turn.answered, number, "partial sums", (layer, microbatch))

    def recv_outputs(self, layer: int, microbatch: int) -> Tensor:
        """Wait for all expert ranks, add up and round."""
        turn = self._turns[microbatch]
        self._num_received[microbatch] += 1
        number = self._num_received[microbatch]
        ended = partial(self._chains.is_idle, microbatch, only_takes=False)
        self._await(turn.outputs, number, "outputs", (layer, microbatch), ended)
        return self._add_up(turn)

    def settle(self) -> None:
        """Wait until every message of this rank has left or come."""
        self._drain()

    def free(self) -> None:
        """Give up memory and link. Collective over the active ranks."""
        self._drain()
        self._words = memoryview(b"")
        self._turns.clear()
        self._memory.free(self._policy)
        if self._link is not None:
            self._link.free()
        # Chains and this object hold each other: what is large must not wait for the collector.
        self._chains.free()
        self._link = None
        del self._sums_TD, self._y_TD
        self._comm.Free()

    # What the chains ask for.

    def is_gathered(self, chunk: Chunk, microbatch: int, number: int) -> bool:
        """See `Surroundings`. Frames need all ranks of the group, rows those that have some."""
        routed, words = self.gate == "agate", self._words
        expected = self._turns[microbatch].gathered
        return all(words[its.line] >= number for its in expected if routed or its.num_bytes)

    def is_answered(self, microbatch: int, number: int) -> bool:
        """See `Surroundings`."""
        words = self._words
        return all(words[line] >= number for line in self._lines.answered[microbatch])

    def land(self, chunk: Chunk, origin: int, microbatch: int, number: int) -> None:
        """See `Surroundings`."""
        if chunk.source == self._group.index:
            self._post(self._lines.returned[microbatch][origin, chunk.index], number)
        else:
            self._post(self._lines.landed[microbatch][chunk.source, chunk.index], number)

    def tokens_to_send(self, step: Send, microbatch: int) -> Tensor:
        """See `Surroundings`."""
        self._memory.fence()
        return self._cargo.part(step, microbatch)

    def tokens_to_fill(self, step: Recv, microbatch: int) -> Tensor:
        """See `Surroundings`."""
        return self._cargo.part(step, microbatch)

    def sums_to_fill(self, step: Recv, microbatch: int) -> Tensor:
        """See `Surroundings`."""
        rows = self._places.back(step.chunk.rows, microbatch)
        area_ND = self._turn_maker.returned(step.origin, step.payload)
        return area_ND[rows].view(-1).view(torch.uint8)

    def partial_sums(self, chunk: Chunk, microbatch: int) -> Tensor:
        """See `Surroundings`."""
        self._memory.fence()
        return self._memory.y_END[:, self._places.all(chunk.rows, microbatch)]

    def count_sent(self, world_rank: int, num_bytes: int) -> None:
        """See `Surroundings`."""
        if not self._peers.topology.same_node((self._peers.world_rank, world_rank)):
            self.bytes_between_nodes += num_bytes

    # The rest is this class's own.

    def _plan(self, counts: tuple[int, ...]) -> RankPlan:
        """Steps of equal sizes have one plan; the few last ones are kept."""
        if counts not in self._plans:
            if len(self._plans) > _MAX_PLANS:
                self._plans.clear()
            me = self._peers.world_rank
            self._plans[counts] = plan_rank(self._fabric, counts, me, self._chunk_rows)
        return self._plans[counts]

    def _take(self, layer: int, microbatch: int) -> None:
        """Wait until a microbatch's tokens are here and what is passed on has left.

        The receives of the layer's other microbatches are posted, too, ahead of their tokens.
        """
        for m in range(microbatch, self._sizes.num_microbatches):
            if self._num_posted[m] == self._num_taken[m]:
                self._num_posted[m] += 1
                self._chains.start(self._turns[m].plan.take, m, self._num_posted[m])
        self._num_taken[microbatch] += 1
        turn, number = self._turns[microbatch], self._num_taken[microbatch]
        taken = partial(self._chains.is_idle, microbatch, only_takes=True)
        self._await(turn.tokens, number, "tokens", (layer, microbatch), taken)

    def _add_up(self, turn: Turn) -> Tensor:
        """y_TD of own rows from the group's expert ranks and from other groups."""
        parts_PTD = turn.parts_PTD
        y_TD = self._y_TD[turn.first_own : turn.first_own + turn.num_own]
        if len(parts_PTD) <= 1:
            return y_TD.copy_(parts_PTD[0]) if parts_PTD else y_TD
        sums_TD = torch.add(parts_PTD[0], parts_PTD[1], out=self._sums_TD[: turn.num_own])
        for part_TD in parts_PTD[2:]:
            sums_TD.add_(part_TD)
        return y_TD.copy_(sums_TD)

    def _header_words(self, mine: list[int]) -> list[list[int]]:
        """All ranks' header words: by way of memory that all share, else by MPI."""
        active = self._peers.topology.active_ranks
        if self._link is not None:
            link = self._link
            return allgather_words(self._comm, mine, self._peers, self._policy, link.progress)
        me = active.index(self._peers.world_rank)
        slots = self._lines.header_words[self._num_steps % 2]
        self._memory.write_words(slots[me], mine)
        self._post(self._lines.arrived[me], self._num_steps)
        arrived = zip(self._lines.arrived, active, strict=True)
        expected = [Expected(line, rank, 8 * HEADER_WORDS) for line, rank in arrived]
        self._await(expected, self._num_steps, "the headers of a step", None)
        return [self._memory.read_words(slot, HEADER_WORDS) for slot in slots]

    def _post(self, line: int, number: int) -> None:
        """Publish what this rank has stored: its counter follows its data."""
        self._memory.fence()
        self._words[line] = number

    def _await(
        self,
        expected: Sequence[Expected],
        number: int,
        what: str,
        where: tuple[int, int] | None,
        is_idle: Callable[[], bool] | None = None,
    ) -> None:
        """Wait until all counters have reached `number`, and until those chains of this rank have
        ended that `is_idle` looks at; `where` is layer and microbatch.
        """
        words, chains = self._words, self._chains

        def is_ready() -> bool:
            if chains.running:
                chains.progress()
                if is_idle is not None and not is_idle():
                    return False
            return all(words[its[0]] >= number for its in expected)

        def describe() -> Waiting:
            return self._waiting(expected, number, what, where)

        wait_until(is_ready, self._policy, describe)
        self._memory.fence()

    def _drain(self) -> None:
        """Wait until every message of this rank has left or come."""

        def is_ready() -> bool:
            self._chains.progress()
            return not self._chains.running

        wait_until(is_ready, self._policy, lambda: self._waiting([], 0, "messages", None))

    def _waiting(
        self, expected: Sequence[Expected], number: int, what: str, where: tuple[int, int] | None
    ) -> Waiting:
        """Who waits for whom and for how many bytes, for a message."""
        if where is not None:
            what += f" of layer {where[0]}, microbatch {where[1]}"
        late = [its for its in expected if self._words[its.line] < number]
        num_bytes, num_late = (sum(e.num_bytes for e in its) for its in (expected, late))
        under_way = self._chains.under_way()
        ranks = dict.fromkeys([its.world_rank for its in late] + [rank for rank, _ in under_way])
        waiting = self._peers.waiting(what, ranks)
        text = f"{waiting.text} ({num_bytes} bytes expected, "
        text += f"{num_bytes - num_late} received)"
        if under_way:
            sizes = sum(transfer.num_bytes for _, transfer in under_way)
            text += f"; {len(under_way)} messages of {sizes} bytes are under way"
        return Waiting(text, waiting.world_ranks)
