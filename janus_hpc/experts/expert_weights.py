"""The packed experts in one rank's slots of every sparse layer, read from the checkpoint expert by expert.

Knows nothing of gates, of tokens, or of how an expert comes from another rank.
"""

import torch

from janus_hpc.kernels.ops import Ops, PackedExperts
from janus_hpc.layers.source import Reader
from janus_hpc.models.spec import ModelSpec
from janus_hpc.placement.moves import moves
from janus_hpc.placement.placement import Placement


class ExpertWeights:
    """`layers` maps a sparse layer's index to its slots; it is empty on a rank without experts."""

    def __init__(
        self,
        spec: ModelSpec,
        ops: Ops,
        reader: Reader,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_layers = len(spec.sparse_layers)
        self.device = device
        self.layers: dict[int, PackedExperts] = {}
        self._spec = spec
        self._ops = ops
        self._reader = reader
        self._dtype = dtype

    def load(self, placement: Placement, expert_rank: int) -> None:
        """Read this rank's experts one by one; memory beyond the packed weights is one expert's."""
        self.layers = {
            index: self.allocate(placement.num_slots) for index in range(self.num_layers)
        }
        for move in moves(None, placement):
            if move.expert_rank == expert_rank:
                self.read_slot(
                    self.layers[move.layer_index], move.slot, move.layer_index, move.expert
                )

    def allocate(self, num_slots: int) -> PackedExperts:
        """Room for one layer; what lies in it is undefined."""
        spec = self._spec
        return self._ops.alloc_experts(num_slots, spec.hidden, spec.moe.width, self._dtype)

    def read_slot(self, packed: PackedExperts, slot: int, layer_index: int, expert: int) -> None:
        """Fill a slot of a layer's room from the checkpoint."""
        layer = self._spec.sparse_layers[layer_index]
        shapes = self._spec.expert_tensors(layer, expert)
        gate, up, down = (
            self._reader.read(name, dims).to(dtype=self._dtype, device=self.device)
            for name, dims in shapes.items()
        )
        self._ops.pack_expert(packed, slot, gate, up, down)


def slot_parts(packed: PackedExperts, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The packed weights of a slot, flat views: gate and up, down."""
    gate_up = packed.gate_up.view(packed.num_slots, -1)
    down = packed.down.view(packed.num_slots, -1)
    return gate_up[slot], down[slot]
