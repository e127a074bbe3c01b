"""The choice in words: what it is, where a step's time goes, and why the others were not taken."""

from collections.abc import Iterator

import numpy as np

from janus_hpc.plan.decide import Decision
from janus_hpc.plan.reasons import Words, duration, figure, ms, size
from janus_hpc.plan.request import Request
from janus_hpc.planner.search import MEMORY, OK, RATE
from janus_hpc.planner.system import KINDS, Ints, System

_MOST_REFUSED = 3


def explain(
    request: Request, system: System, decision: Decision, words: Words, lengths_how: str | None
) -> str:
    """Some lines of text; the decision must have chosen a candidate."""
    assert decision.chosen is not None
    lines = [
        *_headline(request, system, decision, words, decision.chosen),
        *_step(system, decision, words, decision.chosen),
        *_job(request, decision, words, decision.chosen, lengths_how),
        *_fewer(decision, words, decision.chosen),
        *_other_kind(request, system, decision, words, decision.chosen),
        f"from: {_profiles(request, system)}; {system.a_max.how}",
    ]
    return "\n".join(lines)


def _headline(
    request: Request, system: System, decision: Decision, words: Words, at: int
) -> Iterator[str]:
    judged, ranks = decision.judged, words.num_ranks(at)
    tpot_s = float(judged.times.tpot_s[at])
    of = "" if request.slo_tpot_ms is None else f" of {ms(request.slo_s)}"
    if of and request.slo_percentile == "p99":
        of = f" (P99 {ms(tpot_s * system.slo_ratio)}{of})"
    rate = float(judged.tokens_per_s[at])
    wins = "colocated wins: " if judged.grid.colocated[at] else ""
    plural = "rank" if ranks == 1 else "ranks"
    yield (
        f"{wins}{words.name(at)}: {ranks} {plural}, batch {judged.batch[at]}, TPOT {ms(tpot_s)}{of}, "
        f"{figure(rate)} tokens/s ({figure(rate / ranks)} a rank)"
    )
    if request.ranks is not None and ranks < request.ranks:
        left = request.ranks - ranks
        yield f"{left} of the {request.ranks} ranks would not make it faster: they are parked"


def _step(system: System, decision: Decision, words: Words, at: int) -> Iterator[str]:
    judged, times = decision.judged, decision.judged.times
    parts = [float(its[at]) for its in (times.attention_s, times.moe_s, times.comm_s)]
    shares = [100 * part / sum(parts) for part in parts]
    number, kind = int(times.microbatches[at]), KINDS[int(times.kind[at])]
    overlap = "" if number == 1 else f", which overlap in {number} microbatches"
    where = "inside one node" if kind == "node" else f"{kind} between nodes"
    yield (
        f"a step: attention {shares[0]:.0f} %, experts {shares[1]:.0f} %, exchange {shares[2]:.0f} % of the work"
        f"{overlap}; {where}; {judged.grid.num_slots[at]} slots an expert rank"
    )
    needs = size(float(judged.attention_bytes[at])), size(float(judged.expert_bytes[at]))
    has = size(system.attention.hardware.memory_bytes), size(system.experts.hardware.memory_bytes)
    if judged.grid.colocated[at]:
        yield f"memory: a rank needs {needs[0]} of {has[0]}"
    else:
        yield f"memory: an attention rank needs {needs[0]} of {has[0]}, an expert rank {needs[1]} of {has[1]}"
    if decision.objective != "rate":
        by = words.limit(at)
        rows = decision.work.num_rows if decision.work else None
        if rows is not None and judged.batch[at] >= rows:
            by = f"the {rows} rows there are"
        yield f"what limits the batch: {by or 'the SLO'}"


def _job(
    request: Request, decision: Decision, words: Words, at: int, lengths_how: str | None
) -> Iterator[str]:
    judged, work = decision.judged, decision.work
    if judged.job_s is None or work is None:
        return
    eta_s, held = float(judged.job_s[at]), request.ranks or words.num_ranks(at)
    by = "" if request.deadline is None else f" of {duration(request.deadline_s)}"
    yield (
        f"done after {duration(eta_s)}{by}, {duration(float(decision.load_s[at]))} of it loading; "
        f"{figure(held * eta_s / 3600)} rank-hours"
    )
    yield (
        f"rows: {lengths_how}: {work.num_rows} sequences, {work.mean_prompt:.4g} + {work.mean_new:.4g} tokens "
        "in the mean"
    )


