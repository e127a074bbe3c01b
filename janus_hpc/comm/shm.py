"""The exchange inside one node: one MPI-3 shared window that all active ranks read and write.

Knows the protocol; where things lie in the window is `comm.shm_window`'s. A: attention ranks,
E: expert ranks, T: one attention rank's tokens in a microbatch, N: all of them, D: hidden size.

Every counter has one writer and only grows. arrived[r]: steps rank r has opened; sent[a, m]:
messages attention rank a has sent in microbatch m; answered[e, m]: messages expert rank e has
answered in it. A writer stores its data, then a fence, then the counter; a reader sees the
counter, then a fence, then reads. Nothing is overwritten while someone may read it:

* headers, two slots by step parity. A slot is written again two steps later. Whoever opens step
  s + 2 has finished opening s + 1, hence every rank has arrived in s + 1, and a rank arrives there
  only after it has read the headers of s.
* x, one slot. Attention rank a writes message k + 1 after `recv_outputs` of k, which saw every
  answered[e, m] reach k; an expert rank answers k when it has finished with all rows of k.
  Between steps rows move to other places, but all microbatches were answered before.
* y, one slab an expert rank. It writes message k + 1 after `recv_tokens` saw every sent[a, m] reach
  k + 1, and attention rank a sends k + 1 when it has finished with the sums of k. In a new step the
  slab's rows may belong to another microbatch: every rank opened the step after it had finished
  with the sums of the step before, and an expert rank writes after it has opened the step.

So parity is needed for headers alone: each direction of the rows acknowledges the other.
"""

import torch
from mpi4py import MPI
from torch import Tensor

from janus_hpc.comm.exchange import StepHeader, header_words, read_headers
from janus_hpc.comm.layout import Peers, Sizes, StepLayout
from janus_hpc.comm.shm_window import ShmWindow
from janus_hpc.comm.waits import WaitPolicy, wait_until


