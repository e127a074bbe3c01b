"""What policies may choose from, and what must follow."""

import numpy as np
import pytest

from janus_hpc.errors import UsageError
from janus_hpc.planner.a_max_lookup import uniform_routing
from janus_hpc.planner.hardware import hardware_profile
from janus_hpc.planner.policies import (
    POLICIES,
    TIERS,
    Inputs,
    Policy,
    best_at_batch,
    make_policies,
    plan_all,
)
from janus_hpc.planner.search import Judged
from janus_hpc.planner.system import Context


def make_inputs(shape: str = "deepseek-v2", max_ranks: int = 24, slo_s: float = 0.06) -> Inputs:
    profile = hardware_profile("h100", shape, part_bytes=2)
    return Inputs(
        profile=profile,
        plain=hardware_profile("h100", shape, balances=False, part_bytes=2),
        routing=uniform_routing(profile.model.num_experts, profile.model.top_k),
        context=Context(mean=256),
        slo_s=slo_s,
        max_ranks=max_ranks,
        part_bytes=2,
    )


def num_ranks(found: tuple[Judged, int | None]) -> float:
    judged, best = found
    return float("inf") if best is None else int(judged.grid.num_ranks()[best])


@pytest.mark.parametrize("rate", [100.0, 5000.0, 15000.0])
def test_every_policy_plans_within_its_rules(rate: float) -> None:
    inputs = make_inputs()
    plans = plan_all(inputs, rate)
    assert list(plans) == list(POLICIES)
    for judged, best in plans.values():
        if best is not None:
            assert judged.times.tpot_s[best] <= inputs.slo_s
            assert judged.batch[best] >= rate * judged.times.tpot_s[best] or judged.batch[best] == 1
            assert judged.grid.num_ranks()[best] <= inputs.max_ranks
    judged, best = plans["xdeepserve"]
    assert best is None or judged.grid.num_ranks()[best] % 4 == 0
    judged, best = plans["monolithic"]
    assert judged.grid.colocated.all()
    assert set(judged.grid.num_expert.tolist()) <= set(TIERS)
    assert best is None or int(judged.grid.num_expert[best]) in TIERS


@pytest.mark.parametrize("rate", [500.0, 5000.0, 12000.0, 20000.0])
def test_more_choice_never_needs_more_ranks(rate: float) -> None:
    """Any number of either role against the balanced ones and those in steps, all else alike."""
    inputs = make_inputs()
    policies = make_policies(inputs, ["megascale", "xdeepserve"])
    for policy in policies.values():
        judged = policy.for_rate(rate, inputs.slo_s)
        every = make_policies(inputs, ["janus"])["janus"].grid
        wide = Policy(name="free", system=policy.system, grid=every)
        free = wide.for_rate(rate, inputs.slo_s)
        few = judged.cost[policy.allowed(judged)].min(initial=np.inf)
        assert free.cost[wide.allowed(free)].min(initial=np.inf) <= few


def test_light_load_takes_few_attention_ranks() -> None:
    """Janus, Fig. 9: one attention rank and six expert ranks of 27 slots are the least that hold DeepSeek-V2."""
    judged, best = plan_all(make_inputs(), 500.0, ["janus"])["janus"]
    assert best is not None
    grid = judged.grid
    assert (grid.num_attention[best], grid.num_expert[best], grid.num_slots[best]) == (1, 6, 27)


def test_balanced_keeps_one_candidate_of_a_group() -> None:
    inputs = make_inputs(max_ranks=16)
    policy = make_policies(inputs, ["megascale"])["megascale"]
    judged = policy.for_speed(inputs.slo_s)
    kept = np.flatnonzero(policy.balanced(judged))
    grid = judged.grid
    groups = list(zip(grid.num_expert[kept].tolist(), grid.num_slots[kept].tolist(), strict=True))
    assert len(groups) == len(set(groups))
    every = set(zip(grid.num_expert.tolist(), grid.num_slots.tolist(), strict=True))
    assert set(groups) == every
    gap = np.abs(judged.times.attention_s - judged.times.moe_s) / judged.times.microbatches
    for index in kept[judged.batch[kept] > 0]:
        same = (grid.num_expert == grid.num_expert[index]) & (
            grid.num_slots == grid.num_slots[index]
        )
        assert gap[index] == gap[same & (judged.batch > 0)].min()


def test_fixed_batches_are_met_exactly() -> None:
    inputs = make_inputs(max_ranks=16)
    for policy in make_policies(inputs).values():
        judged, best = best_at_batch(policy, 64, inputs.slo_s)
        assert best is not None, policy.name
        assert judged.batch[best] == 64
        assert judged.times.tpot_s[best] <= inputs.slo_s
        assert best_at_batch(policy, 64, 1e-4)[1] is None


def test_janus_at_a_fixed_batch_is_best_of_its_system() -> None:
    inputs = make_inputs(max_ranks=12)
    policy = make_policies(inputs, ["janus"])["janus"]
    judged, best = best_at_batch(policy, 128, inputs.slo_s)
    assert best is not None
    each = judged.tokens_per_s / judged.grid.num_ranks()
    may = judged.feasible & (judged.batch == 128)
    assert each[best] == each[may].max()


def test_the_model_that_fits_nowhere_has_no_plan() -> None:
    plans = plan_all(make_inputs("deepseek-v3", max_ranks=8), 10.0)
    assert [best for _, best in plans.values()] == [None] * len(POLICIES)
    assert all(num_ranks(found) == float("inf") for found in plans.values())


def test_an_unknown_policy_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="janus, megascale, xdeepserve, monolithic"):
        plan_all(make_inputs(), 1.0, ["vllm"])
