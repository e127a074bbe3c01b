"""The expert side of a model on one rank: every sparse layer's gate and this rank's slots of experts.

Gates on the expert side (EGate, Janus section 3.3): each expert rank sees every token and computes only the
choices that its own slots hold. Knows nothing of where tokens come from.
"""

from collections.abc import Sequence

import torch

from janus_hpc.experts.activity import ExpertActivity
from janus_hpc.kernels.ops import Ops, PackedExperts, PackedLinear
from janus_hpc.layers.source import MatrixPart, Reader, WeightSource
from janus_hpc.models.spec import ModelSpec, gate_name

# Legend: N tokens of all attention ranks, D hidden, E experts, K choices a token.


class ExpertModel:
    """Gates and experts of all sparse layers, for the experts `expert_ids` (ascending) of each layer."""

    def __init__(
        self,
        spec: ModelSpec,
        ops: Ops,
        gate_source: WeightSource,
        expert_ids: Sequence[int],
        activity: ExpertActivity,
    ) -> None:
        self.spec = spec
        self.ops = ops
        self.expert_ids = list(expert_ids)
        self.activity = activity
        shape = (spec.moe.num_experts, spec.hidden)
        self.gates: dict[int, PackedLinear] = {
            layer: gate_source.linear(MatrixPart(name=gate_name(layer), shape=shape))
            for layer in spec.sparse_layers
        }
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
        moe = self.spec.moe
        x_ND = x_ND.to(self.device, torch.float32)
        logits_NE = self.ops.linear(x_ND, self.gates[layer])
        ids_NK, weights_NK = self.ops.route_softmax_topk(
            logits_NE,
            moe.top_k,
            moe.renormalize,
            moe.scale,
            num_groups=moe.num_groups,
            topk_groups=moe.topk_groups,
        )
        self.activity.record(layer, ids_NK)
        slots_NK = self.slot_of_expert_E[ids_NK.long()]
        if out_ND.device == self.device:
            self.ops.experts(x_ND, slots_NK, weights_NK, self.experts[layer], out_ND)
        else:  # the exchange's buffers are host memory, this rank computes on its GPU
            sums_ND = torch.zeros_like(out_ND, device=self.device)
            self.ops.experts(x_ND, slots_NK, weights_NK, self.experts[layer], sums_ND)
            out_ND.copy_(sums_ND)
