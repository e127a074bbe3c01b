"""The expert side of a model on one rank: this rank's slots of experts in every sparse layer, and the gates.

With the gate here (EGate, Janus section 3.3) each expert rank sees every token and computes only the choices
that its own slots hold; else it gets the rows of its own experts. Knows nothing of where tokens come from.
"""

from collections.abc import Sequence

import torch

from janus_hpc.comm.exchange import RoutedRows
from janus_hpc.experts.activity import ExpertActivity
from janus_hpc.experts.gate import Gate
from janus_hpc.kernels.ops import Ops, PackedExperts
from janus_hpc.layers.source import Reader
from janus_hpc.models.spec import ModelSpec

# Legend: N tokens of all attention ranks, R rows routed to this rank, D hidden, E experts, K choices a token.


# Rows on the way into the sums at a time, which bounds the memory of routed rows' outputs.
ROWS_AT_ONCE = 1024


class ExpertModel:
    """Gates and experts of all sparse layers, for the experts `expert_ids` (ascending) of each layer."""

    def __init__(
        self,
        spec: ModelSpec,
        ops: Ops,
        gate: Gate,
        expert_ids: Sequence[int],
        activity: ExpertActivity,
    ) -> None:
        self.spec = spec
        self.ops = ops
        self.gate = gate
        self.expert_ids = list(expert_ids)
        self.activity = activity
        self.experts: dict[int, PackedExperts] = {}

    def load(self, reader: Reader, dtype: torch.dtype, device: torch.device) -> None:
        """Read this rank's experts one by one; memory beyond the packed weights is one expert's."""
        self.device = device
        slot_of_expert = torch.full((self.spec.moe.num_experts,), -1, dtype=torch.int32)
        slot_of_expert[self.expert_ids] = torch.arange(len(self.expert_ids), dtype=torch.int32)
        self.slot_of_expert_E = slot_of_expert.to(device)
        for layer in self.spec.sparse_layers:
            packed = self.ops.alloc_experts(
                len(self.expert_ids), self.spec.hidden, self.spec.moe.width, dtype
            )
            for slot, expert in enumerate(self.expert_ids):
                shapes = self.spec.expert_tensors(layer, expert)
                gate, up, down = (
                    reader.read(name, dims).to(dtype=dtype, device=device)
                    for name, dims in shapes.items()
                )
                self.ops.pack_expert(packed, slot, gate, up, down)
            self.experts[layer] = packed

    def compute(self, layer: int, x_ND: torch.Tensor, out_ND: torch.Tensor) -> None:
        """Add this rank's weighted expert outputs for x_ND into out_ND (float64, zeroed by the caller)."""
        x_ND = x_ND.to(self.device, torch.float32)
        routing = self.gate.route(layer, x_ND)
        self.activity.record(layer, routing.ids_TK)
        slots_NK = self.slot_of_expert_E[routing.ids_TK.long()]
        if out_ND.device == self.device:
            self.ops.experts(x_ND, slots_NK, routing.weights_TK, self.experts[layer], out_ND)
        else:  # the exchange's buffers are host memory, this rank computes on its GPU
            sums_ND = torch.zeros_like(out_ND, device=self.device)
            self.ops.experts(x_ND, slots_NK, routing.weights_TK, self.experts[layer], sums_ND)
            out_ND.copy_(sums_ND)

    def compute_routed(self, layer: int, routed: RoutedRows, out_ND: torch.Tensor) -> None:
        """The same for rows that were routed on the attention side; R may be 0."""
        self.activity.record_own(layer, routed.expert_ids_R)
        # By expert, so that portions do not read an expert's weights more than twice.
        by_expert_R = routed.expert_ids_R.argsort(stable=True)
        for portion in by_expert_R.split(ROWS_AT_ONCE):
            self._add_rows(layer, routed, portion, out_ND)

    def _add_rows(
        self, layer: int, routed: RoutedRows, rows_R: torch.Tensor, out_ND: torch.Tensor
    ) -> None:
        x_RD = routed.x_RD[rows_R].to(self.device, torch.float32)
        slots_R = self.slot_of_expert_E[routed.expert_ids_R[rows_R].to(self.device)]
        weights_R = routed.weights_R[rows_R].to(self.device)
        y_RD = torch.zeros(x_RD.shape, dtype=torch.float64, device=self.device)
        choices_R1 = slots_R.unsqueeze(1), weights_R.unsqueeze(1)
        self.ops.experts(x_RD, *choices_R1, self.experts[layer], y_RD)
        # A token's terms are multiples of one quantum: float64 adds them exactly, in any order.
        token_ids_R = routed.token_ids_R[rows_R].to(out_ND.device)
        out_ND.index_add_(0, token_ids_R, y_RD.to(out_ND.device))
