"""Re-planning between batches: what is learnt from a batch, and that splits change for a reason and do not flap."""

from dataclasses import replace
from typing import cast

import numpy as np
import pytest

from janus_hpc.engine.planned_split import read_work
from janus_hpc.engine.row_input import RowInput
from janus_hpc.planner.a_max_lookup import AMaxLookup, uniform_routing
from janus_hpc.planner.profile_data import (
    AttentionCosts,
    ExchangeCoefs,
    ExpertCosts,
    Hardware,
    LayerCosts,
    LoadRates,
    ModelShape,
    Profile,
)
from janus_hpc.planner.replan import Choice, Measured, Replanner
from janus_hpc.planner.search import Workload
from janus_hpc.planner.system import Context, Factors, System
from janus_hpc.planner.workload import Lengths

SHAPE = ModelShape(
    name="made up",
    dtype="float32",
    hidden=64,
    num_dense_layers=0,
    num_sparse_layers=4,
    num_experts=16,
    top_k=4,
    attention_bytes=10**6,
    expert_bytes=10**5,
    gate_bytes=10**4,
    kv_bytes=1024,
    row_bytes=256,
)
LAYER = LayerCosts(c_a=0.0, c_0=1e-4, alpha=2e-6, c_kv=4e-8)
PROFILE = Profile(
    format="janus-hpc profile",
    version=1,
    made="",
    basis="made up",
    hardware=Hardware(name="x", device="cuda", memory_bytes=10**10, ranks_per_node=8),
    model=SHAPE,
    attention=(AttentionCosts(num_sharing=1, sparse=LAYER, dense=LAYER, head_0=0.0, head_1=0.0),),
    experts=(ExpertCosts(num_sharing=1, c_e=2e-5, beta=3e-5, gamma=1e-6, delta=1e-7),),
    exchange=ExchangeCoefs(fixed_s=2e-5, per_rank_s=1e-6, per_row_s=1e-8, per_part_s=1e-8),
    loading=LoadRates(checkpoint_rate=1e9, link_rate=1e9, join_s=0.1),
)
# Short prompts with long answers, and the other way round.
ANSWERING = Workload(num_rows=64, mean_prompt=8, mean_new=200)
READING = Workload(num_rows=64, mean_prompt=900, mean_new=4)
START = Choice(num_attention=2, num_expert=6, num_slots=3, colocated=False)


def replanner(apart: bool = True) -> Replanner:
    system = System(
        attention=PROFILE,
        experts=PROFILE,
        a_max=AMaxLookup(uniform_routing(16, 4)),
        context=Context(mean=0.0),
        microbatches=(1,),
    )
    return Replanner(system=system, world_size=8, apart=apart)


def measured(planner: Replanner, choice: Choice, work: Workload, slower: float = 1.0) -> Measured:
    """A batch that takes what is predicted, times `slower`."""
    told = planner.predict(choice, 32, 100.0)
    return Measured(
        batch=32,
        context=100.0,
        tpot_s=told.tpot_s * slower,
        attention_s=told.attention_s * slower,
        moe_s=told.moe_s * slower,
        comm_s=told.comm_s * slower,
        seconds=planner.job_s(choice, work) * slower,
        num_rows=work.num_rows,
        num_tokens=int(work.num_rows * work.mean_new),
    )


def no_cost(choice: Choice) -> float:
    return 0.0


