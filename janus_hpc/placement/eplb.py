"""The placement of DeepSeek's Expert Parallelism Load Balancer (EPLB) for one layer: equal numbers
of tokens on each rank.

Knows nothing of co-activation. It differs from EPLB in one thing: a rank never holds two replicas
of an expert, so an expert has at most as many as there are ranks, and where the packing puts two on
a rank, replicas are exchanged.
"""

import heapq
from collections.abc import Sequence
from itertools import product

import numpy as np

from janus_hpc.placement.replicas import Counts, exact_counts, replica_counts, replica_loads

# Legend: E experts of a layer.


def place_layer(
    counts_E: Counts, num_slots: int, node_of_rank: Sequence[int], num_groups: int
) -> list[list[int]]:
    """The experts of each rank, ascending, after EPLB.

    counts_E: how often each expert was activated. node_of_rank: the node id of each expert rank.
    Hierarchical where the groups of experts divide evenly over the nodes and each node, of as many
    ranks as the others, can fill its slots with its own experts; else global, as with one node.
    """
    ranks_of = _ranks_of_nodes(node_of_rank)
    if not _is_hierarchical(len(counts_E), num_slots, ranks_of, num_groups):
        ranks_of = [list(range(len(node_of_rank)))]
        num_groups = 1
    placed: list[list[int]] = [[] for _ in node_of_rank]
    experts_of = _experts_of_nodes(counts_E, num_groups, len(ranks_of))
    for experts, expert_ranks in zip(experts_of, ranks_of, strict=True):
        packs = _pack_node(counts_E[experts], len(expert_ranks), num_slots)
        for expert_rank, pack in zip(expert_ranks, packs, strict=True):
            placed[expert_rank] = sorted(experts[i] for i in pack)
    return placed


def balanced_packing(weights: Sequence[int], num_packs: int) -> list[list[int]]:
    """Items in packs of equal size: by decreasing weight, each into the lightest pack with room.

    Ties to the lower item and the lower pack. The number of items must be a multiple of num_packs.
    """
    size, rest = divmod(len(weights), num_packs)
    assert not rest, f"{len(weights)} items do not divide over {num_packs=}"
    packs: list[list[int]] = [[] for _ in range(num_packs)]
    heap = [(0, pack) for pack in range(num_packs)]
    for item in sorted(range(len(weights)), key=lambda item: (-weights[item], item)):
        weight, pack = heapq.heappop(heap)
        packs[pack].append(item)
        if len(packs[pack]) < size:
            heapq.heappush(heap, (weight + weights[item], pack))
    return packs


def _ranks_of_nodes(node_of_rank: Sequence[int]) -> list[list[int]]:
    """The expert ranks of each node, nodes by ascending id."""
    return [
        [expert_rank for expert_rank, node in enumerate(node_of_rank) if node == node_id]
        for node_id in sorted(set(node_of_rank))
    ]


def _is_hierarchical(
    num_experts: int, num_slots: int, ranks_of: list[list[int]], num_groups: int
) -> bool:
    num_nodes = len(ranks_of)
    if num_groups <= 0 or num_groups % num_nodes or num_experts % num_groups:
        return False
    if len({len(expert_ranks) for expert_ranks in ranks_of}) != 1:
        return False
    experts_a_node = num_experts // num_nodes
    return num_slots <= experts_a_node <= num_slots * len(ranks_of[0])


def _experts_of_nodes(counts_E: Counts, num_groups: int, num_nodes: int) -> list[list[int]]:
    """The experts of each node, ascending: groups of contiguous experts packed by their counts."""
    size = len(counts_E) // num_groups
    counts = exact_counts(counts_E) or [1] * len(counts_E)
    weights = [sum(counts[group * size : (group + 1) * size]) for group in range(num_groups)]
    return [
        sorted(group * size + i for group, i in product(groups, range(size)))
        for groups in balanced_packing(weights, num_nodes)
    ]


def _pack_node(counts_E: Counts, num_ranks: int, num_slots: int) -> list[list[int]]:
    """The experts of each rank of a node; experts and ranks are numbered inside the node."""
    replicas_E = replica_counts(counts_E, num_ranks * num_slots, num_ranks)
    loads = replica_loads(counts_E, replicas_E)
    experts = np.repeat(np.arange(len(loads)), replicas_E).tolist()
    packs = balanced_packing([loads[expert] for expert in experts], num_ranks)
    ranks = [[experts[item] for item in pack] for pack in packs]
    _make_distinct(ranks, loads)
    return ranks


def _make_distinct(ranks: list[list[int]], loads: Sequence[int]) -> None:
    """Exchange replicas between ranks until no rank holds an expert twice.

    The lowest rank with a duplicate gives its lowest one to a rank that lacks it, for an expert it
    lacks itself or the other has twice; of these exchanges the one with the smallest larger load of
    the two ranks (ties: lowest rank, lowest expert). Each lowers the number of duplicates, and there
    is always one: else a rank would hold all experts of another full rank and one more.
    """
    load_of = [sum(loads[expert] for expert in experts) for experts in ranks]
    while (found := _first_duplicate(ranks)) is not None:
        giver, expert = found
        best: tuple[int, int, int] | None = None
        for other, theirs in enumerate(ranks):
            if expert in theirs:
                continue
            for back in theirs:
                if back in ranks[giver] and theirs.count(back) < 2:
                    continue
                change = loads[expert] - loads[back]
                larger = max(load_of[giver] - change, load_of[other] + change)
                best = min(best or (larger, other, back), (larger, other, back))
        assert best is not None, f"no exchange for {expert=} of {giver=} in {ranks=}"
        _, other, back = best
        ranks[giver][ranks[giver].index(expert)] = back
        ranks[other][ranks[other].index(back)] = expert
        load_of[giver] -= loads[expert] - loads[back]
        load_of[other] += loads[expert] - loads[back]


def _first_duplicate(ranks: list[list[int]]) -> tuple[int, int] | None:
    """The lowest rank that holds an expert twice, and the lowest such expert."""
    for expert_rank, experts in enumerate(ranks):
        if len(set(experts)) < len(experts):
            return expert_rank, min(expert for expert in experts if experts.count(expert) > 1)
    return None
