"""How many replicas each expert of a layer gets, and the load one replica then bears, both exact.

Knows nothing of ranks; loads are Python integers, so a choice never hangs on rounding.
"""

import heapq
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

# Legend: E experts of a layer.

Counts = npt.NDArray[Any]


def exact_counts(counts_E: Counts) -> list[int] | None:
    """Counts as integers on one common scale, None where all are zero: nothing is known.

    counts_E: how often each expert was activated, integers or floats, finite and not negative.
    """
    ratios = [count.as_integer_ratio() for count in counts_E.tolist()]
    scale = math.lcm(*(denominator for _, denominator in ratios))
    exact = [numerator * (scale // denominator) for numerator, denominator in ratios]
    assert all(count >= 0 for count in exact), f"negative counts: {counts_E=}"
    return exact if any(exact) else None


def replica_counts(
    counts_E: Counts, num_slots_total: int, max_per_expert: int
) -> npt.NDArray[np.int64]:
    """Replicas of each expert (Janus, appendix B): one each, then every spare slot to the expert
    with the largest load per replica c(e)/R(e), ties to the lowest id.

    No expert gets more than `max_per_expert` (the number of ranks); slots may be left over for that
    reason alone. Counts that are zero everywhere mean a uniform load: replicas spread evenly over
    the ids.
    """
    num_experts = len(counts_E)
    assert max_per_expert > 0, f"{max_per_expert=}"
    assert num_slots_total >= num_experts, f"{num_slots_total=} {num_experts=}"
    num_spare = min(num_slots_total, num_experts * max_per_expert) - num_experts
    exact = exact_counts(counts_E)
    if exact is None:
        return _even_counts(num_experts, num_spare)
    replicas_E = np.ones(num_experts, dtype=np.int64)
    if max_per_expert == 1:
        return replicas_E
    # c * scale / r is an integer for every r: comparing these compares the fractions c / r.
    scale = math.lcm(*range(1, max_per_expert + 1))
    heap = [(-count * scale, expert) for expert, count in enumerate(exact)]
    heapq.heapify(heap)
    for _ in range(num_spare):
        expert = heap[0][1]
        replicas_E[expert] += 1
        num_replicas = int(replicas_E[expert])
        if num_replicas < max_per_expert:
            heapq.heapreplace(heap, (-exact[expert] * scale // num_replicas, expert))
        else:
            heapq.heappop(heap)
    return replicas_E


def replica_loads(counts_E: Counts, replicas_E: npt.NDArray[np.int64]) -> list[int]:
    """The load c(e)/R(e) of one replica of each expert, exact on a scale common to the layer.

    A layer of zero counts is taken as uniform: each expert has the same load.
    """
    exact = exact_counts(counts_E) or [1] * len(counts_E)
    replicas = [int(num_replicas) for num_replicas in replicas_E]
    scale = math.lcm(*replicas)
    return [count * (scale // num) for count, num in zip(exact, replicas, strict=True)]


def by_load(loads: Sequence[int], replicas_E: npt.NDArray[np.int64]) -> list[int]:
    """The expert of each replica, replicas by decreasing load; ties to the lower expert id, so that
    replicas of one expert follow one another.
    """
    order = sorted(range(len(loads)), key=lambda expert: (-loads[expert], expert))
    return [expert for expert in order for _ in range(int(replicas_E[expert]))]


def _even_counts(num_experts: int, num_spare: int) -> npt.NDArray[np.int64]:
    """One replica each and the spare ones spread over the ids at equal distances."""
    every, some = divmod(num_spare, num_experts)
    replicas_E = np.full(num_experts, 1 + every, dtype=np.int64)
    replicas_E[np.arange(some) * num_experts // max(some, 1)] += 1
    return replicas_E
