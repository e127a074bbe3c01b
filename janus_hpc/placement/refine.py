"""Swaps between ranks that lower the largest co-activation within a rank, the objective I(g) of Janus.

Knows nothing of loads or replica counts: a swap keeps the replicas of each expert and the number of
experts of each rank.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

# Legend: E experts of a layer, R expert ranks, C slots of a rank, K slots of all ranks.

Sums = npt.NDArray[np.float64]
SWAPS_PER_RANK = 2


def coactivation_within(
    ranks: Sequence[Sequence[int]], weights_EE: npt.NDArray[np.float64]
) -> list[float]:
    """I(g) of each rank (Janus, appendix B): co-activation added over the pairs of experts on it.

    ranks: the experts of each rank, none twice; weights_EE symmetric with a zero diagonal.
    """
    return [
        math.fsum(weights_EE[np.ix_(experts, experts)].ravel().tolist()) / 2 if experts else 0.0
        for experts in ranks
    ]


def refine(ranks: list[list[int]], weights_EE: Sums) -> list[list[int]]:
    """Swap one expert of the rank with the largest I(g) for one of another rank, while the larger
    I(g) of the two ranks gets smaller; at most SWAPS_PER_RANK times the number of ranks.

    Takes the swap with the smallest result (ties: lowest slot, then lowest rank and slot of the
    other). Returns the experts of each rank, ascending; untouched where ranks differ in size.
    """
    ranks = [sorted(experts) for experts in ranks]
    if len(ranks) < 2 or len({len(experts) for experts in ranks}) != 1:
        return ranks
    state = _Swaps(ranks, weights_EE)
    for _ in range(SWAPS_PER_RANK * len(ranks)):
        if not state.swap():
            break
    return [sorted(experts) for experts in state.experts_RC.tolist()]


class _Swaps:
    """A full layer, and per rank its I(g) and each expert's co-activation with the rank's own."""

    def __init__(self, ranks: list[list[int]], weights_EE: Sums) -> None:
        self.experts_RC = np.array(ranks)
        num_ranks, num_slots = self.experts_RC.shape
        self._weights_EE = weights_EE
        self._within_R = np.array(coactivation_within(ranks, weights_EE))
        self._sums_RE = np.zeros((num_ranks, len(weights_EE)))
        self._holds_RE = np.zeros((num_ranks, len(weights_EE)), dtype=np.bool_)
        for slot in range(num_slots):
            self._sums_RE += weights_EE[self.experts_RC[:, slot]]
        self._holds_RE[np.arange(num_ranks)[:, None], self.experts_RC] = True

    def swap(self) -> bool:
        """Make the best swap of the rank with the largest I(g), if it has one that helps."""
        worst = int(self._within_R.argmax())
        after_CK = self._after(worst)
        slot, place = divmod(int(after_CK.argmin()), after_CK.shape[1])
        if not after_CK[slot, place] < self._within_R[worst]:
            return False
        self._exchange(worst, slot, *divmod(place, self.experts_RC.shape[1]))
        return True

    def _after(self, worst: int) -> Sums:
        """The larger I(g) of the two ranks once they swapped; infinite where they cannot."""
        num_slots = self.experts_RC.shape[1]
        mine_C, others_K = self.experts_RC[worst], self.experts_RC.ravel()
        pair_CK = self._weights_EE[mine_C[:, None], others_K]
        gain_K = self._sums_RE[worst, others_K]
        here_CK = self._within_R[worst] - self._sums_RE[worst, mine_C][:, None] + gain_K - pair_CK
        lost_K = np.take_along_axis(self._sums_RE, self.experts_RC, axis=1).ravel()
        left_K = np.repeat(self._within_R, num_slots) - lost_K
        there_CK = left_K + np.repeat(self._sums_RE[:, mine_C].T, num_slots, axis=1) - pair_CK
        here_too_K = self._holds_RE[worst, others_K]
        there_too_CK = np.repeat(self._holds_RE[:, mine_C].T, num_slots, axis=1)
        return np.where(here_too_K | there_too_CK, np.inf, np.maximum(here_CK, there_CK))

    def _exchange(self, worst: int, slot: int, other: int, other_slot: int) -> None:
        mine = int(self.experts_RC[worst, slot])
        theirs = int(self.experts_RC[other, other_slot])
        for expert_rank, place, leaves, comes in (
            (worst, slot, mine, theirs),
            (other, other_slot, theirs, mine),
        ):
            self._within_R[expert_rank] -= self._sums_RE[expert_rank, leaves]
            self._sums_RE[expert_rank] -= self._weights_EE[leaves]
            self._within_R[expert_rank] += self._sums_RE[expert_rank, comes]
            self._sums_RE[expert_rank] += self._weights_EE[comes]
            self._holds_RE[expert_rank, leaves] = False
            self._holds_RE[expert_rank, comes] = True
            self.experts_RC[expert_rank, place] = comes
