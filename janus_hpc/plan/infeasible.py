"""The message where no candidate is feasible: which one comes nearest, and what limits it."""

from dataclasses import replace

import numpy as np

from janus_hpc.errors import UsageError
from janus_hpc.plan.decide import Decision
from janus_hpc.plan.reasons import Words, duration, figure, ms
from janus_hpc.plan.request import Request
from janus_hpc.planner.chunks import in_chunks
from janus_hpc.planner.search import DEADLINE, MEMORY, NODES, for_speed
from janus_hpc.planner.system import System


def nothing_feasible(
    request: Request, system: System, decision: Decision, words: Words
) -> UsageError:
    """Why there is no plan."""
    judged, limit = decision.judged, _at_most(request.most_ranks)
    if not len(judged.grid):
        return UsageError(_no_candidate(request, system))
    late = np.flatnonzero(judged.reason == DEADLINE)
    if len(late) and judged.job_s is not None:
        at = int(late[judged.job_s[late].argmin()])
        return UsageError(
            f"no plan of {limit} ends by the deadline: the fastest, {words.name(at)}, takes "
            f"{duration(float(judged.job_s[at]))} of {duration(request.deadline_s)}; give more ranks or more time"
        )
    if decision.objective == "rate":
        judged = in_chunks(judged.grid, lambda part: for_speed(system, part, request.slo_s))
        at = int(judged.order("speed")[0])
        if judged.feasible[at]:
            return UsageError(
                f"no plan of {limit} makes {request.rate:g} tokens/s{_under(request)}: the nearest, "
                f"{words.name(at)}, makes {figure(float(judged.tokens_per_s[at]))} (batch {judged.batch[at]}, "
                f"TPOT {ms(float(judged.times.tpot_s[at]))}); give more ranks, or a looser SLO"
            )
        decision = replace(decision, judged=judged)
        words = Words(request, system, decision)
    fits = np.flatnonzero((judged.reason != MEMORY) & (judged.reason != NODES))
    if len(fits):
        at = int(fits[judged.times.tpot_s[fits].argmin()])
        return UsageError(
            f"no plan of {limit} meets the SLO: the nearest, {words.name(at)}: {words.reason(at)} "
            f"({_shares(decision, at)})"
        )
    among = np.flatnonzero(judged.reason == NODES)
    if not len(among):
        among = np.flatnonzero(judged.reason == MEMORY)
    at = min((int(its) for its in among), key=words.excess_bytes)
    return UsageError(f"no plan of {limit} fits: the nearest, {words.name(at)}: {words.reason(at)}")


def _at_most(num_ranks: int) -> str:
    return f"at most {num_ranks} {'rank' if num_ranks == 1 else 'ranks'}"


def _no_candidate(request: Request, system: System) -> str:
    num_experts, most = system.experts.model.num_experts, request.most_ranks
    if request.slots:
        fewest = -(-num_experts // request.slots)
        return (
            f"there is no candidate: {num_experts} experts in {request.slots} slots need {fewest} expert ranks, "
            f"and there are {_at_most(most)}; give more ranks, or more --slots (at most {num_experts})"
        )
    return f"there is no candidate: {most} rank cannot have both roles; give more ranks"


def _under(request: Request) -> str:
    return "" if request.slo_tpot_ms is None else f" under a TPOT of {ms(request.slo_s)}"


def _shares(decision: Decision, at: int) -> str:
    times = decision.judged.times
    parts = [float(its[at]) for its in (times.attention_s, times.moe_s, times.comm_s)]
    names = ("attention", "experts", "exchange")
    return ", ".join(f"{name} {ms(part)}" for name, part in zip(names, parts, strict=True))