class ShmExchange:
    """Rows are written where all expert ranks read them, sums where all attention ranks do."""

    kind = "shm"

    def __init__(
        self,
        comm: MPI.Intracomm,
        peers: Peers,
        sizes: Sizes,
        policy: WaitPolicy,
        why: str,
    ) -> None:
        """Map the window. Takes over `comm`, the active ranks, all of one node. Collective over
        it.
        """
        self.why = why
        self._peers, self._sizes, self._policy = peers, sizes, policy
        self._a, self._e = peers.attention_role, peers.expert_role
        self._window = ShmWindow(comm, peers, sizes)
        num_sums = 0 if self._a is None else sizes.max_tokens_per_rank
        self._sums_TD = torch.empty(num_sums, sizes.hidden, dtype=torch.float64)
        self._num_steps = 0
        self._num_sent = [0] * sizes.num_microbatches
        self._num_received = [0] * sizes.num_microbatches

    def open_step(self, header: StepHeader | None, *, stop: bool = False) -> list[StepHeader]:
        """The headers of all attention ranks. Collective over the active ranks."""
        self._sizes.check(header, self._peers)
        window, topology = self._window, self._peers.topology
        self._num_steps += 1
        slots = window.header_words[self._num_steps % 2]
        mine = topology.active_ranks.index(self._peers.world_rank)
        window.write_words(slots[mine], header_words(header, stop))
        self._post(window.arrived[mine], self._num_steps)
        what = "the headers of a step"
        self._await(window.arrived, self._num_steps, topology.active_ranks, what)
        attention = [topology.active_ranks.index(peer) for peer in topology.attention_ranks]
        headers = read_headers([window.read_words(slot) for slot in slots], attention)
        self._layout = StepLayout(headers, self._sizes.num_microbatches)
        return headers

    def send_tokens(self, layer: int, microbatch: int, x_TD: Tensor) -> None:
        """Copy the rows into the window."""
        assert self._a is not None and x_TD.dtype == self._sizes.row_dtype, f"{x_TD.dtype=}"
        assert x_TD.shape == (self._layout.counts[microbatch][self._a], self._sizes.hidden)
        if x_TD.shape[0]:
            self._window.x_ND[self._layout.rows_of(microbatch, self._a)].copy_(x_TD)
        self._num_sent[microbatch] += 1
        line = self._window.sent[microbatch][self._a]
        self._post(line, self._num_sent[microbatch], layer)

    def recv_tokens(self, layer: int, microbatch: int) -> tuple[Tensor, list[int]]:
        """Wait for all attention ranks; the rows are read in the window itself."""
        assert self._e is not None, f"{self._peers=}"
        self._num_received[microbatch] += 1
        lines = self._window.sent[microbatch]
        what = self._what("tokens", layer, microbatch, self._sizes.row_bytes)
        ranks = self._peers.topology.attention_ranks
        self._await(lines, self._num_received[microbatch], ranks, what, layer)
        layout = self._layout
        return self._window.x_ND[layout.rows(microbatch)], list(layout.counts[microbatch])

    def output_buffer(self, layer: int, microbatch: int, num_rows: int) -> Tensor:
        """This expert rank's slab of the window; not zeroed."""
        assert self._e is not None and num_rows == self._layout.totals[microbatch], f"{num_rows=}"
        return self._window.y_END[self._e, self._layout.rows(microbatch)]

    def send_outputs(self, layer: int, microbatch: int, y_ND: Tensor) -> None:
        """Say that the sums are in the slab; copies them there if they are not."""
        assert self._e is not None, f"{self._peers=}"
        slab_ND = self._window.y_END[self._e, self._layout.rows(microbatch)]
        assert y_ND.dtype == torch.float64 and y_ND.shape == slab_ND.shape, f"{y_ND.shape=}"
        if y_ND.data_ptr() != slab_ND.data_ptr():
            slab_ND.copy_(y_ND)
        line = self._window.answered[microbatch][self._e]
        self._post(line, self._num_received[microbatch], layer)

    def recv_outputs(self, layer: int, microbatch: int) -> Tensor:
        """Wait for all expert ranks and add up; one expert rank's sums are read in the window."""
        assert self._a is not None, f"{self._peers=}"
        lines = self._window.answered[microbatch]
        what = self._what("outputs", layer, microbatch, self._sizes.hidden * 8)
        ranks = self._peers.topology.expert_ranks
        self._await(lines, self._num_sent[microbatch], ranks, what, layer)
        parts_END = self._window.y_END[:, self._layout.rows_of(microbatch, self._a)]
        if parts_END.shape[0] == 1:
            return parts_END[0]
        first = sum(self._layout.counts[m][self._a] for m in range(microbatch))
        sums_TD = self._sums_TD[first : first + parts_END.shape[1]]
        torch.add(parts_END[0], parts_END[1], out=sums_TD)
        for e in range(2, parts_END.shape[0]):
            sums_TD.add_(parts_END[e])
        return sums_TD

    def free(self) -> None:
        """Unmap the window. Collective over the active ranks."""
        self._window.free(self._policy)

    def _what(self, noun: str, layer: int, microbatch: int, row_bytes: int) -> str:
        num_rows = self._layout.totals[microbatch]
        return (
            f"{noun} of layer {layer}, microbatch {microbatch} "
            f"({num_rows} rows, {num_rows * row_bytes} bytes)"
        )

    def _post(self, line: int, count: int, layer: int = 0) -> None:
        """Publish what this rank has stored: its counter follows its data."""
        words = self._window.words
        words[line + 1] = layer
        self._window.fence()
        words[line] = count

    def _await(
        self,
        lines: list[int],
        count: int,
        world_ranks: tuple[int, ...],
        what: str,
        layer: int = 0,
    ) -> None:
        """Wait until every counter has reached `count`; lines[i] belongs to world_ranks[i]."""
        words = self._window.words

        def all_there() -> bool:
            return all(words[line] >= count for line in lines)

        def describe() -> str:
            there = zip(lines, world_ranks, strict=True)
            late = [peer for line, peer in there if words[line] < count]
            return self._peers.waiting(what, late)

        wait_until(all_there, self._policy, describe)
        self._window.fence()
        assert all(words[line + 1] == layer for line in lines), f"{what}: peers are elsewhere"
