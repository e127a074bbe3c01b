"""Counts of what the gate chose: tokens an expert and layer, and the largest number of activated experts a rank.

Every expert rank sees the same choices (EGate), so one rank's counts are the whole truth.
"""

from collections.abc import Sequence

import numpy as np
import torch

# Legend: L sparse layers, E experts, R expert ranks, N tokens, K choices.


class ExpertActivity:
    """Accumulates over steps; `placement` lists each expert rank's experts (contiguous, ascending)."""

    def __init__(
        self, sparse_layers: Sequence[int], num_experts: int, placement: Sequence[range]
    ) -> None:
        self.index_of_layer = {layer: i for i, layer in enumerate(sparse_layers)}
        num_layers = len(sparse_layers)
        self.tokens_LE = np.zeros((num_layers, num_experts), dtype=np.int64)
        self.a_max_sum_L = np.zeros(num_layers, dtype=np.int64)
        self.a_max_max_L = np.zeros(num_layers, dtype=np.int64)
        self.num_steps_L = np.zeros(num_layers, dtype=np.int64)
        self._starts_R = np.array([experts.start for experts in placement], dtype=np.int64)

    def record(self, layer: int, ids_NK: torch.Tensor) -> None:
        """Count one layer's choices of one step."""
        index = self.index_of_layer[layer]
        flat = ids_NK.cpu().numpy().ravel()
        counts_E = np.bincount(flat, minlength=self.tokens_LE.shape[1])
        self.tokens_LE[index] += counts_E
        a_max = int(np.add.reduceat(counts_E > 0, self._starts_R, dtype=np.int64).max())
        self.a_max_sum_L[index] += a_max
        self.a_max_max_L[index] = max(self.a_max_max_L[index], a_max)
        self.num_steps_L[index] += 1

    def a_max_mean(self) -> np.ndarray:
        """Mean over steps of the largest count of activated experts on a rank, per layer."""
        mean: np.ndarray = self.a_max_sum_L / np.maximum(self.num_steps_L, 1)
        return mean
