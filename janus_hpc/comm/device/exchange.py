"""The exchange inside one node whose ranks' tensors live on GPUs that open memory to each other.

Knows the protocol; what lies where is `comm.device.slots`', who has posted what `comm.device.signals`'.
A: attention ranks, E: expert ranks, T: one attention rank's tokens in a microbatch, N: all of them,
D: hidden size.

Rows are pushed: an attention rank stores its rows in every expert rank's slab, at the places where
they make up x_ND, then posts a flag there; an expert rank waits, reads its own slab, stores its
partial sums in each attention rank's slab, in the slot of its expert role, and posts a flag there.
All this is in the order of one stream a rank, and the host runs ahead of it. Nothing is overwritten
while someone may read it:

* x, one slot. An attention rank stores message k + 1 of a microbatch, on its stream, after it has
  waited for every expert rank's answer to k, and an expert rank posts its answer after it has
  finished with all rows of k. In a new step rows move to other places, but then all microbatches
  of the step before have been answered.
* y, one slot. An expert rank stores message k + 1 after it has waited for every attention rank's
  tokens k + 1, which that rank posts after it has added up the sums of k. In a new step the rows of
  a slot may belong to another microbatch: the first tokens of the step are posted after all sums of
  the step before have been added up.

So each direction of the rows acknowledges the other. Headers travel by MPI.
"""

import torch
from mpi4py import MPI
from torch import Tensor

from janus_hpc.comm.device.signals import Awaited, Posted, Signals, bound_of
from janus_hpc.comm.device.slots import Slabs, Slots
from janus_hpc.comm.exchange import RoutedRows, Routing, StepHeader, header_words, read_headers
from janus_hpc.comm.header_words import allgather_words
from janus_hpc.comm.layout import Peers, Sizes, StepLayout
from janus_hpc.comm.objects import barrier
from janus_hpc.comm.waits import WaitPolicy
from janus_hpc.kernels.flags import MAX_FLAGS, Flags


def why_too_large(peers: Peers) -> str:
    """Why this exchange cannot serve so many ranks; "" where it can."""
    most = max(peers.num_attention, peers.num_expert)
    return f"{most} ranks of a role on a node, at most {MAX_FLAGS}" if most > MAX_FLAGS else ""


