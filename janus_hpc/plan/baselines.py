"""Second opinions on a plan: what other systems' rules would choose, and a ratio in closed form.

Judged by the same model and routing; they inform and decide nothing.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from janus_hpc.plan.decide import Decision
from janus_hpc.plan.reasons import figure, ms
from janus_hpc.plan.request import Request
from janus_hpc.planner.a_max_lookup import Routing
from janus_hpc.planner.closed_form import Line, attention_per_ffn
from janus_hpc.planner.policies import Inputs, make_policies, plan_all
from janus_hpc.planner.profile_data import Profile
from janus_hpc.planner.search import Judged
from janus_hpc.planner.system import System
from janus_hpc.planner.tpot import step_times

if TYPE_CHECKING:
    from janus_hpc.kernels.native.balance_library import BalanceLibrary

_OTHERS = ("megascale", "xdeepserve", "monolithic")
_TITLES = {
    "megascale": "MegaScale-Infer",
    "xdeepserve": "xDeepServe (steps of 4)",
    "monolithic": "monolithic (8, 16, 32 or 64)",
}
_CLOSED_FORM = "closed_form"
# Others rarely need more ranks than this many times the chosen plan's; only if they do, all are tried.
_FIRST_TRY = 2

Record = dict[str, Any]


def compare(
    request: Request,
    system: System,
    decision: Decision,
    plain: Profile,
    routing: Routing,
    library: "BalanceLibrary | None",
) -> Record:
    """Of each other system its plan for the same rate, or its fastest on as many ranks; None where it has none."""
    at = decision.chosen
    assert at is not None
    ranks = int(decision.judged.grid.num_ranks()[at])
    found: Record = {}
    limits = [request.ranks or ranks]
    if request.rate is not None:
        limits = [min(_FIRST_TRY * ranks, request.most_ranks), request.most_ranks]
    for most in dict.fromkeys(limits):
        missing = [name for name in _OTHERS if found.get(name) is None]
        inputs = Inputs(
            profile=system.attention,
            plain=plain,
            routing=routing,
            context=system.context,
            slo_s=request.slo_s / system.slo_ratio,
            max_ranks=most,
            max_sequences=system.max_sequences,
            max_step_tokens=system.max_step_tokens,
            ranks_per_node=system.node_size,
            library=library,
        )
        found |= _plans(request, inputs, missing)
    return found | {_CLOSED_FORM: _closed_form(system, decision, at)}


def baseline_lines(compared: Record | None) -> Iterator[str]:
    """One line for the other systems, one for the ratio."""
    if compared is None:
        return
    said = []
    for name in _OTHERS:
        its = compared[name]
        if its is None:
            said.append(f"{_TITLES[name]}: no plan")
        else:
            said.append(
                f"{_TITLES[name]}: {its['split']}, {figure(its['tokens_per_s'])} tokens/s, "
                f"TPOT {ms(its['tpot_ms'] / 1000)}"
            )
    yield f"others would take: {'; '.join(said)}"
    ratio = compared[_CLOSED_FORM]
    yield (
        f"closed form (2601.21351): {ratio['ratio']:.3g} attention ranks beside {ratio['n_expert']} expert ranks "
        f"at {ratio['batch_per_attention_rank']} sequences each"
    )


def _plans(request: Request, inputs: Inputs, wanted: list[str]) -> Record:
    if request.rate is not None:
        plans = plan_all(inputs, request.rate, wanted)
    else:
        plans = {
            name: _fastest(policy.for_speed(inputs.slo_s), policy.allowed)
            for name, policy in make_policies(inputs, wanted).items()
        }
    return {
        name: None if at is None else _record(judged, at) for name, (judged, at) in plans.items()
    }


def _fastest(judged: Judged, allowed: Any) -> tuple[Judged, int | None]:
    speed = np.where(allowed(judged), judged.tokens_per_s, -1.0)
    at = int(speed.argmax()) if len(speed) else 0
    return judged, at if len(speed) and speed[at] > 0 else None


def _record(judged: Judged, at: int) -> Record:
    grid, rate = judged.grid, float(judged.tokens_per_s[at])
    n_attention, n_expert = int(grid.num_attention[at]), int(grid.num_expert[at])
    together = bool(grid.colocated[at])
    return {
        "split": f"{n_expert}c" if together else f"{n_attention}a{n_expert}e",
        "n_attention": n_attention,
        "n_expert": n_expert,
        "colocated": together,
        "slots": int(grid.num_slots[at]),
        "batch": int(judged.batch[at]),
        "tpot_ms": float(judged.times.tpot_s[at]) * 1000,
        "tokens_per_s": rate,
        "tokens_per_s_per_rank": rate / int(grid.num_ranks()[at]),
    }


def _closed_form(system: System, decision: Decision, at: int) -> Record:
    """r* with the chosen plan's expert ranks as the one FFN worker: its step's time as a line through this batch
    and twice as many, an attention rank's through this context and twice as much.
    """
    one = decision.judged.grid.pick(np.array([at]))
    batch = int(decision.judged.batch[at])
    b = -(-batch // int(one.num_attention[0]))
    # Its stages are of a step in one piece.
    system = replace(system, microbatches=(1,))
    context = system.context.mean
    here, longer = (
        step_times(system, one, np.array([batch]), context=its) for its in (context, 2 * context)
    )
    more = step_times(system, one, np.array([2 * batch]), context=context)
    per_token = float(longer.attention_s[0] - here.attention_s[0]) / (b * context)
    per_row = max(float(more.moe_s[0] - here.moe_s[0]) / batch, 1e-12)
    attention = Line(slope=per_token, base=float(here.attention_s[0]) - per_token * b * context)
    ffn = Line(slope=per_row, base=max(float(here.moe_s[0]) - per_row * batch, 0.0))
    ratio = attention_per_ffn(attention, ffn, float(here.comm_s[0]), b * context, b)
    return {"ratio": ratio, "n_expert": int(one.num_expert[0]), "batch_per_attention_rank": b}
