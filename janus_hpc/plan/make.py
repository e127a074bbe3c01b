"""A plan from start to end: inputs, the decision, and what is said of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus_hpc.kernels.native.balance_library import open_balance_library
from janus_hpc.plan.baselines import baseline_lines, compare
from janus_hpc.plan.decide import Decision, candidates, decide
from janus_hpc.plan.explain import explain
from janus_hpc.plan.infeasible import nothing_feasible
from janus_hpc.plan.inputs import load_profiles, make_system, read_routing
from janus_hpc.plan.reasons import Words
from janus_hpc.plan.report import plan_record
from janus_hpc.plan.request import Request
from janus_hpc.planner.a_max_lookup import AMaxLookup
from janus_hpc.planner.system import Context, System


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """A decision that has chosen a candidate, in words and as JSON."""

    request: Request
    system: System
    decision: Decision
    text: str
    record: dict[str, Any]


def make_plan(request: Request, cache_dir: Path) -> Plan:
    """UsageError for inputs that are wrong, and where no candidate is feasible."""
    profiles = load_profiles(request)
    lengths = None
    if request.has_rows:
        from janus_hpc.plan.lengths import row_lengths

        lengths = row_lengths(request, profiles.attention.model)
    if request.context is not None:
        context = Context(mean=request.context, std=request.context_std or 0.0)
    else:
        assert lengths is not None
        context = lengths.context()
    routing = read_routing(request, profiles.attention.model)
    library, _ = open_balance_library(cache_dir)
    a_max = AMaxLookup(routing, policy=request.balance, library=library)
    system = make_system(request, profiles, context, a_max)
    work = None if lengths is None else lengths.workload()
    decision = decide(request, system, candidates(request, system), work)
    words = Words(request, system, decision)
    if decision.chosen is None:
        raise nothing_feasible(request, system, decision, words)
    how = None if lengths is None else lengths.how
    compared = None
    if request.baselines and system.is_uniform:
        compared = compare(request, system, decision, profiles.plain, routing, library)
    text = "\n".join([explain(request, system, decision, words, how), *baseline_lines(compared)])
    record = plan_record(
        request, system, decision, words, baselines=compared, lengths_how=how, text=text
    )
    return Plan(request=request, system=system, decision=decision, text=text, record=record)
