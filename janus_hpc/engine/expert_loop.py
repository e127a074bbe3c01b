"""The expert side's part of a step: receive, compute, reply; and the loop of a rank that does only that."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch

from janus_hpc.comm.exchange import Exchange, RoutedRows, StepHeader
from janus_hpc.comm.pulse import Pulse
from janus_hpc.engine.ending import is_last
from janus_hpc.engine.order import exchange_order
from janus_hpc.engine.tallies import StepSums, Tallies
from janus_hpc.experts.expert_model import ExpertModel

# Legend: N tokens of all attention ranks, D hidden.


class Experts(Protocol):
    """What adds this rank's partial sums into out_ND, with the gate on either side."""

    def compute(self, layer: int, x_ND: torch.Tensor, out_ND: torch.Tensor) -> None: ...

    def compute_routed(self, layer: int, routed: RoutedRows, out_ND: torch.Tensor) -> None: ...


def serve_layer(
    exchange: Exchange, experts: Experts, pulse: Pulse, layer: int, microbatch: int
) -> None:
    """One exchange as seen from the expert side; nothing is computed for zero tokens."""
    span = pulse.spans.span
    with span("wait for tokens", layer, microbatch):
        if exchange.gate == "agate":
            rows = exchange.recv_routed(layer, microbatch)
            compute = partial(experts.compute_routed, layer, rows)
        else:
            x_ND, _ = exchange.recv_tokens(layer, microbatch)
            compute = partial(experts.compute, layer, x_ND)
    with span("experts", layer, microbatch):
        y_ND = exchange.output_buffer(layer, microbatch, exchange.num_rows(microbatch))
        y_ND.zero_()
        if y_ND.shape[0]:
            compute(y_ND)
    with span("send outputs", layer, microbatch):
        exchange.send_outputs(layer, microbatch, y_ND)


def run_expert(
    exchange: Exchange,
    experts: ExpertModel,
    num_microbatches: int,
    stop_asked: Callable[[], bool],
    pulse: Pulse,
    on_step: Callable[[list[StepHeader]], None],
    tallies: Tallies,
) -> list[StepHeader]:
    """Serve steps until every attention rank is done or a stop was agreed on; returns the last headers.

    Adds to `tallies` what its steps took. `pulse` is told where this rank is.
    """
    while True:
        pulse.spans.next_step()
        with pulse.spans.span("wait for headers"):
            headers = exchange.open_step(None, stop=stop_asked())
        on_step(headers)
        if is_last(headers):
            return headers
        if not any(h.num_tokens for h in headers):
            continue
        busy_s = experts.busy_s
        for layer, microbatch in exchange_order(experts.spec.sparse_layers, num_microbatches):
            pulse.beat(f"layer {layer}, microbatch {microbatch}")
            serve_layer(exchange, experts, pulse, layer, microbatch)
        tallies.stages(headers, StepSums(num_steps=1, experts_s=experts.busy_s - busy_s))
