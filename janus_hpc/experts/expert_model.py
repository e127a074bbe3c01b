"""The expert side of a model on one rank: this rank's slots of experts in every sparse layer, and the gates.

With the gate here (EGate, Janus section 3.3) each expert rank sees every token, balances all choices over the
replicas as every other expert rank does, and computes those that fall on its own slots; else it gets the rows
of its own experts. Knows nothing of where tokens come from.
"""

import time

import torch

from janus_hpc.comm.exchange import RoutedRows
from janus_hpc.experts.activity import ExpertActivity
from janus_hpc.experts.balancer import Balancer
from janus_hpc.experts.expert_weights import ExpertWeights
from janus_hpc.experts.gate import Gate
from janus_hpc.experts.route_sampler import RouteSampler
from janus_hpc.kernels.ops import Ops, PackedExperts
from janus_hpc.models.spec import ModelSpec
from janus_hpc.placement.placement import EMPTY, Placement

# Legend: N tokens of all attention ranks, R rows routed to this rank, D hidden, E experts, K choices a token,
# L sparse layers, S slots of all expert ranks.

# Rows on the way into the sums at a time, which bounds the memory of routed rows' outputs.
ROWS_AT_ONCE = 1024


class ExpertModel:
    """Gates and experts of all sparse layers in the slots of one expert rank.

    `weights` hold what the balancer's placement wants in this rank's slots. `busy_s`: seconds spent
    computing, as the host sees it. `sampler` records what was chosen where the gate is here; one expert
    rank has one, since all see the same.
    """

    def __init__(
        self,
        spec: ModelSpec,
        ops: Ops,
        gate: Gate,
        balancer: Balancer,
        expert_rank: int,
        weights: ExpertWeights,
        sampler: RouteSampler | None = None,
    ) -> None:
        self.spec = spec
        self.ops = ops
        self.gate = gate
        self.balancer = balancer
        self.expert_rank = expert_rank
        self.weights = weights
        self.device = weights.device
        self.activity = ExpertActivity(spec.sparse_layers, spec.moe.num_experts, self.device)
        self.sampler = sampler
        self.busy_s = 0.0
        self._index_of_layer = {layer: index for index, layer in enumerate(spec.sparse_layers)}
        self.use(balancer.placement)

    @property
    def num_slots(self) -> int:
        """Slots a layer."""
        return self.balancer.placement.num_slots

    def use(self, placement: Placement) -> None:
        """Compute by this placement from now on; what it wants in this rank's slots must lie there."""
        self.balancer.use(placement)
        slot_of_LE = torch.full(
            (placement.num_layers, placement.num_experts), -1, dtype=torch.int32
        )
        for index in range(placement.num_layers):
            for slot, expert in enumerate(placement.experts_of(index, self.expert_rank)):
                if expert != EMPTY:
                    slot_of_LE[index, expert] = slot
        own_slot_S = torch.full((placement.num_ranks * self.num_slots,), -1, dtype=torch.int32)
        first = self.expert_rank * self.num_slots
        own_slot_S[first : first + self.num_slots] = torch.arange(self.num_slots)
        self._own_slot_S = own_slot_S.to(self.device)
        rows = slot_of_LE.to(self.device).unbind()
        self._slot_of_expert = dict(zip(self.spec.sparse_layers, rows, strict=True))

    def reset(self) -> None:
        """Forget what was computed to warm up."""
        self.activity.clear()
        self.balancer.reset()
        self.busy_s = 0.0
        if self.sampler is not None:
            self.sampler.clear()

    def compute(self, layer: int, x_ND: torch.Tensor, out_ND: torch.Tensor) -> None:
        """Add this rank's weighted expert outputs for x_ND into out_ND (float64, zeroed by the caller)."""
        started_s = time.perf_counter()
        x_ND = x_ND.to(self.device, torch.float32)
        routing = self.gate.route(layer, x_ND)
        balanced = self.balancer.balance(layer, routing.ids_TK)
        self.activity.record(layer, balanced)
        slots_NK = self._own_slot_S[balanced.slots_TJ]
        if out_ND.device == self.device:
            self.ops.experts(x_ND, slots_NK, routing.weights_TK, self._packed(layer), out_ND)
        else:  # the exchange's buffers are host memory, this rank computes on its GPU
            sums_ND = torch.zeros_like(out_ND, device=self.device)
            self.ops.experts(x_ND, slots_NK, routing.weights_TK, self._packed(layer), sums_ND)
            out_ND.copy_(sums_ND)
        self.busy_s += time.perf_counter() - started_s
        if self.sampler is not None:
            self.sampler.record(layer, routing.ids_TK)

    def compute_routed(self, layer: int, routed: RoutedRows, out_ND: torch.Tensor) -> None:
        """The same for rows that were routed on the attention side; R may be 0."""
        started_s = time.perf_counter()
        self.activity.record_own(layer, routed.expert_ids_R)
        # By expert, so that portions do not read an expert's weights more than twice.
        by_expert_R = routed.expert_ids_R.argsort(stable=True)
        for portion in by_expert_R.split(ROWS_AT_ONCE):
            self._add_rows(layer, routed, portion, out_ND)
        self.busy_s += time.perf_counter() - started_s

    def _add_rows(
        self, layer: int, routed: RoutedRows, rows_R: torch.Tensor, out_ND: torch.Tensor
    ) -> None:
        x_RD = routed.x_RD[rows_R].to(self.device, torch.float32)
        slots_R = self._slot_of_expert[layer][routed.expert_ids_R[rows_R].to(self.device)]
        weights_R = routed.weights_R[rows_R].to(self.device)
        y_RD = torch.zeros(x_RD.shape, dtype=torch.float64, device=self.device)
        choices_R1 = slots_R.unsqueeze(1), weights_R.unsqueeze(1)
        self.ops.experts(x_RD, *choices_R1, self._packed(layer), y_RD)
        # A token's terms are multiples of one quantum: float64 adds them exactly, in any order.
        token_ids_R = routed.token_ids_R[rows_R].to(out_ND.device)
        out_ND.index_add_(0, token_ids_R, y_RD.to(out_ND.device))

    def _packed(self, layer: int) -> PackedExperts:
        return self.weights.layers[self._index_of_layer[layer]]
