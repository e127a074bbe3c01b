"""A step's microbatches through the layers, one in attention while others are at the experts.

Follows the order both roles share (`engine.order`); knows a microbatch only as something that yields its
tokens at each MoE layer and goes on with the outputs.
"""

import time
from collections.abc import Callable, Iterable, Sequence

import torch

from janus_hpc.comm.exchange import Exchange
from janus_hpc.comm.pulse import Pulse
from janus_hpc.experts.routed_gate import RoutedGate
from janus_hpc.models.attention_model import Away, Forward


def send_tokens(
    exchange: Exchange, gate: RoutedGate | None, layer: int, microbatch: int, x_TD: torch.Tensor
) -> None:
    """Send x_TD, routed by `gate` where the exchange wants that: there it may not be None."""
    if exchange.gate == "agate":
        assert gate is not None, f"{exchange.kind=} routes on the attention side, which has no gate"
        exchange.send_tokens(layer, microbatch, x_TD, gate.route(layer, x_TD))
    else:
        exchange.send_tokens(layer, microbatch, x_TD)


class Interleaved:
    """The microbatches of one step. `gate` is needed where the exchange routes on the attention side.

    `busy_s`: seconds the attention side computed, as the host sees it; neither waits nor `while_away`.
    """

    def __init__(
        self,
        streams: Sequence[Forward],
        exchange: Exchange,
        gate: RoutedGate | None,
        pulse: Pulse,
    ) -> None:
        self.streams = streams
        self.exchange = exchange
        self.gate = gate
        self.pulse = pulse
        self.busy_s = 0.0
        # Per microbatch what was sent, and what was computed since; None before its first MoE layer.
        self.away: list[tuple[Away, torch.Tensor | None] | None] = [None] * len(streams)

    def run(
        self, order: Iterable[tuple[int, int]], while_away: Callable[[int, int], None]
    ) -> list[torch.Tensor]:
        """Each microbatch's h_TD. A microbatch's outputs are taken when its turn comes in the next layer."""
        for layer, microbatch in order:
            self.pulse.beat(f"layer {layer}, microbatch {microbatch}")
            span = self.pulse.spans.span
            away = self._to_next_layer(layer, microbatch)
            assert away.layer == layer, f"{away.layer=} {layer=} {microbatch=}"
            with span("send tokens", layer, microbatch):
                send_tokens(self.exchange, self.gate, layer, microbatch, away.x_TD)
            while_away(layer, microbatch)
            started_s = time.perf_counter()
            with span("shared expert", layer, microbatch):
                self.away[microbatch] = (away, away.meanwhile())
            self.busy_s += time.perf_counter() - started_s
        return [self._to_end(microbatch) for microbatch in range(len(self.streams))]

    def _to_next_layer(self, layer: int, microbatch: int) -> Away:
        waiting = self.away[microbatch]
        y_TD = None if waiting is None else self._outputs(microbatch, *waiting)
        started_s = time.perf_counter()
        try:
            stream = self.streams[microbatch]
            with self.pulse.spans.span("attention", layer, microbatch):
                return next(stream) if y_TD is None else stream.send(y_TD)
        finally:
            self.busy_s += time.perf_counter() - started_s

    def _to_end(self, microbatch: int) -> torch.Tensor:
        try:
            self._to_next_layer(-1, microbatch)
        except StopIteration as end:
            h_TD: torch.Tensor = end.value
            return h_TD
        raise AssertionError(f"microbatch {microbatch} has more MoE layers than the order")

    def _outputs(self, microbatch: int, away: Away, shared_TD: torch.Tensor | None) -> torch.Tensor:
        """y_TD float32 of what is away, on its device, the shared expert's part added."""
        with self.pulse.spans.span("wait for outputs", away.layer, microbatch):
            y_TD = self.exchange.recv_outputs(away.layer, microbatch)
        y_TD = y_TD.to(away.x_TD.device, torch.float32)
        return y_TD if shared_TD is None else y_TD + shared_TD