def test_the_best_is_the_fastest_of_all_splits() -> None:
    planner = replanner(apart=False)
    for work in (ANSWERING, READING):
        found = planner.best(work)
        assert found is not None
        times = [
            planner.job_s(
                Choice(num_attention=a, num_expert=e, num_slots=slots, colocated=False), work
            )
            for a in range(1, 8)
            for e in range(1, 9 - a)
            for slots in {-(-16 // e), min(16, max(-(-16 // e), 20 // e)), min(16, -(-16 // e) * 2)}
        ] + [
            planner.job_s(Choice(num_attention=n, num_expert=n, num_slots=16, colocated=True), work)
            for n in range(1, 9)
        ]
        assert found[1] <= min(times) * (1 + 1e-9)


def test_work_of_another_character_wants_another_split() -> None:
    planner = replanner()
    answering, reading = planner.best(ANSWERING), planner.best(READING)
    assert answering is not None and reading is not None
    assert answering[0].roles != reading[0].roles
    verdict = planner.decide(answering[0], READING, 10, no_cost)
    assert verdict.choice is not None
    assert verdict.choice.roles == reading[0].roles
    assert verdict.gain_s > 0 and "takes" in verdict.why


def test_a_move_that_costs_too_much_is_not_made() -> None:
    planner = replanner()
    answering = planner.best(ANSWERING)
    assert answering is not None
    dear = planner.decide(answering[0], READING, 1, lambda choice: 1e6)
    assert dear.choice is None and dear.cost_s == 1e6 and "cost of moving" in dear.why


def test_factors_come_to_what_is_measured() -> None:
    planner = replanner()
    for _ in range(6):
        system = replace(planner.system, factors=Factors())
        slow = replace(planner, system=system, ratios={})
        planner.learn(START, measured(slow, START, ANSWERING, slower=3.0), ANSWERING)
    factors = planner.system.factors
    assert [factors.attention, factors.moe, factors.comm] == pytest.approx([3.0] * 3, rel=0.01)
    assert planner.ratios[START.roles] == pytest.approx(1.0, rel=0.05)


def test_an_answer_that_ends_early_is_learnt() -> None:
    planner = replanner()
    run = replace(measured(planner, START, ANSWERING), num_tokens=64 * 50)
    for _ in range(8):
        planner.learn(START, run, ANSWERING)
    assert planner.answer_share == pytest.approx(0.25, rel=0.05)


def test_splits_do_not_flap_under_noise() -> None:
    """The same rows in every batch, each batch up to a fifth slower or faster: after the first moves it stays."""
    rng = np.random.default_rng(0)
    planner, current, moves = replanner(), START, []
    for number in range(40):
        run = measured(planner, current, ANSWERING, slower=float(rng.uniform(0.8, 1.2)))
        planner.learn(current, run, ANSWERING)
        verdict = planner.decide(current, ANSWERING, 40 - number, no_cost)
        if verdict.choice is not None:
            moves.append(number)
            current = verdict.choice
    assert len(moves) <= 6, moves
    assert not [number for number in moves if number > 25], moves


def test_an_slo_that_no_split_meets_is_said() -> None:
    planner = replanner()
    planner.slo_s = 1e-9
    verdict = planner.decide(START, ANSWERING, 1, no_cost)
    assert verdict.choice is None and "SLO" in verdict.why


def test_colocated_ranks_never_overlap_microbatches() -> None:
    """Also where another number is asked for: the engine runs them with one."""
    planner = replanner(apart=False)
    work = Workload(num_rows=64, mean_prompt=8, mean_new=50)
    for number in (2, 4):
        forced = replace(planner.system, microbatches=(number,))
        both = Choice(num_attention=4, num_expert=4, num_slots=4, colocated=True)
        split = replace(both, num_expert=4, colocated=False)
        for choice, overlaps in ((both, False), (split, True)):
            plain = planner.predict(choice, 64, 20.0)
            asked = replace(planner, system=forced).predict(
                replace(choice, microbatches=number), 64, 20.0
            )
            assert (asked.tpot_s != plain.tpot_s) == overlaps
        best = replace(planner, system=forced).best(work)
        assert best is not None and best[0].microbatches == (1 if best[0].colocated else number)


def test_one_stalled_batch_does_not_decide_for_ever() -> None:
    planner = replanner()
    usual = measured(planner, START, ANSWERING)
    planner.learn(START, usual, ANSWERING)
    before = planner.ratios[START.roles]
    planner.learn(START, replace(usual, seconds=usual.seconds * 1e6), ANSWERING)
    assert planner.ratios[START.roles] <= 20 * before
    planner.learn(START, replace(usual, num_tokens=0, seconds=1e-9), ANSWERING)
    assert planner.ratios[START.roles] > before / 2


def test_a_row_with_several_answers_counts_as_several() -> None:
    class Rows:
        def lengths(self, rows: np.ndarray) -> Lengths:
            count = 8 * len(rows)
            return Lengths(
                prompts=[5.0] * count, answers=[7.0] * count, num_sequences=count, how=""
            )

    work = read_work(cast(RowInput, Rows()), np.arange(1000))
    assert work == Workload(num_rows=8000, mean_prompt=5.0, mean_new=7.0)
    assert read_work(cast(RowInput, Rows()), np.arange(0)).num_rows == 0
