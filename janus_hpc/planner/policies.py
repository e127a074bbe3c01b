"""What Janus and the published systems beside it would choose: each as a system, candidates, and a rule.

Every policy is judged by the one model of `tpot`; only what it may choose from differs. Pure.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from janus_hpc.errors import UsageError
from janus_hpc.kernels.native.balance_library import BalanceLibrary
from janus_hpc.planner.a_max_lookup import AMaxLookup, Routing
from janus_hpc.planner.chunks import in_chunks
from janus_hpc.planner.profile_data import Profile
from janus_hpc.planner.search import OK, Judged, for_rate, for_speed
from janus_hpc.planner.system import KINDS, PART_BYTES, Bools, Context, Grid, System, make_grid

POLICIES = ("janus", "megascale", "xdeepserve", "monolithic")
# Sizes of Janus's SGLang baseline, and the step of its xDeepServe baseline (arXiv 2512.13525, evaluation).
TIERS = (8, 16, 32, 64)
STEP = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """`plain`: the profile of expert ranks that take no balancing decision; the same one where that is unknown.
    `slo_s`: seconds of a step, its mean; `part_bytes`: as in System.
    """

    profile: Profile
    plain: Profile
    routing: Routing
    context: Context
    slo_s: float
    max_ranks: int
    max_sequences: int = 512
    max_step_tokens: int = 512
    ranks_per_node: int = 0
    part_bytes: int = PART_BYTES
    library: BalanceLibrary | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Policy:
    """A system with its candidates. `is_balanced`: of the candidates with the same expert ranks and slots only
    the one whose roles take most nearly as long may be chosen.
    """

    name: str
    system: System
    grid: Grid
    is_balanced: bool = False

    def for_speed(self, slo_s: float, *, most: int | None = None) -> Judged:
        """The largest batch of every candidate within the SLO, at most `most`."""
        return in_chunks(self.grid, lambda its: for_speed(self.system, its, slo_s, most=most))

    def for_rate(self, rate: float, slo_s: float) -> Judged:
        """Every candidate at its steady state under `rate` tokens a second."""
        return in_chunks(self.grid, lambda its: for_rate(self.system, its, rate, slo_s))

    def allowed(self, judged: Judged) -> Bools:
        """Feasible candidates that the policy's rule leaves."""
        return judged.feasible & self.balanced(judged) if self.is_balanced else judged.feasible

    def balanced(self, judged: Judged) -> Bools:
        """MegaScale-Infer's BALANCE (arXiv 2504.02263, Algorithm 1): for expert ranks and slots, the number of
        attention ranks with the least |T_attention - T_expert|, among those with a batch.
        """
        difference = np.abs(judged.times.attention_s - judged.times.moe_s) / np.maximum(
            judged.times.microbatches, 1
        )
        difference = np.where(judged.batch > 0, difference, np.inf)
        grid = judged.grid
        order = np.lexsort((grid.num_attention, difference, grid.num_slots, grid.num_expert))
        group = np.stack([grid.num_expert[order], grid.num_slots[order]])
        is_first = np.append(True, (np.diff(group, axis=1) != 0).any(axis=0))
        chosen = np.zeros(len(grid), dtype=np.bool_)
        chosen[order[is_first[: len(order)]]] = True
        return chosen


def make_policies(inputs: Inputs, wanted: Sequence[str] = POLICIES) -> dict[str, Policy]:
    """Name -> policy. Errors: UsageError for an unknown name, listing the known ones."""
    makers: dict[str, Callable[[Inputs], Policy]] = {
        "janus": _janus,
        "megascale": _megascale,
        "xdeepserve": _xdeepserve,
        "monolithic": _monolithic,
    }
    for name in wanted:
        if name not in makers:
            raise UsageError(f"unknown policy {name!r}; known are {', '.join(POLICIES)}")
    return {name: makers[name](inputs) for name in wanted}


def plan_all(
    inputs: Inputs, rate: float, wanted: Sequence[str] = POLICIES
) -> dict[str, tuple[Judged, int | None]]:
    """Of each policy all candidates under `rate` tokens a second, and the index of its plan: the cheapest one;
    None where none is feasible.
    """
    return {
        name: _cheapest(policy, policy.for_rate(rate, inputs.slo_s))
        for name, policy in make_policies(inputs, wanted).items()
    }


def best_at_batch(policy: Policy, batch: int, slo_s: float) -> tuple[Judged, int | None]:
    """The plan with the most tokens per second and rank whose step of exactly this batch meets the SLO (Janus,
    Fig. 8); None where none does.
    """
    judged = policy.for_speed(slo_s, most=batch)
    allowed = policy.allowed(judged) & (judged.batch == batch)
    per_rank = np.where(allowed, judged.tokens_per_s / judged.grid.num_ranks(), 0.0)
    best = int(per_rank.argmax()) if len(per_rank) else 0
    return judged, best if allowed.any() else None


def _cheapest(policy: Policy, judged: Judged) -> tuple[Judged, int | None]:
    allowed = policy.allowed(judged)
    order = replace(judged, reason=np.where(allowed, OK, -1)).order("cost")
    return judged, int(order[0]) if allowed.any() else None


def _janus(inputs: Inputs) -> Policy:
    """Any numbers of either role, with spare slots, the gate on the expert side, and the fastest exchange."""
    system = _system(inputs, inputs.profile, "aebs", gate="egate", kinds=KINDS[1:])
    return Policy(name="janus", system=system, grid=_free_grid(system, inputs.max_ranks))


def _megascale(inputs: Inputs) -> Policy:
    """Roles that take equally long; any replica of an expert; the gate on the attention side."""
    system = _system(inputs, inputs.plain, "random")
    grid = _free_grid(system, inputs.max_ranks)
    return Policy(name="megascale", system=system, grid=grid, is_balanced=True)


def _xdeepserve(inputs: Inputs) -> Policy:
    """EPLB's placement and use of replicas; in steps of 4 ranks."""
    system = _system(inputs, inputs.plain, "eplb")
    grid = _free_grid(system, inputs.max_ranks)
    return Policy(name="xdeepserve", system=system, grid=grid.pick(grid.num_ranks() % STEP == 0))


def _monolithic(inputs: Inputs) -> Policy:
    """All ranks do both, one replica an expert, in sizes of a few tiers; no microbatches."""
    system = replace(_system(inputs, inputs.plain, "first"), microbatches=(1,))
    tiers = [size for size in TIERS if size <= inputs.max_ranks]
    grid = make_grid(system, [], [], colocated=tiers)
    fewest = -(-inputs.profile.model.num_experts // np.maximum(grid.num_expert, 1))
    return Policy(name="monolithic", system=system, grid=grid.pick(grid.num_slots == fewest))


def _system(
    inputs: Inputs,
    profile: Profile,
    balance: str,
    *,
    gate: Literal["egate", "agate"] = "agate",
    kinds: tuple[str, ...] = ("one-phase",),
) -> System:
    placement: Literal["auto", "eplb"] = "eplb" if balance == "eplb" else "auto"
    return System(
        attention=profile,
        experts=profile,
        a_max=AMaxLookup(inputs.routing, policy=balance, kind=placement, library=inputs.library),
        context=inputs.context,
        max_sequences=inputs.max_sequences,
        max_step_tokens=inputs.max_step_tokens,
        ranks_per_node=inputs.ranks_per_node,
        gate=gate,
        part_bytes=inputs.part_bytes,
        kinds=kinds,
    )


def _free_grid(system: System, max_ranks: int) -> Grid:
    numbers = range(1, max_ranks)
    return make_grid(system, numbers, numbers, max_ranks=max_ranks)
