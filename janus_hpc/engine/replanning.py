"""The SLO planner between batches: what the last batch taught it, and under which split the next one runs.

Runs on world rank 0. Knows batches as numbers and rows by their lengths; times are `planner.replan`'s.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from janus_hpc.engine.account import Account
from janus_hpc.engine.deciders import Decider
from janus_hpc.engine.decision import Assignment, BorderDecision, Prediction, Standing
from janus_hpc.engine.placing import choose_placement, expert_nodes
from janus_hpc.engine.plan import RunPlan
from janus_hpc.engine.planned_split import predict, read_work
from janus_hpc.engine.row_input import RowInput
from janus_hpc.kernels.native.balance_library import BalanceLibrary
from janus_hpc.placement.moves import moves
from janus_hpc.placement.placement import Placement
from janus_hpc.placement.world_rows import aligned_with, over_world
from janus_hpc.planner.a_max_lookup import AMaxLookup, traced_routing
from janus_hpc.planner.replan import Choice, Measured, Replanner
from janus_hpc.planner.search import Workload
from janus_hpc.results.stats import BatchStats
from janus_hpc.topology import assign_roles

# Moves of fewer bytes tell nothing of a link's rate.
_LEAST_TELLING_BYTES = 1 << 20


class Replanning:
    """A decider that predicts every batch, and with `--replan auto` chooses its split; else `otherwise` does."""

    def __init__(
        self,
        plan: RunPlan,
        planner: Replanner,
        otherwise: Decider,
        node_ids: Sequence[int],
        itemsize: int,
        library: BalanceLibrary | None,
    ) -> None:
        assert plan.profile is not None
        self._plan, self._planner, self._otherwise = plan, planner, otherwise
        self._node_ids, self._itemsize, self._library = node_ids, itemsize, library
        self._input = RowInput(plan)
        self._batches = plan.batches()
        loading = plan.profile.profile.loading
        self._join_s, self._link_rate = loading.join_s, loading.link_rate
        # Nodes that hold attention weights stay so.
        self._nodes = {node_ids[rank] for rank in _attention_ranks(plan.assignment)}
        self._expected = read_work(self._input, self._batches[0])
        self._tokens_of_lookup = 0

    def decide(self, account: Account, now: Standing) -> BorderDecision:
        """How the coming batch runs; rows of it are read for their lengths."""
        current = choice_of(now)
        self._learn(account, current)
        self._expected = work = read_work(self._input, self._batches[now.number])
        if self._plan.config.replan == "auto":
            decision = self._choose(account, now, current, work)
        else:
            decision = self._otherwise.decide(account, now)
        return replace(decision, prediction=self._prediction(decision, current, work))

    def _learn(self, account: Account, current: Choice) -> None:
        last = account.batches[-1]
        self._planner.learn(current, measured_of(last, self._expected), self._expected)
        if last.slots_moved or last.move_s:
            if last.moved_bytes >= _LEAST_TELLING_BYTES:
                # Joining is in that time, too: what is learnt errs to the slow side.
                self._link_rate = last.moved_bytes / last.move_s
            else:
                self._join_s = max(last.move_s, 1e-3)
        trace = account.trace
        if trace is None or not trace.num_tokens_L.all():
            return
        # Tables of a_max take time: made again when twice as much is known of the routing.
        num_tokens = int(trace.num_tokens_L.sum())
        if num_tokens >= 2 * self._tokens_of_lookup:
            self._tokens_of_lookup = num_tokens
            lookup = AMaxLookup(
                traced_routing(trace, "this run"),
                policy=self._plan.config.balance,
                library=self._library,
            )
            self._planner.system = replace(self._planner.system, a_max=lookup)

    def _choose(
        self, account: Account, now: Standing, current: Choice, work: Workload
    ) -> BorderDecision:
        found: dict[Choice, tuple[Assignment, Placement]] = {}

        def cost_s(choice: Choice) -> float:
            assignment = self._assign(choice)
            placement = self._place(account, choice, assignment)
            found[choice] = assignment, placement
            return self._move_s(now, assignment, placement)

        num_batches = now.num_rows_left / max(len(self._batches[now.number]), 1)
        verdict = self._planner.decide(current, work, num_batches, cost_s)
        if verdict.choice is None:
            decision = self._otherwise.decide(account, now)
            return replace(decision, why=f"{decision.why}; split stays: {verdict.why}")
        assignment, placement = found[verdict.choice]
        self._nodes |= {self._node_ids[rank] for rank in _attention_ranks(assignment)}
        return BorderDecision(
            why=verdict.why,
            assignment=replace(assignment, why=verdict.why),
            placement=placement,
            num_microbatches=verdict.choice.microbatches,
            prediction=Prediction(move_s=verdict.cost_s, gain_s=verdict.gain_s),
        )

    def _prediction(self, decision: BorderDecision, current: Choice, work: Workload) -> Prediction:
        """Of a step of the coming batch with all its sequences in flight."""
        choice = current
        if decision.assignment is not None and decision.placement is not None:
            split = decision.assignment.split
            choice = Choice(
                num_attention=split.num_attention + split.num_colocated,
                num_expert=split.num_expert_ranks,
                num_slots=decision.placement.num_slots,
                colocated=split.num_colocated > 0,
                microbatches=decision.num_microbatches or current.microbatches,
            )
        return replace(decision.prediction or Prediction(), **predict(self._planner, choice, work))

    def _assign(self, choice: Choice) -> Assignment:
        split = choice.split(len(self._node_ids))
        return Assignment(
            split=split, roles=tuple(assign_roles(split, list(self._node_ids))), why=""
        )

    def _place(self, account: Account, choice: Choice, under: Assignment) -> Placement:
        config = msgspec.structs.replace(self._plan.config, slots=choice.num_slots)
        placement, _ = choose_placement(
            config,
            self._plan.spec,
            expert_nodes(self._node_ids, under.roles),
            self._plan.room_bytes,
            self._itemsize,
            None if config.rebalance == "off" else account.trace,
        )
        return placement

    def _move_s(self, now: Standing, assignment: Assignment, placement: Placement) -> float:
        """Seconds of going over: experts and attention weights that move at the link's rate, and joining."""
        size = len(self._node_ids)
        before, after = (
            [rank for rank, role in enumerate(its.roles) if role.does_experts]
            for its in (now.assignment, assignment)
        )
        new = aligned_with(placement, after, now.placement, before, size)
        planned = moves(
            over_world(now.placement, before, size), over_world(new, after, size), self._node_ids
        )
        model = self._planner.system.experts.model
        nodes = {self._node_ids[rank] for rank in _attention_ranks(assignment)} - self._nodes
        num_bytes = len(planned) * model.expert_bytes + len(nodes) * model.attention_bytes
        return num_bytes / self._link_rate + self._join_s


def _attention_ranks(assignment: Assignment) -> list[int]:
    return [rank for rank, role in enumerate(assignment.roles) if role.does_attention]


def choice_of(now: Standing) -> Choice:
    """What is in force, as the planner names it."""
    split = now.assignment.split
    return Choice(
        num_attention=split.num_attention + split.num_colocated,
        num_expert=split.num_expert_ranks,
        num_slots=now.placement.num_slots,
        colocated=split.num_colocated > 0,
        microbatches=now.num_microbatches,
    )


def measured_of(batch: BatchStats, expected: Workload) -> Measured:
    """A batch as the planner learns from it; it had as many sequences as were expected."""
    known = not math.isnan(batch.mean_batch)
    return Measured(
        batch=batch.mean_batch if known else 0.0,
        context=batch.mean_context if known else 0.0,
        tpot_s=batch.decode_tpot_s,
        attention_s=batch.attention_s,
        moe_s=batch.moe_s,
        comm_s=batch.comm_s,
        seconds=batch.seconds,
        num_rows=expected.num_rows,
        num_tokens=batch.num_tokens,
    )
