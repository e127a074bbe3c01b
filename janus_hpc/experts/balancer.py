"""Which replica serves each choice, in every layer, under the placement in force.

Every rank that asks with the same ids in the same order gets the same answer, so ranks need not talk. Knows
nothing of weights or of how tokens travel.
"""

from collections.abc import Sequence

import torch

from janus_hpc.kernels.ops import Ops
from janus_hpc.kernels.slot_lists import SlotLists
from janus_hpc.kernels.slot_map import Balanced, SlotMap
from janus_hpc.placement.placement import Placement

# Legend: N tokens, K choices a token, L sparse layers.


class Balancer:
    """Applies a policy of `kernels.assign.POLICIES`; `layer_ids` are the sparse layers, ascending."""

    def __init__(
        self,
        ops: Ops,
        placement: Placement,
        layer_ids: Sequence[int],
        policy: str,
        seed: int,
        device: torch.device,
    ) -> None:
        self._ops = ops
        self._index_of_layer = {layer: index for index, layer in enumerate(layer_ids)}
        self._policy = policy
        self._seed = seed
        self._device = device
        self.use(placement)
        self.reset()

    def use(self, placement: Placement) -> None:
        """Take another placement from the next decision on."""
        assert placement.num_layers == len(self._index_of_layer), f"{placement.num_layers=}"
        self.placement = placement
        self._slot_maps = {
            layer: SlotMap.make(
                SlotLists(placement.slots_LRC[index].tolist(), placement.num_experts), self._device
            )
            for layer, index in self._index_of_layer.items()
        }

    def reset(self) -> None:
        """Count decisions from the start again; to be called on all ranks alike."""
        self._num_decisions = dict.fromkeys(self._index_of_layer, 0)

    def balance(self, layer: int, ids_NK: torch.Tensor) -> Balanced:
        """The slots of one pass's choices (int32), counted over all expert ranks."""
        number = self._num_decisions[layer]
        self._num_decisions[layer] = number + 1
        # What the policy random draws by: another one for every pass and layer.
        draw = (self._seed << 40) + number * len(self._index_of_layer) + self._index_of_layer[layer]
        return self._ops.balance(ids_NK, self._slot_maps[layer], self._policy, draw % (1 << 63))
