"""The plan as JSON: the chosen candidate, the others, what went in. Its keys are a contract with scripts."""

import math
from typing import Any

import numpy as np

from janus_hpc.plan.decide import Decision
from janus_hpc.plan.reasons import Words
from janus_hpc.plan.request import Request
from janus_hpc.planner.profile_data import Profile
from janus_hpc.planner.search import OK
from janus_hpc.planner.system import KINDS, System

MOST_CANDIDATES = 5000
_DIGITS = 6

Record = dict[str, Any]


def plan_record(
    request: Request,
    system: System,
    decision: Decision,
    words: Words,
    *,
    baselines: Record | None,
    lengths_how: str | None,
    text: str,
) -> Record:
    """Everything that --json prints. The decision must have chosen one."""
    assert decision.chosen is not None
    shown = decision.ranking[:MOST_CANDIDATES].tolist()
    chosen = _candidate(decision, words, decision.chosen)
    parked = request.ranks - words.num_ranks(decision.chosen) if request.ranks else 0
    return {
        "chosen": chosen | {"num_parked": parked} | job_record(request, decision, words),
        "candidates": [_candidate(decision, words, at) for at in shown],
        "num_candidates": len(decision.ranking),
        "num_feasible": int(decision.judged.feasible.sum()),
        "inputs": _inputs(request, system, decision, lengths_how),
        "baselines": baselines or {},
        "text": text,
    }


def job_record(request: Request, decision: Decision, words: Words) -> Record:
    """Of the chosen candidate, where rows are known: when they will be done, and what that takes. Ranks of a
    fixed allocation count, also parked ones.
    """
    at, judged = decision.chosen, decision.judged
    assert at is not None
    found: Record = {"load_s": number(decision.load_s[at])}
    if judged.job_s is None or decision.work is None:
        return found
    held = request.ranks or words.num_ranks(at)
    return found | {
        "num_rows": decision.work.num_rows,
        "eta_s": number(judged.job_s[at]),
        "rank_hours": number(held * judged.job_s[at] / 3600),
        "cost_total": number(judged.cost[at] * judged.job_s[at] / 3600),
    }


def _candidate(decision: Decision, words: Words, at: int) -> Record:
    judged = decision.judged
    grid, times = judged.grid, judged.times
    found: Record = {
        "n_attention": int(grid.num_attention[at]),
        "n_expert": int(grid.num_expert[at]),
        "colocated": bool(grid.colocated[at]),
        "num_ranks": words.num_ranks(at),
        "slots": int(grid.num_slots[at]),
        "microbatches": int(times.microbatches[at]),
        "exchange": KINDS[int(times.kind[at])],
        "batch": int(judged.batch[at]),
        "tpot_ms": number(times.tpot_s[at] * 1000),
        "attention_ms": number(times.attention_s[at] * 1000),
        "moe_ms": number(times.moe_s[at] * 1000),
        "comm_ms": number(times.comm_s[at] * 1000),
        "tokens_per_s": number(judged.tokens_per_s[at]),
        "tokens_per_s_per_rank": number(judged.tokens_per_s[at] / words.num_ranks(at)),
        "memory_bytes": {
            "attention": round(float(judged.attention_bytes[at])),
            "expert": round(float(judged.expert_bytes[at])),
        },
        "cost": number(judged.cost[at]),
        "feasible": bool(judged.reason[at] == OK),
        "reason": words.reason(at),
    }
    if judged.job_s is not None:
        found["job_s"] = number(judged.job_s[at])
    return found


def _inputs(
    request: Request, system: System, decision: Decision, lengths_how: str | None
) -> Record:
    found: Record = {
        "objective": decision.objective,
        "profile": profile_record(request.profile, system.attention),
        "a_max": system.a_max.how,
        "context": {"mean": number(system.context.mean), "std": number(system.context.std)},
        "slo_tpot_ms": request.slo_tpot_ms,
        "slo_percentile": request.slo_percentile,
        "slo_ratio": number(system.slo_ratio),
        "max_ranks": request.most_ranks,
        "ranks_per_node": system.node_size,
        "max_sequences": system.max_sequences,
        "max_step_tokens": system.max_step_tokens,
        "gate": system.gate,
    }
    if request.expert_profile is not None:
        found["expert_profile"] = profile_record(request.expert_profile, system.experts)
    if request.rate is not None:
        found["rate"] = request.rate
    if request.deadline is not None:
        found["deadline_s"] = request.deadline_s
    if decision.work is not None:
        found["rows"] = {
            "num_rows": decision.work.num_rows,
            "mean_prompt": number(decision.work.mean_prompt),
            "mean_answer": number(decision.work.mean_new),
            "how": lengths_how,
        }
    return found


def profile_record(given: str, profile: Profile) -> Record:
    """Which profile it is, and where its figures come from."""
    return {
        "given": given,
        "hardware": profile.hardware.name,
        "model": profile.model.name,
        "basis": profile.basis,
        "sources": list(profile.sources),
        "made": profile.made,
    }


def number(value: float | np.floating[Any]) -> float | None:
    """With six digits; None for what JSON has no number for."""
    return float(f"{float(value):.{_DIGITS}g}") if math.isfinite(value) else None
