"""The plain placement: contiguous experts on each rank, spare slots with replicas of busy ones.

Knows nothing of co-activation or nodes.
"""

from fractions import Fraction
from heapq import heapify, heappop, heappush
from itertools import chain

from janus_hpc.placement.replicas import (
    Counts,
    by_load,
    exact_counts,
    replica_counts,
    replica_loads,
)
from janus_hpc.topology import contiguous_experts

# Legend: E experts of a layer.


def place_layer(counts_E: Counts, num_ranks: int, num_slots: int) -> list[list[int]]:
    """The experts of each rank, in slot order: first its contiguous ones, then spare replicas.

    Each spare replica, by decreasing load, goes to the rank with the fewest experts that does not
    hold it (ties: lowest load, lowest rank). The contiguous experts stay where they are, so there
    may be no such rank; the slot then gets the busiest expert its rank does not hold.
    """
    num_experts = len(counts_E)
    own = contiguous_experts(num_experts, min(num_ranks, num_experts))
    ranks = [list(experts) for experts in own] + [[] for _ in range(num_ranks - len(own))]
    replicas_E = replica_counts(counts_E, num_ranks * num_slots, num_ranks)
    loads = replica_loads(counts_E, replicas_E)
    held = [set(experts) for experts in ranks]
    # Ranks with room, the next to be filled first.
    room = [
        (len(experts), sum(loads[expert] for expert in experts), expert_rank)
        for expert_rank, experts in enumerate(ranks)
        if len(experts) < num_slots
    ]
    heapify(room)
    for expert in by_load(loads, replicas_E - 1):
        passed = []
        while room and expert in held[room[0][2]]:
            passed.append(heappop(room))
        if room:
            count, load, expert_rank = heappop(room)
            ranks[expert_rank].append(expert)
            held[expert_rank].add(expert)
            if count + 1 < num_slots:
                passed.append((count + 1, load + loads[expert], expert_rank))
        for entry in passed:
            heappush(room, entry)
    _fill(ranks, counts_E, num_slots)
    return ranks


def _fill(ranks: list[list[int]], counts_E: Counts, num_slots: int) -> None:
    """Give each slot still empty to the expert with the largest load per replica that its rank
    lacks, ties to the lowest id.
    """
    counts = exact_counts(counts_E) or [1] * len(counts_E)
    replicas = [0] * len(counts)
    for expert in chain.from_iterable(ranks):
        replicas[expert] += 1
    for experts in ranks:
        while len(experts) < min(num_slots, len(counts)):
            lacking = [expert for expert in range(len(counts)) if expert not in experts]
            busiest = max(lacking, key=lambda e: (Fraction(counts[e], replicas[e]), -e))
            experts.append(busiest)
            replicas[busiest] += 1
