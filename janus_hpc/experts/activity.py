"""How often each expert is chosen, and how many activated experts the fullest expert rank has.

A pass is one microbatch of a step in one layer: the experts that it activates are read once for it. Where
every expert rank sees all choices (EGate) one rank's counts are the whole truth; where each sees those of
its own experts (AGate) the ranks' counts are put together at the end, and what would need all ranks in each
pass is not known.
"""

from collections.abc import Sequence

import numpy as np
import torch

# Legend: L sparse layers, E experts, R expert ranks, N tokens, K choices, M rows of this rank's experts.


class ExpertActivity:
    """Accumulates over passes; `placement` lists each expert rank's experts (contiguous, ascending).

    `partial`: only this rank's own experts were counted, so that `a_max_*` are of this rank alone.
    """

    def __init__(
        self, sparse_layers: Sequence[int], num_experts: int, placement: Sequence[range]
    ) -> None:
        self.index_of_layer = {layer: i for i, layer in enumerate(sparse_layers)}
        self._num_experts = num_experts
        self._starts_R = np.array([experts.start for experts in placement], dtype=np.int64)
        self.clear()

    def clear(self) -> None:
        """Forget all passes."""
        num_layers = len(self.index_of_layer)
        self.partial = False
        self.tokens_LE = np.zeros((num_layers, self._num_experts), dtype=np.int64)
        self.a_max_sum_L = np.zeros(num_layers, dtype=np.int64)
        self.a_max_max_L = np.zeros(num_layers, dtype=np.int64)
        self.num_passes_L = np.zeros(num_layers, dtype=np.int64)

    def record(self, layer: int, ids_NK: torch.Tensor) -> None:
        """Count one pass's choices of all tokens."""
        counts_E = self._count(ids_NK)
        a_max = int(np.add.reduceat(counts_E > 0, self._starts_R, dtype=np.int64).max())
        self._add(layer, counts_E, a_max)

    def record_own(self, layer: int, ids_M: torch.Tensor) -> None:
        """Count one pass's choices of this rank's experts; also where there are none."""
        self.partial = True
        counts_E = self._count(ids_M)
        self._add(layer, counts_E, int(np.count_nonzero(counts_E)))

    def a_max_mean(self) -> np.ndarray:
        """Mean over passes of the largest count of activated experts on a rank, per layer; NaN if partial."""
        if self.partial:
            return np.full(len(self.index_of_layer), np.nan)
        mean: np.ndarray = self.a_max_sum_L / np.maximum(self.num_passes_L, 1)
        return mean

    def _count(self, ids: torch.Tensor) -> np.ndarray:
        counts_E: np.ndarray = np.bincount(ids.cpu().numpy().ravel(), minlength=self._num_experts)
        return counts_E

    def _add(self, layer: int, counts_E: np.ndarray, a_max: int) -> None:
        index = self.index_of_layer[layer]
        self.tokens_LE[index] += counts_E
        self.a_max_sum_L[index] += a_max
        self.a_max_max_L[index] = max(self.a_max_max_L[index], a_max)
        self.num_passes_L[index] += 1


def over_ranks(activities: Sequence[ExpertActivity]) -> ExpertActivity | None:
    """The expert ranks' counts as one; None of none. The largest a_max is the ranks' largest in any case."""
    if not activities:
        return None
    whole = activities[0]
    if any(its.partial for its in activities):
        whole.partial = True
        whole.tokens_LE = np.sum([its.tokens_LE for its in activities], axis=0)
        whole.a_max_max_L = np.max([its.a_max_max_L for its in activities], axis=0)
        whole.num_passes_L = np.max([its.num_passes_L for its in activities], axis=0)
    return whole
