"""Whether the next batch should run under another split, and what the model learns from the last one. Pure.

Knows times, not rows or ranks: what is measured comes in as numbers, what is decided goes out as a choice.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from janus_hpc.planner.search import Judged, Workload, for_rows
from janus_hpc.planner.system import Context, Factors, Grid, System, make_grid
from janus_hpc.planner.tpot import step_times
from janus_hpc.topology import Split

# A change must save this part of what is left, and this many times what it costs: predictions err, and ranks
# that move to and fro answer nothing.
MIN_GAIN = 0.05
COST_FACTOR = 2.0
# How much of a new measurement goes into what was known before.
_LEARN = 0.7
_LARGEST_FACTOR = 20.0


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a batch runs under. `num_attention` == `num_expert` are the same ranks where colocated."""

    num_attention: int
    num_expert: int
    num_slots: int
    colocated: bool
    microbatches: int = 1

    def split(self, world_size: int) -> Split:
        """As a split of a world; what is left over is parked."""
        if self.colocated:
            n = self.num_expert
            return Split(num_colocated=n, num_parked=world_size - n)
        used = self.num_attention + self.num_expert
        return Split(
            num_attention=self.num_attention,
            num_expert=self.num_expert,
            num_parked=world_size - used,
        )

    def grid(self) -> Grid:
        """As a grid of one."""
        return Grid(
            num_attention=np.array([self.num_attention]),
            num_expert=np.array([self.num_expert]),
            num_slots=np.array([self.num_slots]),
            colocated=np.array([self.colocated]),
        )

    @property
    def roles(self) -> tuple[int, int, bool]:
        """What of it other choices with other slots share."""
        return self.num_attention, self.num_expert, self.colocated


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Seconds of a step and of its stages, as the model has them before a batch runs."""

    tpot_s: float
    attention_s: float
    moe_s: float
    comm_s: float


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A batch that has run: sequences in flight in decode steps over all ranks and tokens behind each, seconds
    of a decode step and of its stages (NaN where unknown), seconds of the whole batch, rows, and tokens
    generated.
    """

    batch: float
    context: float
    tpot_s: float
    attention_s: float
    moe_s: float
    comm_s: float
    seconds: float
    num_rows: int
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`choice` is None where the split stays; `gain_s` and `cost_s` are predicted for what is left to do."""

    choice: Choice | None
    why: str
    gain_s: float
    cost_s: float


@dataclass(kw_only=True)
class Replanner:
    """The model of one run, which learns from its batches. World rank 0 has it.

    `slots`: as many on each expert rank, 0 for what is best; `apart`: no rank may do both.
    """

    system: System
    world_size: int
    slo_s: float = np.inf
    slots: int = 0
    apart: bool = False
    # Of splits that have run: measured over predicted seconds of a batch.
    ratios: dict[tuple[int, int, bool], float] = field(default_factory=dict)
    # Tokens that rows really generated over those they may generate.
    answer_share: float = 1.0

    def predict(self, choice: Choice, batch: float, context: float) -> Predicted:
        """What a decode step takes, by what is known now."""
        system = replace(self.system, microbatches=(choice.microbatches,))
        times = step_times(system, choice.grid(), np.array([batch]), context=context)
        parts = (times.tpot_s, times.attention_s, times.moe_s, times.comm_s)
        tpot_s, attention_s, moe_s, comm_s = (float(its[0]) for its in parts)
        return Predicted(tpot_s=tpot_s, attention_s=attention_s, moe_s=moe_s, comm_s=comm_s)

    def job_s(self, choice: Choice, work: Workload) -> float:
        """Seconds of a batch of these rows under a choice, by what is known now; inf where it does not fit."""
        judged = self._judge(choice.grid(), work)
        assert judged.job_s is not None
        return float(judged.job_s[0]) * self._ratio(choice.roles)

    def learn(self, choice: Choice, measured: Measured, work: Workload) -> None:
        """Take a batch's measurements. `work`: what was expected of its rows, with answers as they may be."""
        before = self.system.factors
        if choice.microbatches == 1 and measured.batch > 0:
            plain = replace(self, system=replace(self.system, factors=Factors()))
            expected = plain.predict(choice, measured.batch, measured.context)
            self.system = replace(self.system, factors=self._learnt(before, measured, expected))
        if measured.num_rows and work.mean_new > 0:
            share = measured.num_tokens / measured.num_rows / work.mean_new
            self.answer_share = _mixed(self.answer_share, share, 1.0)
        done = replace(
            work,
            num_rows=measured.num_rows,
            mean_new=measured.num_tokens / max(measured.num_rows, 1),
        )
        judged = self._judge(choice.grid(), done)
        assert judged.job_s is not None
        told_s = float(judged.job_s[0])
        if measured.num_tokens and 0 < told_s < np.inf:
            before_ratio = self.ratios.get(choice.roles, measured.seconds / told_s)
            self.ratios[choice.roles] = _mixed(before_ratio, measured.seconds, told_s)

    def decide(
        self,
        current: Choice,
        work: Workload,
        num_batches: float,
        cost_s: Callable[[Choice], float],
    ) -> Verdict:
        """The split for `num_batches` batches with the rows of `work`; `cost_s`: of moving to a choice."""
        expected = replace(work, mean_new=max(work.mean_new * self.answer_share, 1.0))
        now_s = self.job_s(current, expected) * num_batches
        best = self.best(expected)
        if best is None:
            return Verdict(
                choice=None, why="no split of these ranks meets the SLO", gain_s=0.0, cost_s=0.0
            )
        choice, batch_s = best
        gain_s, moving_s = now_s - batch_s * num_batches, cost_s(choice)
        said = (
            f"{self._name(choice)} takes {batch_s * num_batches:.3g} s for what is left (rows of "
            f"{expected.mean_prompt:.0f} + {expected.mean_new:.0f} tokens), "
            f"{self._name(current)} {now_s:.3g} s; moving takes {moving_s:.2g} s"
        )
        if choice.roles == current.roles and choice.microbatches == current.microbatches:
            return Verdict(choice=None, why=f"{said}: the best already", gain_s=0.0, cost_s=0.0)
        if gain_s < MIN_GAIN * now_s or gain_s < COST_FACTOR * moving_s:
            limit = f"less than {MIN_GAIN:.0%} or {COST_FACTOR:g} times the cost of moving"
            return Verdict(choice=None, why=f"{said}: {limit}", gain_s=gain_s, cost_s=moving_s)
        return Verdict(choice=choice, why=said, gain_s=gain_s, cost_s=moving_s)

    def best(self, work: Workload) -> tuple[Choice, float] | None:
        """The choice with the shortest time for a batch of these rows, and the time; None if none will do."""
        grid = self.candidates()
        if not len(grid):
            return None
        judged = self._judge(grid, work)
        assert judged.job_s is not None
        columns = (grid.num_attention, grid.num_expert, grid.colocated)
        keys = zip(*(its.tolist() for its in columns), strict=True)
        ratio = np.array([self._ratio(key) for key in keys])
        judged = replace(judged, job_s=judged.job_s * ratio)
        at = int(judged.order("time")[0])
        if not judged.feasible[at] or judged.job_s is None:
            return None
        return choice_at(judged, at), float(judged.job_s[at])

    def _learnt(self, before: Factors, measured: Measured, expected: Predicted) -> Factors:
        """A factor a stage. Where more ranks than cores take turns, one for all: a rank that waits for a core
        while it computes looks as if it waited for others.
        """
        hardware = self.system.attention.hardware
        if 0 < hardware.cores_per_node < self.system.node_size:
            whole = _mixed(before.attention, measured.tpot_s, expected.tpot_s)
            return Factors(attention=whole, moe=whole, comm=whole)
        return Factors(
            attention=_mixed(before.attention, measured.attention_s, expected.attention_s),
            moe=_mixed(before.moe, measured.moe_s, expected.moe_s),
            comm=_mixed(before.comm, measured.comm_s, expected.comm_s),
        )

    def candidates(self) -> Grid:
        """All splits of this world's ranks."""
        ranks = range(1, self.world_size + 1)
        return make_grid(
            self.system,
            ranks,
            ranks,
            colocated=() if self.apart else ranks,
            max_ranks=self.world_size,
            slots=self.slots,
        )

    def _judge(self, grid: Grid, work: Workload) -> Judged:
        context = Context(mean=work.mean_prompt + work.mean_new / 2, std=self.system.context.std)
        return for_rows(replace(self.system, context=context), grid, work, self.slo_s)

    def _ratio(self, roles: tuple[int, int, bool]) -> float:
        """Of a split that has not run: as of those that have, so that it does not seem better only for that."""
        if not self.ratios:
            return 1.0
        known = list(self.ratios.values())
        return self.ratios.get(roles, float(np.exp(np.mean(np.log(known)))))

    def _name(self, choice: Choice) -> str:
        return f"{choice.split(self.world_size)} with {choice.num_slots} slots"


def choice_at(judged: Judged, at: int) -> Choice:
    """A judged candidate as a choice."""
    grid = judged.grid
    return Choice(
        num_attention=int(grid.num_attention[at]),
        num_expert=int(grid.num_expert[at]),
        num_slots=int(grid.num_slots[at]),
        colocated=bool(grid.colocated[at]),
        microbatches=int(judged.times.microbatches[at]),
    )


def _mixed(before: float, found: float, told: float) -> float:
    """A factor that learns: found over told, within bounds, in part."""
    if not (np.isfinite(found) and found > 0 and told > 0):
        return before
    new = min(max(found / told, 1 / _LARGEST_FACTOR), _LARGEST_FACTOR)
    return float(np.exp((1 - _LEARN) * np.log(before) + _LEARN * np.log(new)))
