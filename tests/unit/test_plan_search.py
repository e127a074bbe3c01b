"""The plan against a search in plain loops, written from the formulas alone; monotone limits; boundary cases."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest

from janus_hpc.plan.decide import candidates, decide
from janus_hpc.plan.request import Request
from janus_hpc.planner.loading import load_s
from janus_hpc.planner.memory import largest_batch
from janus_hpc.planner.profile_data import ExpertCosts, Profile
from janus_hpc.planner.search import RATE, for_rate
from janus_hpc.planner.system import Context, Grid, System
from janus_hpc.planner.tpot import step_times
from tests.unit.plain_planner import WORK, Plain
from tests.unit.planner_profiles import SmoothAMax, random_profile

NUM_PROFILES = 60


def make_system(seed: int) -> System:
    """A system of a random profile: uniform, or with another hardware for the experts."""
    rng = random.Random(1000 + seed)
    attention = random_profile(seed)
    experts = attention
    if seed % 3 == 2:
        other = random_profile(seed + 500)
        experts = Profile(
            **{name: getattr(other, name) for name in Profile.__struct_fields__}
            | {"model": attention.model}
        )
    return System(
        attention=attention,
        experts=experts,
        a_max=SmoothAMax(attention.model.num_experts, attention.model.top_k),
        context=Context(mean=rng.choice([5.0, 50.0, 400.0]), std=rng.choice([0.0, 0.0, 30.0])),
        max_sequences=rng.choice([3, 8, 20]),
        max_step_tokens=rng.choice([4, 32]),
        microbatches=rng.choice([(1,), (1, 2, 3, 4), (2,)]),
        ranks_per_node=rng.choice([0, 2, 3]),
        gate="agate" if seed % 5 == 4 else "egate",
        kinds=("one-phase",) if seed % 5 == 4 else ("direct", "relay", "one-phase"),
        slo_ratio=attention.p99_ratio if seed % 4 == 3 else 1.0,
    )


def requests(plain: Plain, rng: random.Random) -> list[Request]:
    """Three objectives and a fourth, with limits near what some candidate does."""
    some = rng.choice(plain.candidates(7))
    tpot_s = plain.tpot(some, 3)
    tpot_s = tpot_s if math.isfinite(tpot_s) else 0.01
    slo = rng.choice([None, 1000 * tpot_s * rng.uniform(0.5, 3)])
    common = {"profile": "made up", "context": 1.0, "slo_tpot_ms": slo}
    rows = {"rows": 40, "mean_prompt": 30.0, "mean_answer": 20.0}
    took_s = plain.job_s(some, 3)
    limit = f"{took_s if math.isfinite(took_s) else 10.0:.6f}"
    return [
        Request(rate=rng.uniform(0.5, 3) * 3 / tpot_s, max_ranks=7, **common),
        Request(ranks=7, **common),
        Request(ranks=6, **common, **rows),
        Request(max_ranks=7, deadline=rng.choice([None, limit]), **common, **rows),
    ]


@pytest.mark.parametrize("seed", range(NUM_PROFILES))
def test_the_plan_is_the_best_of_a_plain_search(seed: int) -> None:
    system, rng = make_system(seed), random.Random(seed)
    plain = Plain(system)
    for request in requests(plain, rng):
        work = WORK if request.has_rows else None
        found = decide(request, system, candidates(request, system), work)
        expected = plain.best(request)
        if expected is None:
            assert found.chosen is None, f"{request=}"
            continue
        key, c, batch = expected
        at, judged = found.chosen, found.judged
        assert at is not None, f"{request=} {c=}"
        assert (
            judged.grid.num_attention[at],
            judged.grid.num_expert[at],
            judged.grid.num_slots[at],
            judged.grid.colocated[at],
            judged.batch[at],
        ) == (c.n_a, c.n_e, c.slots, c.colocated, batch), f"{request=} {key=}"
        assert judged.times.tpot_s[at] == pytest.approx(plain.tpot(c, batch))
        bytes_A, bytes_E = plain.rank_bytes(c, math.ceil(batch / c.n_a), batch)
        if c.colocated:
            bytes_A = bytes_E = bytes_A + bytes_E
        assert judged.attention_bytes[at] == pytest.approx(bytes_A)
        assert judged.expert_bytes[at] == pytest.approx(bytes_E)
        if work is not None:
            assert judged.job_s[at] == pytest.approx(plain.job_s(c, batch))


@pytest.mark.parametrize("seed", range(0, NUM_PROFILES, 3))
def test_every_candidate_has_the_plain_times_and_limits(seed: int) -> None:
    system = make_system(seed)
    plain, rng = Plain(system), random.Random(seed)
    for c in rng.sample(plain.candidates(12), 20):
        grid = Grid(
            num_attention=np.array([c.n_a]),
            num_expert=np.array([c.n_e]),
            num_slots=np.array([c.slots]),
            colocated=np.array([c.colocated]),
        )
        for batch in (1, 2, 5, 33):
            found = step_times(system, grid, np.array([batch])).tpot_s[0]
            assert found == pytest.approx(plain.tpot(c, batch)), f"{c=} {batch=}"
        assert largest_batch(system, grid)[0] == plain.most(c)
        assert load_s(system, grid)[0] == pytest.approx(plain.load_s(c)), f"{c=}"


def chosen_cost(system: System, request: Request) -> float:
    found = decide(request, system, candidates(request, system), None)
    return math.inf if found.chosen is None else float(found.judged.cost[found.chosen])


@pytest.mark.parametrize("seed", range(20))
def test_looser_limits_never_cost_more_and_higher_rates_never_less(seed: int) -> None:
    system = make_system(seed)
    request = requests(Plain(system), random.Random(seed))[0]
    slo_ms = [2.0**power for power in range(-4, 8)]
    costs = [chosen_cost(system, replace(request, slo_tpot_ms=its)) for its in slo_ms]
    assert costs == sorted(costs, reverse=True)
    rates = [request.rate * 1.5**power for power in range(-5, 6)]
    costs = [chosen_cost(system, replace(request, rate=its)) for its in rates]
    assert costs == sorted(costs)


def one_candidate() -> Grid:
    return Grid(
        num_attention=np.array([1]),
        num_expert=np.array([1]),
        num_slots=np.array([12]),
        colocated=np.array([True]),
    )


def test_where_one_sequence_is_enough_the_batch_is_one() -> None:
    """f(1) >= 0 in Algorithm 2."""
    system = make_boundary_system()
    alone_s = float(step_times(system, one_candidate(), np.array([1])).tpot_s[0])
    judged = for_rate(system, one_candidate(), 1 / alone_s, math.inf)
    assert judged.batch.tolist() == [1] and judged.feasible.all()


def test_where_all_sequences_are_too_few_the_candidate_is_discarded() -> None:
    """f(B_max) < 0 in Algorithm 2; at f(B_max) = 0 it is not."""
    system = make_boundary_system()
    most = largest_batch(system, one_candidate())
    rate = float(most[0] / step_times(system, one_candidate(), most).tpot_s[0])
    judged = for_rate(system, one_candidate(), rate * (1 - 1e-12), math.inf)
    assert judged.batch.tolist() == most.tolist() and judged.feasible.all()
    judged = for_rate(system, one_candidate(), rate * (1 + 1e-9), math.inf)
    assert judged.batch.tolist() == [0] and judged.reason.tolist() == [RATE]


def make_boundary_system() -> System:
    profile = random_profile(3)
    costs = ExpertCosts(num_sharing=1, c_e=1e-4, beta=1e-5, gamma=1e-6, delta=0.0)
    parts = {name: getattr(profile, name) for name in Profile.__struct_fields__}
    hardware = {
        name: getattr(profile.hardware, name) for name in profile.hardware.__struct_fields__
    }
    parts["hardware"] = type(profile.hardware)(**hardware | {"memory_bytes": 10**9})
    parts["experts"] = (costs,)
    profile = Profile(**parts)
    return System(
        attention=profile,
        experts=profile,
        a_max=SmoothAMax(profile.model.num_experts, profile.model.top_k),
        context=Context(mean=10.0),
    )
