"""The exchange in groups: rows meet in a group's memory, cross to other groups over a link, and their
sums come back the same way, as the plan says.

Knows the protocol; what lies where is `comm.group_memory`'s, who sends what `comm.plan`'s. T: one
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

A rank without tokens may run ahead of the others. It writes nothing then, and counters are compared
with "at least".
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from mpi4py import MPI
from torch import Tensor

from janus_hpc.comm.cargo import DenseCargo
from janus_hpc.comm.chains import ChainRunner
from janus_hpc.comm.exchange import (
    HEADER_WORDS,
    RoutedRows,
    Routing,
    StepHeader,
    header_words,
    read_headers,
)
from janus_hpc.comm.group_memory import GroupMemory, Lines
from janus_hpc.comm.header_words import allgather_words
from janus_hpc.comm.layout import Peers, Sizes, StepLayout
from janus_hpc.comm.links.link import Link
from janus_hpc.comm.places import Places
from janus_hpc.comm.plan.build import plan_rank
from janus_hpc.comm.plan.fabric import Fabric
from janus_hpc.comm.plan.steps import Chunk, Need, Payload, RankPlan, Recv, Rows, Send
from janus_hpc.comm.routed_cargo import RoutedCargo
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
        self._chunk_rows, self._policy = chunk_rows, policy
        self._group = fabric.group_of[peers.world_rank]
        self._a = _place(self._group.attention, peers.world_rank)
        self._e = _place(self._group.experts, peers.world_rank)
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

    def open_step(self, header: StepHeader | None, *, stop: bool = False) -> list[StepHeader]:
        """The headers of all attention ranks. Collective over the active ranks."""
        self._sizes.check(header, self._peers)
        self._drain()
        self._num_steps += 1
        words = self._header_words(header_words(header, stop))
        headers = read_headers(words, self._attention)
        self._layout = StepLayout(headers, self._sizes.num_microbatches)
        self._places = Places(self._fabric, self._group, self._layout)
        self._cargo.open(self._places, self._layout)
        self._step_plans = [self._plan(tuple(counts)) for counts in self._layout.counts]
        return [headers[i] for i in self._shown]

    def send_tokens(
        self, layer: int, microbatch: int, x_TD: Tensor, routing: Routing | None = None
    ) -> None:
        """Put the rows into the group's memory, and start what this rank sends for the group."""
        assert self._a is not None and x_TD.dtype == self._sizes.row_dtype, f"{x_TD.dtype=}"
        rows = self._places.own[microbatch][self._a]
        assert x_TD.shape == (rows.num_rows, self._sizes.hidden), f"{x_TD.shape=} {rows=}"
        self._num_sent[microbatch] += 1
        number, where = self._num_sent[microbatch], (layer, microbatch)
        sent, counted = self._lines.sent[microbatch], self._lines.counted[microbatch]

        def await_counts() -> None:
            self._post(counted[self._a or 0], number)
            self._await(self._own_attention(counted, microbatch), number, "routing", where)

        self._cargo.put(layer, microbatch, self._a, x_TD, routing, await_counts)
        self._post(sent[self._a], number)
        plan = self._step_plans[microbatch]
        self._chains.start(plan.fetch + plan.feed, microbatch, number)
        if plan.feed:
            # Messages leave now rather than when this rank comes back from its computing.
            self._await(self._own_attention(sent, microbatch), number, "tokens", where)

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
        assert self._e is not None and num_rows == self._layout.totals[microbatch], f"{num_rows=}"
        return self._slab(microbatch)

    def send_outputs(self, layer: int, microbatch: int, y_ND: Tensor) -> None:
        """Say that the sums are in the slab, and start what this rank returns for the group."""
        slab_ND = self._slab(microbatch)
        assert y_ND.dtype == torch.float64 and y_ND.shape == slab_ND.shape, f"{y_ND.shape=}"
        if y_ND.data_ptr() != slab_ND.data_ptr():
            slab_ND.copy_(y_ND)
        number = self._num_taken[microbatch]
        self._post(self._lines.answered[microbatch][self._e or 0], number)
        plan = self._step_plans[microbatch]
        self._chains.start(plan.reply, microbatch, number)
        if plan.reply:
            expected = self._own_experts(microbatch)
            self._await(expected, number, "partial sums", (layer, microbatch))

    def recv_outputs(self, layer: int, microbatch: int) -> Tensor:
        """Wait for all expert ranks, add up and round."""
        assert self._a is not None, f"{self._peers=}"
        rows = self._places.own[microbatch][self._a]
        self._num_received[microbatch] += 1
        needs = self._step_plans[microbatch].needs_sums
        expected = self._own_experts(microbatch)
        for need in needs:
            line = self._lines.returned[microbatch][need.origin, need.chunk.index]
            expected.append(Expected(line, need.world_rank, self._num_bytes(need)))
        number = self._num_received[microbatch]
        chains = self._chains
        idle = lambda: chains.is_idle(microbatch, only_takes=False)  # noqa: E731
        self._await(expected, number, "outputs", (layer, microbatch), idle)
        return self._add_up(rows, microbatch, [(need.origin, need.payload) for need in needs])

    def free(self) -> None:
        """Give up memory and link. Collective over the active ranks."""
        self._drain()
        self._memory.free(self._policy)
        if self._link is not None:
            self._link.free()
        self._comm.Free()

    # What the chains ask for.

    def is_gathered(self, chunk: Chunk, microbatch: int, number: int) -> bool:
        """See `Surroundings`. Frames need all ranks of the group, rows those that have some."""
        words, sent = self._memory.words, self._lines.sent[microbatch]
        own = self._places.own[microbatch]
        routed = self.gate == "agate"
        lines = (line for line, rows in zip(sent, own, strict=True) if routed or rows.num_rows)
        return all(words[line] >= number for line in lines)

    def is_answered(self, microbatch: int, number: int) -> bool:
        """See `Surroundings`."""
        words = self._memory.words
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
        return self._returned(step.origin, step.payload)[rows].view(-1).view(torch.uint8)

    def partial_sums(self, chunk: Chunk, microbatch: int) -> Tensor:
        """See `Surroundings`."""
        self._memory.fence()
        return self._memory.y_END[:, self._places.all(chunk.rows, microbatch)]

    def count_sent(self, world_rank: int, num_bytes: int) -> None:
        """See `Surroundings`."""
        if not self._peers.topology.same_node((self._peers.world_rank, world_rank)):
            self.bytes_between_nodes += num_bytes

    # The rest is this class's own.

    @property
    def _lines(self) -> Lines:
        return self._memory.lines

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
        assert self._e is not None, f"{self._peers=}"
        for m in range(microbatch, self._sizes.num_microbatches):
            if self._num_posted[m] == self._num_taken[m]:
                self._num_posted[m] += 1
                self._chains.start(self._step_plans[m].take, m, self._num_posted[m])
        self._num_taken[microbatch] += 1
        expected = self._own_attention(self._lines.sent[microbatch], microbatch)
        for need in self._step_plans[microbatch].needs_tokens:
            line = self._lines.landed[microbatch][need.chunk.source, need.chunk.index]
            expected.append(Expected(line, need.world_rank, self._num_bytes(need)))
        number = self._num_taken[microbatch]
        chains = self._chains
        taken = lambda: chains.is_idle(microbatch, only_takes=True)  # noqa: E731
        self._await(expected, number, "tokens", (layer, microbatch), taken)

    def _slab(self, microbatch: int) -> Tensor:
        """Where this expert rank's partial sums of a microbatch are."""
        assert self._e is not None, f"{self._peers=}"
        rows = Rows(0, self._layout.totals[microbatch])
        return self._memory.y_END[self._e, self._places.all(rows, microbatch)]

    def _returned(self, origin: int, payload: Payload) -> Tensor:
        """Where sums from a child of this group's tree come to, in the type they have."""
        children = self._fabric.trees[self._group.index][self._group.index]
        area_ND = self._memory.returned_CND[children.index(origin)]
        if payload is Payload.PARTS:
            return area_ND
        return area_ND.view(torch.float32).view(-1, self._sizes.hidden)

    def _add_up(self, rows: Rows, microbatch: int, origins: list[tuple[int, Payload]]) -> Tensor:
        """y_TD of own rows from the group's expert ranks and from other groups."""
        y_TD = self._y_TD[: rows.num_rows]
        if not rows.num_rows:
            return y_TD
        parts = list(self._memory.y_END[:, self._places.all(rows, microbatch)])
        back = self._places.back(rows, microbatch)
        parts += [self._returned(*its)[back] for its in dict.fromkeys(origins)]
        if len(parts) == 1:
            return y_TD.copy_(parts[0])
        sums_TD = torch.add(parts[0], parts[1], out=self._sums_TD[: rows.num_rows])
        for part_TD in parts[2:]:
            sums_TD.add_(part_TD)
        return y_TD.copy_(sums_TD)

    def _header_words(self, mine: list[int]) -> list[list[int]]:
        """All ranks' header words: by way of memory that all share, else by MPI."""
        active = self._peers.topology.active_ranks
        if self._link is not None:
            return allgather_words(self._comm, mine, self._peers, self._policy)
        me = active.index(self._peers.world_rank)
        slots = self._lines.header_words[self._num_steps % 2]
        self._memory.write_words(slots[me], mine)
        self._post(self._lines.arrived[me], self._num_steps)
        arrived = zip(self._lines.arrived, active, strict=True)
        expected = [Expected(line, rank, 8 * HEADER_WORDS) for line, rank in arrived]
        self._await(expected, self._num_steps, "the headers of a step", None)
        return [self._memory.read_words(slot, HEADER_WORDS) for slot in slots]

    # Waits.

    def _own_attention(self, lines: list[int], microbatch: int) -> list["Expected"]:
        own = self._places.own[microbatch]
        row_bytes = self._sizes.row_bytes
        its = zip(lines, self._group.attention, own, strict=True)
        return [Expected(line, rank, rows.num_rows * row_bytes) for line, rank, rows in its]

    def _own_experts(self, microbatch: int) -> list["Expected"]:
        num_bytes = self._layout.totals[microbatch] * self._sizes.hidden * 8
        its = zip(self._lines.answered[microbatch], self._group.experts, strict=True)
        return [Expected(line, rank, num_bytes) for line, rank in its]

    def _num_bytes(self, need: Need) -> int:
        widths = {
            Payload.TOKENS: self._sizes.row_bytes,
            Payload.PARTS: self._sizes.hidden * 8,
            Payload.SUMS: self._sizes.hidden * 4,
        }
        return need.chunk.rows.num_rows * widths[need.payload]

    def _post(self, line: int, number: int) -> None:
        """Publish what this rank has stored: its counter follows its data."""
        self._memory.fence()
        self._memory.words[line] = number

    def _await(
        self,
        expected: list["Expected"],
        number: int,
        what: str,
        where: tuple[int, int] | None,
        is_idle: Callable[[], bool] | None = None,
    ) -> None:
        """Wait until all counters have reached `number`, and until those chains of this rank have
        ended that `is_idle` looks at; `where` is layer and microbatch.
        """
        words, chains = self._memory.words, self._chains
        lines = [its.line for its in expected]

        def is_ready() -> bool:
            if chains.running:
                chains.progress()
                if is_idle is not None and not is_idle():
                    return False
            return all(words[line] >= number for line in lines)

        def describe() -> str:
            late = [its for its in expected if words[its.line] < number]
            return self._waiting(late, what, where)

        wait_until(is_ready, self._policy, describe)
        self._memory.fence()

    def _drain(self) -> None:
        """Wait until every message of this rank has left or come."""

        def is_ready() -> bool:
            self._chains.progress()
            return not self._chains.running

        wait_until(is_ready, self._policy, lambda: self._waiting([], "messages", None))

    def _waiting(self, late: list["Expected"], what: str, where: tuple[int, int] | None) -> str:
        """Who waits for whom and for how many bytes, for a message."""
        if where is not None:
            what += f" of layer {where[0]}, microbatch {where[1]}"
        under_way = self._chains.under_way()
        ranks = dict.fromkeys([its.world_rank for its in late] + [rank for rank, _ in under_way])
        num_expected = sum(its.num_bytes for its in late)
        num_received = sum(transfer.num_received for _, transfer in under_way)
        text = self._peers.waiting(what, ranks)
        return f"{text} ({num_expected} bytes expected, {num_received} of them received)"


class Expected(NamedTuple):
    """A counter that must grow, the rank it takes, and the bytes it stands for."""

    line: int
    world_rank: int
    num_bytes: int


def _place(world_ranks: Sequence[int], world_rank: int) -> int | None:
    return world_ranks.index(world_rank) if world_rank in world_ranks else None
