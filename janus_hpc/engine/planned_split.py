"""The split of the first batch by the SLO planner, and the planner itself from a run's plan.

Runs on world rank 0. What a profile is and where it comes from is `run_profile`'s.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import msgspec
import numpy as np

from janus_hpc.engine.decision import Prediction
from janus_hpc.engine.placing import choose_placement, expert_nodes, read_fitting_trace
from janus_hpc.engine.plan import Allocation, RunPlan, RunProfile
from janus_hpc.engine.row_input import RowInput
from janus_hpc.errors import UsageError
from janus_hpc.kernels.native.balance_library import BalanceLibrary
from janus_hpc.models.spec import DTYPE_BYTES
from janus_hpc.planner.a_max_lookup import AMaxLookup, traced_routing, uniform_routing
from janus_hpc.planner.replan import Choice, Replanner, choice_at
from janus_hpc.planner.search import Workload, for_speed
from janus_hpc.planner.system import KINDS, Context, System
from janus_hpc.topology import assign_roles

# Rows whose lengths stand for a batch's.
MOST_ROWS_READ = 256


def make_planner(
    plan: RunPlan, node_ids: Sequence[int], library: BalanceLibrary | None
) -> Replanner:
    """A planner that has learnt nothing yet. `library`: simulates a_max, which is bounded without it."""
    assert plan.profile is not None
    config, profile, moe = plan.config, plan.profile.profile, plan.spec.moe
    trace = read_fitting_trace(config.placement_from, plan.spec)
    routing = (
        uniform_routing(moe.num_experts, moe.top_k)
        if trace is None
        else traced_routing(trace, str(config.placement_from))
    )
    asked = config.microbatches
    system = System(
        attention=profile,
        experts=profile,
        a_max=AMaxLookup(routing, policy=config.balance, library=library),
        context=Context(mean=0.0),
        max_sequences=config.max_sequences,
        max_step_tokens=config.max_step_tokens,
        microbatches=(1, 2, 3, 4) if asked == "auto" else (int(asked),),
        ranks_per_node=max(list(node_ids).count(node) for node in node_ids),
        gate=config.gate,
        kinds=(config.exchange,) if config.exchange in KINDS else KINDS[1:],
        slo_ratio=profile.p99_ratio if config.slo_percentile == "p99" else 1.0,
    )
    return Replanner(
        system=system,
        world_size=len(node_ids),
        slo_s=config.slo_tpot_ms / 1e3 if config.slo_tpot_ms else math.inf,
        slots=config.slots,
        apart=config.colocate == "never",
    )


def plan_first(
    plan: RunPlan, allocation: Allocation, found: RunProfile, library: BalanceLibrary | None
) -> RunPlan:
    """The plan with its profile, a prediction, and where --split is auto the split that the planner chooses.

    Errors: UsageError where no split of these ranks meets the SLO, naming the nearest one.
    """
    lean = replace(found, profile=msgspec.structs.replace(found.profile, points=()))
    plan = replace(plan, profile=lean)
    batch = plan.batches()[0]
    if not len(batch):
        return plan
    planner = make_planner(plan, allocation.node_ids, library)
    work = read_work(RowInput(plan), batch)
    if plan.config.split == "auto" and not plan.turns:
        plan = _with_choice(plan, allocation, planner, work)
    split = plan.split
    asked = plan.config.microbatches
    choice = Choice(
        num_attention=split.num_attention + split.num_colocated,
        num_expert=split.num_expert_ranks,
        num_slots=plan.placement.num_slots,
        colocated=split.num_colocated > 0,
        microbatches=1 if asked == "auto" or split.num_colocated else int(asked),
    )
    return replace(plan, prediction=Prediction(**predict(planner, choice, work)))


def read_work(rows: RowInput, batch: np.ndarray) -> Workload:
    """A batch's rows as the planner sees them, their lengths from at most MOST_ROWS_READ, evenly spread."""
    if not len(batch):
        return Workload(num_rows=0, mean_prompt=1.0, mean_new=1.0)
    count = min(len(batch), MOST_ROWS_READ)
    some = batch[np.linspace(0, len(batch) - 1, count).astype(np.int64)]
    found = rows.lengths(some)
    # A row with n answers counts as n.
    return replace(found.workload(), num_rows=round(found.num_sequences * len(batch) / count))


def predict(planner: Replanner, choice: Choice, work: Workload) -> dict[str, float]:
    """Times of a decode step with as many sequences in flight as the rows and the ranks allow."""
    most = choice.num_attention * planner.system.max_sequences
    behind = work.mean_prompt + work.mean_new * planner.answer_share / 2
    told = planner.predict(choice, min(work.num_rows, most), behind)
    return {
        "tpot_s": told.tpot_s,
        "attention_s": told.attention_s,
        "moe_s": told.moe_s,
        "comm_s": told.comm_s,
    }


def _with_choice(
    plan: RunPlan, allocation: Allocation, planner: Replanner, work: Workload
) -> RunPlan:
    best = planner.best(work)
    if best is None:
        raise UsageError(_nearest(planner, plan.config.slo_tpot_ms, work))
    choice, batch_s = best
    assert plan.profile is not None
    why = (
        f"planned from the profile {plan.profile.origin}: {batch_s:.3g} s for a batch of "
        f"{work.num_rows} rows of {work.mean_prompt:.0f} + {work.mean_new:.0f} tokens"
    )
    split = choice.split(len(allocation.node_ids))
    roles = tuple(assign_roles(split, list(allocation.node_ids)))
    placement, _ = choose_placement(
        msgspec.structs.replace(plan.config, slots=choice.num_slots),
        plan.spec,
        expert_nodes(allocation.node_ids, roles),
        allocation.room_bytes,
        DTYPE_BYTES[plan.dtype],
    )
    return replace(
        plan,
        split=split,
        split_why=why,
        roles=roles,
        placement=placement,
        slots_why="asked for" if plan.config.slots else "planned",
    )


def _nearest(planner: Replanner, slo_ms: float, work: Workload) -> str:
    """Which candidate comes nearest to the SLO, with one sequence in flight."""
    grid = planner.candidates()
    if not len(grid):
        return f"{planner.world_size} ranks cannot have both roles apart: drop --colocate never, or start more"
    context = Context(mean=work.mean_prompt + work.mean_new / 2)
    judged = for_speed(replace(planner.system, context=context), grid, math.inf, most=1)
    if not judged.feasible.any():
        return f"no split of {planner.world_size} ranks has memory for the model and one sequence"
    at = int(np.where(judged.feasible, judged.times.tpot_s, np.inf).argmin())
    tpot_ms = float(judged.times.tpot_s[at]) * planner.system.slo_ratio * 1e3
    split = choice_at(judged, at).split(planner.world_size)
    return (
        f"--slo-tpot-ms {slo_ms:g}: no split of {planner.world_size} ranks meets it; the nearest is {split}, "
        f"with {tpot_ms:.3g} ms a token for a single sequence"
    )
