"""The expert side's part of a step: receive, compute, reply; and the loop of a rank that does only that."""

from collections.abc import Callable

from janus_hpc.comm.exchange import Exchange, StepHeader
from janus_hpc.engine.order import exchange_order
from janus_hpc.experts.expert_model import ExpertModel


def serve_layer(exchange: Exchange, experts: ExpertModel, layer: int, microbatch: int) -> None:
    """One exchange as seen from the expert side; nothing is computed for zero tokens."""
    x_ND, _ = exchange.recv_tokens(layer, microbatch)
    y_ND = exchange.output_buffer(layer, microbatch, x_ND.shape[0])
    y_ND.zero_()
    if x_ND.shape[0]:
        experts.compute(layer, x_ND, y_ND)
    exchange.send_outputs(layer, microbatch, y_ND)


def run_expert(
    exchange: Exchange,
    experts: ExpertModel,
    stop_asked: Callable[[], bool],
    note: Callable[[str], None],
    on_step: Callable[[list[StepHeader]], None],
) -> list[StepHeader]:
    """Serve steps until every attention rank is done or a stop was agreed on; returns the last headers.

    `note` is told where this rank is, for the message should it die.
    """
    while True:
        headers = exchange.open_step(None, stop=stop_asked())
        on_step(headers)
        if all(h.done for h in headers) or any(h.stop for h in headers):
            return headers
        if not any(h.num_tokens for h in headers):
            continue
        for layer, microbatch in exchange_order(experts.spec.sparse_layers):
            note(f"layer {layer}")
            serve_layer(exchange, experts, layer, microbatch)
