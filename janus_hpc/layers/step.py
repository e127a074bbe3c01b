"""What every layer needs to know of a step: where its tokens sit. Built once a step, read by all layers."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class StepTokens:
    """Legend: T tokens, S sequences, M blocks of the longest sequence, h half of the rotated channels.

    `slots_T` int64 cache slots to write; `block_tables_SM` int32, padded with 0; `sequence_ids_T` and
    `positions_T` int32.
    """

    token_ids_T: torch.Tensor
    positions_T: torch.Tensor
    sequence_ids_T: torch.Tensor
    slots_T: torch.Tensor
    block_tables_SM: torch.Tensor
    cos_Th: torch.Tensor
    sin_Th: torch.Tensor
