"""Janus's placement of one layer (appendix B, Algorithm 3): experts that are activated together lie
on different ranks.

Knows nothing of nodes or of other layers. Sums of co-activation are added one by one, never by a
library's reduction, so every machine finds the same placement.
"""

import numpy as np
import numpy.typing as npt

from janus_hpc.placement.refine import refine
from janus_hpc.placement.replicas import Counts, by_load, replica_counts, replica_loads

# Legend: E experts of a layer, R expert ranks.

Sums = npt.NDArray[np.float64]


def place_layer(
    counts_E: Counts, coactivation_EE: Counts | None, num_ranks: int, num_slots: int
) -> list[list[int]]:
    """The experts of each rank, ascending: Algorithm 3, then swaps that lower the largest I(g).

    counts_E: how often each expert was activated. coactivation_EE: how often two experts were
    activated together, symmetric, the diagonal unused; None for the same for all pairs, which leaves
    the numbers of experts and the loads to decide.
    """
    if coactivation_EE is None:
        return [sorted(experts) for experts in algorithm_3(counts_E, None, num_ranks, num_slots)]
    coactivation_EE = pair_weights(coactivation_EE)
    ranks = algorithm_3(counts_E, coactivation_EE, num_ranks, num_slots)
    return refine(ranks, coactivation_EE)


def pair_weights(coactivation_EE: Counts) -> Sums:
    """Co-activation in float64 with a zero diagonal; exact for counts whose sums are below 2**53."""
    weights_EE = coactivation_EE.astype(np.float64)
    np.fill_diagonal(weights_EE, 0.0)
    assert np.array_equal(weights_EE, weights_EE.T), "co-activation is not symmetric"
    assert np.isfinite(weights_EE).all() and (weights_EE >= 0).all(), "not finite or negative"
    return weights_EE


def algorithm_3(
    counts_E: Counts, weights_EE: Sums | None, num_ranks: int, num_slots: int
) -> list[list[int]]:
    """Algorithm 3 as published: the experts of each rank in the order in which they came.

    Replicas by decreasing load (ties: lower expert id), each to the rank with a free slot that does
    not hold the expert and adds least co-activation (ties: fewest experts, smallest load, lowest
    rank). Where no rank qualifies, the bounded swap.
    """
    replicas_E = replica_counts(counts_E, num_ranks * num_slots, num_ranks)
    loads = replica_loads(counts_E, replicas_E)
    if weights_EE is None:
        weights_EE = np.zeros((len(loads), len(loads)))
    layer = _Layer(loads, weights_EE, num_ranks, num_slots)
    for expert in by_load(loads, replicas_E):
        expert_rank = layer.cheapest(expert)
        if expert_rank is None:
            expert_rank = layer.make_room(expert)
        layer.add(expert, expert_rank)
    return layer.ranks


class _Layer:
    """A layer being filled; sums_RE is the co-activation of each expert with those on a rank."""

    def __init__(self, loads: list[int], weights_EE: Sums, num_ranks: int, num_slots: int) -> None:
        self.ranks: list[list[int]] = [[] for _ in range(num_ranks)]
        self._num_slots = num_slots
        self._loads = loads
        self._load_of = [0] * num_ranks
        self._weights_EE = weights_EE
        self._sums_RE = np.zeros((num_ranks, len(loads)))
        self._holds_RE = np.zeros((num_ranks, len(loads)), dtype=np.bool_)
        self._full_R = np.zeros(num_ranks, dtype=np.bool_)

    def cheapest(self, expert: int) -> int | None:
        """The rank that takes the expert at the least added co-activation, None where none can."""
        closed_R = self._holds_RE[:, expert] | self._full_R
        sums_R = np.where(closed_R, np.inf, self._sums_RE[:, expert])
        least = sums_R.min()
        if least == np.inf:
            return None
        tied: list[int] = np.flatnonzero(sums_R == least).tolist()
        return min(
            tied,
            key=lambda expert_rank: (
                len(self.ranks[expert_rank]),
                self._load_of[expert_rank],
                expert_rank,
            ),
        )

    def make_room(self, expert: int) -> int:
        """The bounded swap: a full rank without the expert passes one of its own on to a rank with
        a free slot; the change that adds least co-activation over all ranks is made.

        Ties: lowest full rank, lowest expert passed on, lowest receiving rank. There always is one:
        the full rank has more experts than the receiver, so at least one that the receiver lacks.
        """
        holds_RE, sums_RE = self._holds_RE, self._sums_RE
        receive_RE = np.where(holds_RE | self._full_R[:, None], np.inf, sums_RE)
        removed_RE = sums_RE[:, expert, None] - self._weights_EE[expert] - sums_RE
        change_RE = np.where(
            holds_RE & ~holds_RE[:, expert, None], removed_RE + receive_RE.min(axis=0), np.inf
        )
        giver, passed = divmod(int(change_RE.argmin()), len(self._loads))
        assert np.isfinite(change_RE[giver, passed]), f"no swap for {expert=} in {self.ranks=}"
        receiver = int(receive_RE[:, passed].argmin())
        self._remove(passed, giver)
        self.add(passed, receiver)
        return giver

    def add(self, expert: int, expert_rank: int) -> None:
        """Put a replica on a rank."""
        self.ranks[expert_rank].append(expert)
        self._load_of[expert_rank] += self._loads[expert]
        self._sums_RE[expert_rank] += self._weights_EE[expert]
        self._holds_RE[expert_rank, expert] = True
        self._full_R[expert_rank] = len(self.ranks[expert_rank]) == self._num_slots

    def _remove(self, expert: int, expert_rank: int) -> None:
        self.ranks[expert_rank].remove(expert)
        self._load_of[expert_rank] -= self._loads[expert]
        self._sums_RE[expert_rank] -= self._weights_EE[expert]
        self._holds_RE[expert_rank, expert] = False
        self._full_R[expert_rank] = False