def _fewer(decision: Decision, words: Words, at: int) -> Iterator[str]:
    """Why none of the next cheaper candidates will do, where that is what was looked for."""
    judged = decision.judged
    if decision.objective not in ("rate", "cheapest"):
        return
    cheaper = judged.cost < judged.cost[at]
    if decision.objective == "cheapest":
        cheaper &= judged.reason != OK
    if not cheaper.any():
        if decision.objective == "rate":
            yield "there is nothing smaller"
        return
    next_cost = judged.cost[cheaper].max()
    nearest = nearest_of(decision, words, np.flatnonzero(judged.cost == next_cost))
    said = "; ".join(f"{words.name(its)}: {words.reason(its)}" for its in nearest[:_MOST_REFUSED])
    yield f"the next smaller candidates fail: {said}"


def nearest_of(decision: Decision, words: Words, among: Ints) -> list[int]:
    """Of refused candidates the one nearest to being feasible, for each reason."""
    judged = decision.judged
    found = []
    for number in sorted(set(judged.reason[among].tolist()) - {OK}):
        those = [int(its) for its in among if judged.reason[its] == number]
        if number == MEMORY:
            best = min(those, key=words.excess_bytes)
        elif number == RATE:
            best = max(those, key=lambda its: float(words.largest[its] / judged.times.tpot_s[its]))
        else:
            best = min(those, key=lambda its: float(judged.times.tpot_s[its]))
        found.append(best)
    return found


def _other_kind(
    request: Request, system: System, decision: Decision, words: Words, at: int
) -> Iterator[str]:
    """What the best candidate of the kind that was not chosen would come to."""
    judged = decision.judged
    is_colocated = bool(judged.grid.colocated[at])
    if not is_colocated and not system.is_uniform:
        yield "no colocated candidates: the roles have different hardware"
        return
    other = decision.best(colocated=not is_colocated)
    kind = "the best split" if is_colocated else "colocated"
    if other is not None:
        why = _why(decision, words, at, other)
        yield f"{kind} would be {words.name(other)}: {_result(decision, words, other)}{why}"
        return
    same = np.flatnonzero(judged.grid.colocated != is_colocated)
    nearest = nearest_of(decision, words, same)
    said = "; ".join(f"{words.name(its)}: {words.reason(its)}" for its in nearest)
    yield f"{'no split' if is_colocated else 'no colocated candidate'} will do: {said or 'there is none'}"


def _why(decision: Decision, words: Words, at: int, other: int) -> str:
    """Why the other kind cannot do with as many ranks as the chosen one has."""
    judged = decision.judged
    if decision.objective != "rate" or judged.cost[other] <= judged.cost[at]:
        return ""
    same = (judged.grid.colocated == judged.grid.colocated[other]) & (
        judged.cost <= judged.cost[at]
    )
    if not same.any():
        return ""
    most = judged.cost[same].max()
    nearest = nearest_of(decision, words, np.flatnonzero(same & (judged.cost == most)))
    return "; " + "; ".join(f"{words.name(its)}: {words.reason(its)}" for its in nearest[:2])


def _result(decision: Decision, words: Words, at: int) -> str:
    judged = decision.judged
    ranks = f"{words.num_ranks(at)} ranks, TPOT {ms(float(judged.times.tpot_s[at]))}"
    if judged.job_s is not None and decision.objective != "rate":
        eta_s = float(judged.job_s[at])
        hours = words.num_ranks(at) * eta_s / 3600
        return f"{ranks}, done after {duration(eta_s)}, {figure(hours)} rank-hours"
    return f"{ranks}, {figure(float(judged.tokens_per_s[at]))} tokens/s"


def _profiles(request: Request, system: System) -> str:
    names = [f"{system.attention.hardware.name} ({system.attention.basis})"]
    if request.expert_profile is not None:
        names.append(f"{system.experts.hardware.name} ({system.experts.basis}) for experts")
    return f"profile of {' and '.join(names)}, model {system.attention.model.name}"
