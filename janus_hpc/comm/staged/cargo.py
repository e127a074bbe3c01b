"""What is dispatched with the gate on the expert side: whole rows, read in place by all expert ranks.

Owns where rows are written, sent from, received into and read; knows neither messages nor waits.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from janus_hpc.comm.exchange import RoutedRows, Routing
from janus_hpc.comm.layout import StepLayout
from janus_hpc.comm.plan.steps import Recv, Rows, Send
from janus_hpc.comm.staged.group_memory import GroupMemory
from janus_hpc.comm.staged.places import Places


class DenseCargo:
    """Rows of the row dtype in the group's area of tokens."""

    gate = "egate"

    def __init__(self, memory: GroupMemory) -> None:
        self._memory = memory

    def open(self, places: Places, layout: StepLayout) -> None:
        """A new step: rows lie elsewhere."""
        self._places, self._layout = places, layout

    def put(
        self,
        layer: int,
        microbatch: int,
        attention: int,
        x_TD: Tensor,
        routing: Routing | None,
        await_counts: Callable[[], None],
    ) -> None:
        """Write the rows of the group's attention rank `attention` into its memory."""
        assert routing is None, "the gate is on the expert side"
        rows = self._places.own[microbatch][attention]
        if rows.num_rows:
            self._memory.x_ND[self._places.held(rows, microbatch)].copy_(x_TD)

    def part(self, step: Send | Recv, microbatch: int) -> Tensor:
        """Bytes of a chunk, to be sent or received."""
        rows_RD = self._memory.x_ND[self._places.held(step.chunk.rows, microbatch)]
        return rows_RD.view(-1).view(torch.uint8)

    def rows(self, microbatch: int) -> Tensor:
        """x_ND: all rows of the microbatch, in place."""
        num_rows = self._layout.totals[microbatch]
        return self._memory.x_ND[self._places.all(Rows(0, num_rows), microbatch)]

    def routed(self, layer: int, microbatch: int, expert: int) -> RoutedRows:
        """Not with this gate."""
        raise AssertionError("the gate is on the expert side: take recv_tokens")
