"""How long a round trip of rows through an exchange takes, with tensors on a device.

Knows any exchange and no model; what experts compute is left out.
"""

import time

import torch

from janus_hpc.comm.exchange import Exchange, StepHeader
from janus_hpc.comm.layout import Peers


def round_trip_us(
    exchange: Exchange,
    peers: Peers,
    x_TD: torch.Tensor,
    *,
    num_rounds: int = 200,
    num_warm_up: int = 20,
) -> float:
    """Mean microseconds of one dispatch and combine of x_TD from every attention rank.

    x_TD float32 on the rank's device, also on expert ranks, whose values are not sent. Rounds
    follow each other as layers do in a step, each on the result of the one before (values are of no
    interest and may overflow); rows the exchange hands out elsewhere are brought to the device.
    Collective over the active ranks, each of which returns its own time.
    """
    device, elapsed_s = x_TD.device, 0.0
    is_attention, is_expert = peers.attention_role is not None, peers.expert_role is not None
    y_TD = x_TD
    for count in (num_warm_up, num_rounds):
        exchange.open_step(StepHeader(num_tokens=len(x_TD)) if is_attention else None)
        started_s = time.perf_counter()
        for layer in range(count):
            if is_attention:
                exchange.send_tokens(layer, 0, y_TD)
            if is_expert:
                x_ND, _ = exchange.recv_tokens(layer, 0)
                exchange.send_outputs(layer, 0, x_ND.to(device).double())
            if is_attention:
                y_TD = exchange.recv_outputs(layer, 0).to(device)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        elapsed_s = time.perf_counter() - started_s
    return elapsed_s / num_rounds * 1e6
