"""One policy over a demand: a plan every interval, and what came of it.

Knows nothing of files; decisions are `capacity`'s.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from janus_hpc.planner.search import for_rate
from janus_hpc.simulate.capacity import Capacity, Plan
from janus_hpc.simulate.demand import Demand
from janus_hpc.simulate.moves import MoveCost, Source, move_cost

_RATE_STEP = 1.01


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How plans follow the demand. `least_saving`: the share of the cost that a smaller plan must save, or the
    present one stays; `lag`: intervals between what is measured and what is planned for; `headroom`: the share of
    it that is added.
    """

    slo_s: float
    moves_from: Source = "ranks"
    least_saving: float = 0.0
    lag: int = 0
    headroom: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Interval:
    """`served`: tokens a second, at most the plan's capacity; `tpot_s`: at the plan's steady state."""

    start_s: float
    length_s: float
    rate: float
    served: float
    plan: Plan | None
    tpot_s: float | None
    meets_slo: bool
    move: MoveCost


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """All intervals of one policy, and sums over them."""

    policy: str
    intervals: list[Interval] = field(default_factory=list)

    def summary(self) -> dict[str, float | int]:
        """Ranks are GPUs where a rank owns one; GPU-hours of moves come on top of those held."""
        its = self.intervals
        hours = np.array([i.length_s for i in its]) / 3600
        ranks = np.array([i.plan.num_ranks if i.plan else 0 for i in its])
        asked = np.array([i.rate for i in its])
        served = np.array([i.served for i in its])
        good = np.array([i.meets_slo for i in its])
        held = float((ranks * hours).sum())
        moving = sum(i.move.rank_seconds for i in its) / 3600
        tokens = float((asked * hours).sum())
        return {
            "slo_intervals": float((good * hours).sum() / hours.sum()),
            "slo_tokens": float((asked * hours * good).sum() / tokens) if tokens else 1.0,
            "gpu_hours": held,
            "move_gpu_hours": moving,
            "cost": float(sum(i.plan.cost * h for i, h in zip(its, hours, strict=True) if i.plan)),
            "num_moves": sum(i.move.num_ranks > 0 for i in its),
            "moved_bytes": sum(i.move.num_bytes for i in its),
            "min_gpus": int(ranks.min()),
            "mean_gpus": held / float(hours.sum()),
            "max_gpus": int(ranks.max()),
            "mean_tpg": float((served * hours).sum()) / held if held else 0.0,
        }


def play(capacity: Capacity, demand: Demand, rules: Rules) -> Timeline:
    """The demand of every interval, planned for as the rules say. Where nothing can carry it, the largest plan is
    held and the interval counts as a violation.
    """
    found = Timeline(policy=capacity.policy.name)
    profile = capacity.policy.system.experts
    steps = _Steps(capacity, rules.slo_s)
    present: Plan | None = None
    for i, rate in enumerate(demand.rates_T.tolist()):
        told = float(demand.rates_T[max(i - rules.lag, 0)]) * (1 + rules.headroom)
        plan = _next(capacity, present, told, rules)
        move = MoveCost()
        if present is not None and plan is not None:
            move = move_cost(profile, present, plan, rules.moves_from)
        meets = plan is not None and rate <= plan.capacity
        found.intervals.append(
            Interval(
                start_s=float(demand.starts_T[i]),
                length_s=float(demand.lengths_T[i]),
                rate=rate,
                served=min(rate, plan.capacity) if plan else 0.0,
                plan=plan,
                tpot_s=steps.tpot_s(plan, rate) if plan else None,
                meets_slo=meets,
                move=move,
            )
        )
        present = plan
    return found


def _next(capacity: Capacity, present: Plan | None, rate: float, rules: Rules) -> Plan | None:
    wanted = capacity.plan(rate)
    if wanted is None:
        return capacity.largest()
    if present is None or present.capacity < rate:
        return wanted
    return wanted if wanted.cost < present.cost * (1 - rules.least_saving) else present


class _Steps:
    """Step times at steady states, remembered for rates within 1 % of each other."""

    def __init__(self, capacity: Capacity, slo_s: float) -> None:
        self._policy, self._slo_s = capacity.policy, slo_s
        self._known: dict[tuple[int, int], float | None] = {}

    def tpot_s(self, plan: Plan, rate: float) -> float | None:
        """Seconds of a step; None beyond what memory holds."""
        one = min(rate, plan.capacity) / plan.pods
        step = math.floor(math.log(max(one, 1.0)) / math.log(_RATE_STEP))
        key = plan.index, step
        if key not in self._known:
            grid = self._policy.grid.pick(np.array([plan.index]))
            judged = for_rate(self._policy.system, grid, _RATE_STEP**step, self._slo_s)
            self._known[key] = float(judged.times.tpot_s[0]) if judged.batch[0] else None
        return self._known[key]
