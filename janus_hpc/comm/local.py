"""The exchange of one colocated rank alone: nothing moves and nothing is copied.

Knows neither MPI nor waits.
"""

from dataclasses import replace

import torch
from torch import Tensor

from janus_hpc.comm.exchange import RoutedRows, Routing, StepHeader


class LocalExchange:
    """Hands the rank's own tensors back to it; one slot a microbatch."""

    kind = "local"
    gate = "egate"

    def __init__(self, why: str) -> None:
        self.why = why
        self._x: dict[int, Tensor] = {}
        self._y: dict[int, Tensor] = {}
        self._buffers: dict[int, Tensor] = {}

    def open_step(self, header: StepHeader | None, *, stop: bool = False) -> list[StepHeader]:
        """This rank's own header."""
        assert header is not None, "a rank alone is colocated and has a header"
        return [replace(header, stop=header.stop or stop)]

    def send_tokens(
        self, layer: int, microbatch: int, x_TD: Tensor, routing: Routing | None = None
    ) -> None:
        """Keep the rows for `recv_tokens`."""
        assert routing is None, "the gate is on the expert side"
        self._x[microbatch] = x_TD

    def recv_tokens(self, layer: int, microbatch: int) -> tuple[Tensor, list[int]]:
        """The rows themselves, on their own device."""
        x_TD = self._x[microbatch]
        return x_TD, [x_TD.shape[0]]

    def recv_routed(self, layer: int, microbatch: int) -> RoutedRows:
        """Not with this gate."""
        raise AssertionError("the gate is on the expert side: take recv_tokens")

    def num_rows(self, microbatch: int) -> int:
        """N."""
        return self._x[microbatch].shape[0]

    def output_buffer(self, layer: int, microbatch: int, num_rows: int) -> Tensor:
        """The microbatch's own buffer on the rows' device; it grows to the largest step."""
        x_TD = self._x[microbatch]
        buffer = self._buffers.get(microbatch)
        if buffer is None or buffer.shape[0] < num_rows or buffer.device != x_TD.device:
            shape = (num_rows, x_TD.shape[1])
            buffer = torch.empty(shape, dtype=torch.float64, device=x_TD.device)
            self._buffers[microbatch] = buffer
        return buffer[:num_rows]

    def send_outputs(self, layer: int, microbatch: int, y_ND: Tensor) -> None:
        """Keep the sums for `recv_outputs`."""
        assert y_ND.dtype == torch.float64, f"{y_ND.dtype=}"
        assert y_ND.shape == self._x[microbatch].shape, f"{y_ND.shape=}"
        self._y[microbatch] = y_ND

    def recv_outputs(self, layer: int, microbatch: int) -> Tensor:
        """The sums, rounded."""
        del self._x[microbatch]
        return self._y.pop(microbatch).float()

    def settle(self) -> None:
        """Outputs are here when they are handed out."""

    def free(self) -> None:
        """Forget what is kept."""
        self._x.clear()
        self._y.clear()
        self._buffers.clear()
