"""The plain exchange over MPI: any roles on any nodes, rows by Ialltoallv, headers by Iallgather.

The oracle every other exchange is compared with; knows nothing of nodes. A: attention ranks,
E: expert ranks, T: one attention rank's tokens in a microbatch, N: all of them, D: hidden size.
"""

import torch
from mpi4py import MPI
from torch import Tensor

from janus_hpc.comm.exchange import (
    RoutedRows,
    Routing,
    StepHeader,
    header_words,
    read_headers,
)
from janus_hpc.comm.header_words import allgather_words
from janus_hpc.comm.layout import Peers, Sizes, StepLayout
from janus_hpc.comm.waits import WaitPolicy, wait_request


class HostExchange:
    """Two collectives a layer and microbatch over the active ranks: dispatch, combine.

    Each microbatch has a communicator of its own: on one communicator all ranks must start
    collectives in one order, and attention and expert ranks take microbatches in different orders.
    """

    kind = "host"
    gate = "egate"

    def __init__(
        self,
        comm: MPI.Intracomm,
        peers: Peers,
        sizes: Sizes,
        policy: WaitPolicy,
        why: str,
    ) -> None:
        """Size the buffers. Takes over `comm`, the active ranks in world order. Collective over
        it.
        """
        self.why = why
        self._peers, self._sizes, self._policy = peers, sizes, policy
        self._comms = [comm] + [comm.Dup() for _ in range(sizes.num_microbatches - 1)]
        active = peers.topology.active_ranks
        self._attention = [active.index(peer) for peer in peers.row_order]
        # Headers are handed out in role order, rows lie in another.
        self._shown = [peers.row_order.index(peer) for peer in peers.topology.attention_ranks]
        self._experts = [active.index(peer) for peer in peers.topology.expert_ranks]
        self._e = peers.expert_role
        mine = peers.attention_role
        self._a = None if mine is None else self._shown[mine]
        max_rows, hidden = sizes.max_rows(peers), sizes.hidden
        num_in = 0 if self._e is None else max_rows
        num_sums = 0 if self._a is None else peers.num_expert * sizes.max_tokens_per_rank
        self._x_ND = torch.empty(num_in, hidden, dtype=sizes.row_dtype)
        self._y_ND = torch.empty(num_in, hidden, dtype=torch.float64)
        self._parts_ETD = torch.empty(num_sums, hidden, dtype=torch.float64)
        self._x_row = MPI.BYTE.Create_contiguous(sizes.row_bytes).Commit()
        self._y_row = MPI.BYTE.Create_contiguous(hidden * 8).Commit()
        # Per microbatch: rows under way, which must stay alive, and the requests that move them.
        self._sent: dict[int, Tensor] = {}
        self._dispatch: dict[int, MPI.Request] = {}
        self._combine: dict[int, MPI.Request] = {}

    def open_step(self, header: StepHeader | None, *, stop: bool = False) -> list[StepHeader]:
        """The headers of all attention ranks. Collective over the active ranks."""
        self._sizes.check(header, self._peers)
        # In the new step the rows of the buffers may belong to other microbatches.
        for microbatch in range(self._sizes.num_microbatches):
            self._finish(self._combine, -1, microbatch, "the last outputs to be taken")
        mine = header_words(header, stop)
        words = allgather_words(self._comms[0], mine, self._peers, self._policy)
        headers = read_headers(words, self._attention)
        self._layout = StepLayout(headers, self._sizes.num_microbatches)
        return [headers[i] for i in self._shown]

    def send_tokens(
        self, layer: int, microbatch: int, x_TD: Tensor, routing: Routing | None = None
    ) -> None:
        """Start the dispatch; it completes in `recv_tokens` or `recv_outputs`."""
        assert routing is None, "the gate is on the expert side"
        assert self._a is not None and x_TD.dtype == self._sizes.row_dtype, f"{x_TD.dtype=}"
        assert x_TD.shape == (self._layout.counts[microbatch][self._a], self._sizes.hidden)
        self._sent[microbatch] = x_TD.to("cpu").contiguous()
        self._start_dispatch(microbatch)

    def recv_tokens(self, layer: int, microbatch: int) -> tuple[Tensor, list[int]]:
        """Finish the dispatch; the rows lie in a buffer of this exchange."""
        assert self._e is not None, f"{self._peers=}"
        # The sums of the layer before leave from the buffer that this layer's go to.
        self._finish(self._combine, layer, microbatch, "room for outputs")
        if self._a is None:
            self._start_dispatch(microbatch)
        self._finish(self._dispatch, layer, microbatch, "tokens")
        layout = self._layout
        return self._x_ND[layout.rows(microbatch)], list(layout.counts[microbatch])

    def recv_routed(self, layer: int, microbatch: int) -> RoutedRows:
        """Not with this gate."""
        raise AssertionError("the gate is on the expert side: take recv_tokens")

    def num_rows(self, microbatch: int) -> int:
        """N."""
        return self._layout.totals[microbatch]

    def output_buffer(self, layer: int, microbatch: int, num_rows: int) -> Tensor:
        """The buffer sums are sent from; not zeroed."""
        assert num_rows == self._layout.totals[microbatch], f"{num_rows=}"
        return self._y_ND[self._layout.rows(microbatch)]

    def send_outputs(self, layer: int, microbatch: int, y_ND: Tensor) -> None:
        """Start the combine; it completes in `recv_outputs` or at the next `recv_tokens`."""
        buffer_ND = self._y_ND[self._layout.rows(microbatch)]
        assert y_ND.dtype == torch.float64 and y_ND.shape == buffer_ND.shape, f"{y_ND.shape=}"
        if y_ND.data_ptr() != buffer_ND.data_ptr():
            buffer_ND.copy_(y_ND)
        self._start_combine(microbatch)

    def recv_outputs(self, layer: int, microbatch: int) -> Tensor:
        """Finish dispatch and combine, and add the parts in place."""
        assert self._a is not None, f"{self._peers=}"
        if self._e is None:
            self._start_combine(microbatch)
        self._finish(self._dispatch, layer, microbatch, "its tokens to be taken")
        self._finish(self._combine, layer, microbatch, "outputs")
        del self._sent[microbatch]
        first = self._first_part(microbatch)
        num_tokens = self._layout.counts[microbatch][self._a]
        y_TD = self._parts_ETD[first : first + num_tokens]
        for e in range(1, self._peers.num_expert):
            start = first + e * num_tokens
            y_TD.add_(self._parts_ETD[start : start + num_tokens])
        return y_TD.float()

    def settle(self) -> None:
        """Finish what is under way."""
        for microbatch in range(self._sizes.num_microbatches):
            self._finish(self._dispatch, -1, microbatch, "the last tokens to be taken")
            self._finish(self._combine, -1, microbatch, "the last outputs to be taken")

    def free(self) -> None:
        """Finish what is under way, then free datatypes and communicators. Collective."""
        self.settle()
        self._x_row.Free()
        self._y_row.Free()
        for comm in self._comms:
            comm.Free()

    def _first_part(self, microbatch: int) -> int:
        """First row in the parts of what the expert ranks return for a microbatch."""
        assert self._a is not None
        before = sum(self._layout.counts[m][self._a] for m in range(microbatch))
        return before * self._peers.num_expert

    def _start_dispatch(self, microbatch: int) -> None:
        layout, num_active = self._layout, self._comms[microbatch].size
        out_counts, in_counts, in_starts = [0] * num_active, [0] * num_active, [0] * num_active
        if self._a is not None:
            for active in self._experts:
                out_counts[active] = layout.counts[microbatch][self._a]
        if self._e is not None:
            for a, active in enumerate(self._attention):
                in_counts[active] = layout.counts[microbatch][a]
                in_starts[active] = layout.starts[microbatch][a]
        sent = self._sent.get(microbatch)
        self._dispatch[microbatch] = self._comms[microbatch].Ialltoallv(
            [_memory(sent), out_counts, [0] * num_active, self._x_row],
            [_memory(self._x_ND), in_counts, in_starts, self._x_row],
        )

    def _start_combine(self, microbatch: int) -> None:
        layout, num_active = self._layout, self._comms[microbatch].size
        out_counts, out_starts = [0] * num_active, [0] * num_active
        in_counts, in_starts = [0] * num_active, [0] * num_active
        if self._e is not None:
            for a, active in enumerate(self._attention):
                out_counts[active] = layout.counts[microbatch][a]
                out_starts[active] = layout.starts[microbatch][a]
        if self._a is not None:
            num_tokens, first = layout.counts[microbatch][self._a], self._first_part(microbatch)
            for e, active in enumerate(self._experts):
                in_counts[active] = num_tokens
                in_starts[active] = first + e * num_tokens
        self._combine[microbatch] = self._comms[microbatch].Ialltoallv(
            [_memory(self._y_ND), out_counts, out_starts, self._y_row],
            [_memory(self._parts_ETD), in_counts, in_starts, self._y_row],
        )

    def _finish(
        self, requests: dict[int, MPI.Request], layer: int, microbatch: int, what: str
    ) -> None:
        """Wait for a microbatch's request, if one is under way."""
        if microbatch not in requests:
            return
        num_bytes = self._layout.totals[microbatch] * self._sizes.row_bytes
        text = f"{what} of layer {layer}, microbatch {microbatch} ({num_bytes} bytes of tokens)"
        topology = self._peers.topology
        sources = topology.attention_ranks if what == "tokens" else topology.expert_ranks
        self._wait(requests[microbatch], text, sources)
        del requests[microbatch]

    def _wait(self, request: MPI.Request, what: str, world_ranks: tuple[int, ...]) -> None:
        others = [peer for peer in world_ranks if peer != self._peers.world_rank]
        wait_request(request, self._policy, lambda: self._peers.waiting(what, others))


def _memory(rows: Tensor | None) -> MPI.buffer | bytes:
    """The tensor's bytes; numpy has no bfloat16, so the element type is left to the row
    datatype.
    """
    return b"" if rows is None else MPI.buffer.fromaddress(rows.data_ptr(), rows.nbytes)
