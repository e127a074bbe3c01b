"""The slots of one layer over all expert ranks, as tensors that the balancing kernels read."""

from dataclasses import dataclass

import torch
from janus_hpc.kernels.slot_lists import SlotLists
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SlotMap:
    """E experts, R ranks, W words of a rank set. Tensors on the device of the operations.

    slot_of_ER int32: the slot, counted over all ranks, of expert e on rank r, or -1. hosts_EW int64: the
    ranks of each expert as a bit set. primary_E int32: see `SlotLists`.
    """

    lists: SlotLists
    slot_of_ER: Tensor
    hosts_EW: Tensor
    primary_E: Tensor

    @classmethod
    def make(cls, lists: SlotLists, device: torch.device) -> "SlotMap":
        num_experts = lists.num_experts
        return cls(
            lists,
            _tensor(lists.slot_of_ER, torch.int32, device).view(num_experts, -1),
            _tensor(lists.host_words(), torch.int64, device).view(num_experts, -1),
            _tensor(lists.primary, torch.int32, device),
        )


@dataclass(frozen=True)
class Balanced:
    """What a policy chose for T tokens of J choices. slots_TJ int32: counted over all ranks; counts_E int32:
    tokens of each expert; loads_R int32: activated experts of each rank.
    """

    slots_TJ: Tensor
    counts_E: Tensor
    loads_R: Tensor


def _tensor(values: list[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)
