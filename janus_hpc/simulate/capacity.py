"""What every candidate of a policy can carry within the SLO, and the cheapest plan for a demand.

A demand beyond one deployment is served by several alike, side by side ("pods").
"""

import math
from dataclasses import dataclass

import numpy as np

from janus_hpc.planner.policies import Policy
from janus_hpc.planner.system import Floats, Ints

# Legend: X candidates.


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`pods` copies of one candidate, which is `index` in the policy's grid. `capacity`: tokens a second of all
    of them within the SLO, 0 where they miss it; `cost`: of an hour, `num_ranks` of all.
    """

    index: int
    pods: int
    num_attention: int
    num_expert: int
    num_slots: int
    colocated: bool
    num_ranks: int
    cost: float
    capacity: float

    def __str__(self) -> str:
        split = f"{self.num_attention}a{self.num_expert}e"
        one = f"colocated {self.num_expert}" if self.colocated else split
        return one if self.pods == 1 else f"{self.pods} x {one}"


class Capacity:
    """The search of Janus's Algorithm 2 for any demand at once: more tokens in flight are more tokens a second, so
    a candidate carries a demand if it carries it at its largest batch.
    """

    def __init__(self, policy: Policy, slo_s: float, max_ranks: int, max_pods: int) -> None:
        self.policy = policy
        judged = policy.for_speed(slo_s)
        may_X = policy.allowed(judged)
        self._meets_slo = bool(may_X.any())
        if not self._meets_slo:
            # There must be something to hold.
            judged = policy.for_speed(math.inf)
            may_X = policy.allowed(judged)
        self._judged, self._may = judged, np.flatnonzero(may_X)
        self._ranks_X: Ints = judged.grid.num_ranks()[self._may]
        self._cost_X: Floats = judged.cost[self._may]
        self._rate_X: Floats = judged.tokens_per_s[self._may]
        self._most_X = np.minimum(max_ranks // np.maximum(self._ranks_X, 1), max_pods)

    def plan(self, rate: float) -> Plan | None:
        """The plan for so many tokens a second at the least cost; among those the one with fewest pods, then most
        capacity. None where nothing can carry them.
        """
        pods_X = np.maximum(np.ceil(rate / self._rate_X - 1e-9), 1).astype(np.int64)
        able = np.flatnonzero(pods_X <= self._most_X)
        if not self._meets_slo or not len(able):
            return None
        pods, rates = pods_X[able], self._rate_X[able]
        order = np.lexsort((-pods * rates, pods, pods * self._cost_X[able]))
        return self._make(int(able[order[0]]), int(pods[order[0]]))

    def largest(self) -> Plan | None:
        """The plan that carries most, if need be without the SLO; None where no model fits at all."""
        total_X = self._most_X * self._rate_X
        if not len(total_X) or total_X.max() <= 0:
            return None
        best = np.lexsort((self._cost_X * self._most_X, -total_X))[0]
        return self._make(int(best), int(self._most_X[best]))

    def _make(self, place: int, pods: int) -> Plan:
        index, grid = int(self._may[place]), self._judged.grid
        return Plan(
            index=index,
            pods=pods,
            num_attention=int(grid.num_attention[index]),
            num_expert=int(grid.num_expert[index]),
            num_slots=int(grid.num_slots[index]),
            colocated=bool(grid.colocated[index]),
            num_ranks=pods * int(self._ranks_X[place]),
            cost=pods * float(self._cost_X[place]),
            capacity=pods * float(self._rate_X[place]) if self._meets_slo else 0.0,
        )