class DeviceExchange:
    """Rows and sums are stored where they are read; waits are kernels, and the host runs ahead.

    Tensors handed out are on this rank's device and valid in the order of the stream that is
    current in all calls: it must always be the same one.
    """

    kind = "device"
    gate = "egate"

    def __init__(
        self,
        comm: MPI.Intracomm,
        peers: Peers,
        sizes: Sizes,
        policy: WaitPolicy,
        why: str,
        *,
        slabs: Slabs,
        flags: Flags,
        bound: int | None = None,
    ) -> None:
        """Load the kernels. Takes over `comm`, the active ranks, all of one node, and `slabs`.

        `slabs`: of `slab_sizes(peers, sizes)` bytes. `bound`: of a wait on the device, as in
        `Flags.wait`; None for the time limit of `policy`. Collective over `comm`.
        """
        assert not why_too_large(peers), f"{peers=}"
        self.why = why
        self._comm, self._peers, self._sizes, self._policy = comm, peers, sizes, policy
        self._a, self._e = peers.attention_role, peers.expert_role
        self._slabs, self._slots = slabs, Slots(slabs, peers, sizes)
        limit = bound_of(policy) if bound is None else bound
        self._signals = Signals(slabs, peers, policy, flags, limit)
        active = peers.topology.active_ranks
        self._attention = [active.index(peer) for peer in peers.topology.attention_ranks]
        # Per microbatch; empty where this rank has not the role.
        self._tokens_to, self._outputs_to = list[Posted](), list[Posted]()
        self._tokens_from, self._outputs_from = list[Awaited](), list[Awaited]()
        self._make_signals()
        num_in = 0 if self._e is None else sizes.max_rows(peers)
        self._y_ND = torch.empty(num_in, sizes.hidden, dtype=torch.float64, device=slabs.device)
        self._signals.warm_up(self._tokens_to + self._outputs_to)
        barrier(comm, policy)

    def open_step(self, header: StepHeader | None, *, stop: bool = False) -> list[StepHeader]:
        """The headers of all attention ranks. Waits for this rank's own device first.

        Collective over the active ranks.
        """
        self._sizes.check(header, self._peers)
        self.settle()
        mine = header_words(header, stop)
        words = allgather_words(self._comm, mine, self._peers, self._policy)
        headers = read_headers(words, self._attention)
        self._layout = StepLayout(headers, self._sizes.num_microbatches)
        return headers

    def settle(self) -> None:
        """Wait for this rank's device; CommTimeout where one of its waits gave up since the last call.

        To be called before results of a step are used outside the device; `open_step` calls it.
        """
        self._signals.settle()

    def send_tokens(
        self, layer: int, microbatch: int, x_TD: Tensor, routing: Routing | None = None
    ) -> None:
        """Store the rows in every expert rank's slab."""
        assert self._a is not None and routing is None, f"{self._peers=}"
        assert x_TD.dtype == self._sizes.row_dtype, f"{x_TD.dtype=}"
        assert x_TD.shape == (self._layout.counts[microbatch][self._a], self._sizes.hidden)
        if x_TD.shape[0]:
            rows = self._layout.rows_of(microbatch, self._a)
            for x_ND in self._slots.x_ND:
                x_ND[rows].copy_(x_TD, non_blocking=x_TD.is_cuda)
        self._signals.post(self._tokens_to[microbatch])

    def recv_tokens(self, layer: int, microbatch: int) -> tuple[Tensor, list[int]]:
        """Wait for all attention ranks; the rows are read in this rank's slab."""
        assert self._e is not None, f"{self._peers=}"
        what = self._what("tokens", layer, microbatch, self._sizes.row_bytes)
        self._signals.wait(self._tokens_from[microbatch], what)
        rows, counts = self._layout.rows(microbatch), self._layout.counts[microbatch]
        return self._slots.x_ND[self._e][rows], list(counts)

    def recv_routed(self, layer: int, microbatch: int) -> RoutedRows:
        """Not with this exchange: its gate is "egate"."""
        raise AssertionError(f"{self.gate=}")

    def num_rows(self, microbatch: int) -> int:
        """N of a microbatch of the open step."""
        return self._layout.totals[microbatch]

    def output_buffer(self, layer: int, microbatch: int, num_rows: int) -> Tensor:
        """The buffer sums are sent from; not zeroed."""
        assert self._e is not None and num_rows == self._layout.totals[microbatch], f"{num_rows=}"
        return self._y_ND[self._layout.rows(microbatch)]

    def send_outputs(self, layer: int, microbatch: int, y_ND: Tensor) -> None:
        """Store each attention rank's sums in its slab."""
        assert self._e is not None, f"{self._peers=}"
        layout, shape = self._layout, (self._layout.totals[microbatch], self._sizes.hidden)
        assert y_ND.dtype == torch.float64 and y_ND.shape == shape, f"{y_ND.dtype=} {y_ND.shape=}"
        base = layout.bases[microbatch]
        for a, y_ETD in enumerate(self._slots.y_ETD):
            rows = layout.rows_of(microbatch, a)
            if rows.stop > rows.start:
                part_TD = y_ND[rows.start - base : rows.stop - base]
                slot_TD = y_ETD[self._e, self._part_rows(microbatch, a)]
                slot_TD.copy_(part_TD, non_blocking=part_TD.is_cuda)
        self._signals.post(self._outputs_to[microbatch])

    def recv_outputs(self, layer: int, microbatch: int) -> Tensor:
        """Wait for all expert ranks and add up, on the device."""
        assert self._a is not None, f"{self._peers=}"
        what = self._what("outputs", layer, microbatch, self._sizes.hidden * 8, self._a)
        self._signals.wait(self._outputs_from[microbatch], what)
        parts_ETD = self._slots.y_ETD[self._a][:, self._part_rows(microbatch, self._a)]
        return parts_ETD.sum(dim=0).float()

    def free(self) -> None:
        """Give up the slabs. Collective over the active ranks."""
        self.settle()
        del self._slots, self._signals
        for signals in (self._tokens_to, self._outputs_to, self._tokens_from, self._outputs_from):
            signals.clear()
        self._slabs.free()
        self._comm.Free()

    def _make_signals(self) -> None:
        signals, slots, topology = self._signals, self._slots, self._peers.topology
        for m in range(self._sizes.num_microbatches):
            if slots.output_flags_ME is not None:
                self._tokens_to.append(signals.posted(slots.token_addresses(m)))
                flags_E = slots.output_flags_ME[m]
                self._outputs_from.append(signals.awaited(flags_E, topology.expert_ranks))
            if slots.token_flags_MA is not None:
                self._outputs_to.append(signals.posted(slots.output_addresses(m)))
                flags_A = slots.token_flags_MA[m]
                self._tokens_from.append(signals.awaited(flags_A, topology.attention_ranks))

    def _part_rows(self, microbatch: int, attention_role: int) -> slice:
        """The rows of a microbatch among one attention rank's own."""
        counts = self._layout.counts
        first = sum(counts[m][attention_role] for m in range(microbatch))
        return slice(first, first + counts[microbatch][attention_role])

    def _what(
        self, noun: str, layer: int, microbatch: int, row_bytes: int, role: int | None = None
    ) -> str:
        """A message for errors: of all attention ranks' rows, or of one."""
        layout = self._layout
        num_rows = layout.totals[microbatch] if role is None else layout.counts[microbatch][role]
        return (
            f"{noun} of layer {layer}, microbatch {microbatch} "
            f"({num_rows} rows, {num_rows * row_bytes} bytes)"
        )
