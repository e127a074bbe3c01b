"""The gate on the attention side (AGate): experts of every token, and the expert rank that serves each choice.

A rank sees only its own tokens, so what it balances are its own choices. Knows nothing of how rows travel.
"""

import time

import torch

from janus_hpc.comm.exchange import Routing
from janus_hpc.experts.balancer import Balancer
from janus_hpc.experts.gate import Gate
from janus_hpc.experts.route_sampler import RouteSampler

# Legend: T tokens of this rank, D hidden.


class RoutedGate:
    """`sampler` records what was chosen; `busy_s`: seconds spent routing, as the host sees it."""

    def __init__(self, gate: Gate, balancer: Balancer, sampler: RouteSampler) -> None:
        self.gate = gate
        self.balancer = balancer
        self.sampler = sampler
        self.busy_s = 0.0

    def route(self, layer: int, x_TD: torch.Tensor) -> Routing:
        """Experts, weights and expert ranks of x_TD's choices, on the gates' device."""
        started_s = time.perf_counter()
        routing = self.gate.route(layer, x_TD)
        self.sampler.record(layer, routing.ids_TK)
        slots_TK = self.balancer.balance(layer, routing.ids_TK).slots_TJ
        owners_TK = slots_TK // self.balancer.placement.num_slots
        self.busy_s += time.perf_counter() - started_s
        return Routing(routing.ids_TK, routing.weights_TK, owners_TK)

    def reset(self) -> None:
        """Forget what was routed to warm up."""
        self.balancer.reset()
        self.sampler.clear()
        self.busy_s = 0.0
