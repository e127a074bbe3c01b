"""How many slots a run takes, when experts move between batches, and what a batch is said to have come to."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from janus_hpc.kernels.balance import balance
from janus_hpc.kernels.slot_lists import SlotLists
from janus_hpc.kernels.slot_map import SlotMap

from janus_hpc.comm.exchange import StepHeader
from janus_hpc.config import RunConfig
from janus_hpc.engine.account import Account, BatchFacts, RankReport
from janus_hpc.engine.batch_times import batch_times
from janus_hpc.engine.placing import choose_slots, place
from janus_hpc.engine.rebalance import decide
from janus_hpc.engine.tallies import StepSums, Tallies
from janus_hpc.experts.activity import ExpertActivity
from janus_hpc.placement.placement import Placement
from janus_hpc.routing.trace import RoutingTrace
from tests.unit.test_a_max import trace_of
from tests.unit.test_gates import SPEC

SLOT_BYTES = 3 * SPEC.hidden * SPEC.moe.width * 4 * len(SPEC.sparse_layers)


@pytest.mark.parametrize(
    ("asked", "num_ranks", "room_slots", "expected"),
    [
        (7, 4, 0, 7),  # as asked for, whatever memory there is
        (0, 1, 1000, 13),  # one rank holds each expert once
        (0, 4, 1000, 4),  # 13 * 1.25 / 4 = 4.06, and 4 are needed
        (0, 3, 1000, 5),  # 13 * 1.25 / 3 = 5.4, 5 are needed
        (0, 2, 1000, 8),  # 7 are needed
        (0, 2, 15, 7),  # half of the memory holds 7
        (0, 2, 1, 7),  # what is needed is tried in any case
        (0, 13, 1000, 1),
    ],
)
def test_slots(asked: int, num_ranks: int, room_slots: int, expected: int) -> None:
    num_slots, why = choose_slots(asked, SPEC, num_ranks, room_slots * SLOT_BYTES, 4)
    assert num_slots == expected and why


def config(**options: Any) -> RunConfig:
    return RunConfig(prompts="", **options)


def current(num_slots: int = 8) -> Placement:
    return place("contiguous", SPEC, num_slots, [0, 0], None, "")


def trace(*pairs: tuple[int, int]) -> RoutingTrace:
    """Tokens that choose these pairs of experts, in both layers alike."""
    routes_WK = np.array(pairs * 20, dtype=np.int16)
    return trace_of(np.stack([routes_WK, routes_WK]), SPEC.moe.num_experts)


def test_experts_move_where_it_pays() -> None:
    """Experts 0 to 3 are all that is ever used: they lie on the first rank, 0 on the second, too."""
    seen = trace((0, 1), (2, 3), (0, 2), (1, 3))
    decision = decide(config(), SPEC, current(), [0, 0], seen, 16.0, None)
    assert decision.placement is not None and "3.00 -> 2.00" in decision.why
    assert decision.placement.epoch == 1 and decision.placement.kind == "janus"
    decision.placement.check()


@pytest.mark.parametrize(
    ("options", "placement", "seen", "why"),
    [
        ({"rebalance": "off"}, current(), trace((0, 1)), "--rebalance off"),
        ({}, place("contiguous", SPEC, 13, [0], None, ""), trace((0, 1)), "one expert rank"),
        ({}, current(), None, "no routing"),
        ({}, current(), trace((0, 12), (1, 11)), "less than 2%"),
    ],
)
def test_experts_stay_where_it_does_not(
    options: dict[str, Any], placement: Placement, seen: RoutingTrace | None, why: str
) -> None:
    nodes = [0] * placement.num_ranks
    decision = decide(config(**options), SPEC, placement, nodes, seen, 16.0, None)
    assert decision.placement is None and why in decision.why


def test_always_moves_also_where_it_does_not_pay() -> None:
    seen = trace((0, 12), (1, 11))
    decision = decide(config(rebalance="always"), SPEC, current(), [0, 0], seen, 16.0, None)
    assert decision.placement is not None


def report(tokens: int, steps: int, ids: list[list[int]], experts_s: float) -> RankReport:
    """Of a rank that had one pass with these choices in each of its steps."""
    activity = ExpertActivity((0, 2), 13)
    slots = current().slots_LRC[0].tolist()
    balanced = balance(
        torch.tensor(ids), SlotMap.make(SlotLists(slots, 13), torch.device("cpu")), "first", 0
    )
    for _ in range(steps):
        activity.record(0, balanced)
        activity.record(2, balanced)
    tallies = Tallies(tokens_generated=tokens, num_decode_steps=steps, decode_s=0.5 * steps)
    return RankReport(tallies=tallies, activity=activity, experts_s=experts_s, traces=[])


NOTHING = RankReport(tallies=Tallies(), activity=None, experts_s=float("nan"), traces=[])
FACTS: dict[str, Any] = {"plan": "", "split": "", "exchange": "", "num_rows": 3, "seconds": 1.0}
FACTS |= {"slots_moved": 0, "move_s": 0.0, "placement": current()}


def test_batches_add_up_whatever_role_a_rank_has() -> None:
    account, ids = Account(top_k=2), [[0, 1], [2, 9]]
    account.add(BatchFacts(**FACTS), [report(10, 4, ids, 1.0), NOTHING])
    account.add(BatchFacts(**FACTS), [NOTHING, report(6, 2, ids, 0.25)])
    first, second = account.batches
    assert (first.num_tokens, first.num_passes, first.experts_s) == (10, 4, 1.0)
    assert (second.num_tokens, second.num_passes, second.experts_s) == (6, 2, 0.25)
    assert first.tpot_s == second.tpot_s == 0.5
    assert first.a_max_mean == second.a_max_mean == 3.0, "0, 1 and 2 on one rank"
    assert account.tokens_per_pass == 2.0
    assert len(account.placements) == 1
    assert [its.tokens_generated for its in account.tallies] == [10, 6]
    assert account.activity is not None and account.activity.num_passes_L == [6, 6]
    assert account.activity.tokens_LE.sum() == 2 * 6 * 4


def test_the_trace_is_of_all_batches() -> None:
    account, seen = Account(top_k=2), trace((0, 1), (2, 3))
    for _ in range(3):
        account.add(BatchFacts(**FACTS), [replace(NOTHING, traces=[seen]), NOTHING])
    assert account.trace is not None
    account.trace.check()
    assert np.array_equal(account.trace.counts_LE, 3 * seen.counts_LE)


def step(seconds: float, attention_s: float, experts_s: float, num_sequences: int) -> StepSums:
    return StepSums(
        num_steps=1,
        seconds=seconds,
        attention_s=attention_s,
        experts_s=experts_s,
        num_sequences=num_sequences,
        num_context=10 * num_sequences,
    )


def headers(*tokens_and_running: tuple[int, int]) -> list[StepHeader]:
    return [
        StepHeader(num_tokens, counters=Tallies().counters(running))
        for num_tokens, running in tokens_and_running
    ]


def test_stage_times_are_of_steps_without_prefill_on_any_rank() -> None:
    ranks = [Tallies(), Tallies(), Tallies(), Tallies()]
    plain = [step(1.0, 0.25, 0.0, 4), step(1.0, 0.5, 0.0, 2), step(0.0, 0.0, 0.125, 0)]
    for kind, factor in ((headers((4, 4), (2, 3)), 1), (headers((9, 4), (2, 3)), 7)):
        for rank, its in zip(ranks, plain, strict=False):
            for _ in range(factor):
                rank.stages(kind, its)
    times = batch_times(ranks, on_host=True)
    assert times.num_decode_steps == 1
    assert (times.decode_tpot_s, times.attention_s, times.moe_s) == (1.0, 0.5, 0.125)
    assert times.comm_s == 1.0 - 0.5 - 0.125
    assert (times.mean_batch, times.mean_context) == (6.0, 10.0)
    assert math.isnan(batch_times(ranks, on_host=False).attention_s)


def test_stage_times_are_of_all_steps_where_each_has_prefill() -> None:
    rank = Tallies()
    rank.stages(headers((9, 4)), step(2.0, 0.5, 0.25, 4))
    times = batch_times([rank], on_host=True)
    assert (times.num_decode_steps, times.decode_tpot_s, times.comm_s) == (0, 2.0, 1.25)
    assert math.isnan(batch_times([Tallies()], on_host=True).decode_tpot_s)
