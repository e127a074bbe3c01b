"""What every layer needs to know of a step: where its tokens sit. Built once a step, read by all layers."""

from collections.abc import Sequence
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

    def split(self, sizes: Sequence[int]) -> list["StepTokens"]:
        """Microbatches of `sizes` consecutive tokens, views all; 0 is a size like any other.

        A sequence may be cut: a layer then has to take the microbatches in this order, since the later
        one reads the keys and values that the earlier one stores.
        """
        if len(sizes) == 1:
            return [self]
        columns = (
            self.token_ids_T,
            self.positions_T,
            self.sequence_ids_T,
            self.slots_T,
            self.cos_Th,
            self.sin_Th,
        )
        parts = zip(*(column.split(list(sizes)) for column in columns), strict=True)
        return [
            StepTokens(
                token_ids_T=token_ids_T,
                positions_T=positions_T,
                sequence_ids_T=sequence_ids_T,
                slots_T=slots_T,
                block_tables_SM=self.block_tables_SM,
                cos_Th=cos_Th,
                sin_Th=sin_Th,
            )
            for token_ids_T, positions_T, sequence_ids_T, slots_T, cos_Th, sin_Th in parts
        ]
