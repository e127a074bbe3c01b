"""Which candidate is best: for a demanded rate, on a fixed allocation, or for rows with a deadline. Pure.

Every search judges all candidates at once and keeps why each is refused; ties fall by a fixed order.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from janus_hpc.planner.memory import attention_bytes, cache_bytes, expert_bytes, largest_batch
from janus_hpc.planner.stage_costs import nodes_of
from janus_hpc.planner.system import Bools, Floats, Grid, Ints, System
from janus_hpc.planner.tpot import StepTimes, step_times

# Legend: X candidates.

# Why a candidate is refused, by number.
REASONS = ("", "memory", "rate", "slo", "nodes", "deadline")
OK, MEMORY, RATE, SLO, NODES, DEADLINE = range(6)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Rows to answer: mean tokens of a prompt and of an answer."""

    num_rows: int
    mean_prompt: float
    mean_new: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Judged:
    """Every candidate with its batch (sequences in flight over all attention ranks; 0 where there is none),
    what a step of it takes, bytes of a rank by role, tokens a second, and `reason`: an index into REASONS.
    `job_s`: seconds of the rows, where rows were given.
    """

    grid: Grid
    batch: Ints
    times: StepTimes
    attention_bytes: Floats
    expert_bytes: Floats
    tokens_per_s: Floats
    reason: Ints
    cost: Floats
    job_s: Floats | None = None

    @property
    def feasible(self) -> Bools:
        """Which of them may be chosen."""
        ok: Bools = self.reason == OK
        return ok

    def order(self, by: Literal["cost", "speed", "job", "time"]) -> Ints:
        """All candidates, the best first: feasible ones; then by cost, tokens a second, cost of the job or its
        time; then by cost (after speed and time) or step time, then fewer attention ranks, fewer slots.
        """
        job_s = self.job_s if self.job_s is not None else np.zeros(len(self.grid))
        first: Floats = {
            "cost": self.cost,
            "speed": -self.tokens_per_s,
            "job": self.cost * job_s,
            "time": job_s,
        }[by]
        second = self.cost if by in ("speed", "time") else self.times.tpot_s
        grid = self.grid
        keys = (
            grid.num_slots,
            grid.num_attention,
            self.times.tpot_s,
            second,
            first,
            ~self.feasible,
        )
        ranking: Ints = np.lexsort(keys)
        return ranking


def for_rate(system: System, grid: Grid, rate: float, slo_s: float) -> Judged:
    """Janus, Algorithm 2: at each candidate's steady state under `rate` tokens a second."""
    most = largest_batch(system, grid)
    batch = steady_batch(system, grid, rate, most)
    return _judge(system, grid, most, batch, slo_s, RATE)


def for_speed(
    system: System, grid: Grid, slo_s: float, *, most: Ints | int | None = None
) -> Judged:
    """The largest batch whose step meets the SLO, and how many tokens a second that makes; at most `most`."""
    room = largest_batch(system, grid)
    if most is not None:
        room = np.minimum(room, most)
    return _judge(system, grid, room, _largest_within(system, grid, room, slo_s), slo_s, SLO)


def for_rows(
    system: System, grid: Grid, work: Workload, slo_s: float, *, deadline_s: float | Floats = np.inf
) -> Judged:
    """As `for_speed` with no more in flight than there are rows; those too late for the deadline are refused."""
    judged = for_speed(system, grid, slo_s, most=max(work.num_rows, 1))
    seconds = job_s(system, grid, judged.batch, judged.times, work)
    late = judged.feasible & (seconds > deadline_s)
    return replace(judged, job_s=seconds, reason=np.where(late, DEADLINE, judged.reason))


def steady_batch(system: System, grid: Grid, rate: float, most: Ints) -> Ints:
    """The smallest B with B >= rate TPOT(B), by bounded bisection (Janus, Eq. 2 and Algorithm 2): 1 where one
    sequence is enough, 0 where `most` are too few.
    """

    def is_enough(batch: Ints) -> Bools:
        enough: Bools = batch >= rate * step_times(system, grid, batch).tpot_s
        return enough

    top, ranks = np.maximum(most, 1), grid.num_attention
    # A step gets longer where its fullest rank gets one sequence more, so f falls there: by sequences of that
    # rank first, then among batches with as many.
    longest = _bisect(
        np.ones_like(top), -(-top // ranks), lambda b: is_enough(np.minimum(b * ranks, top))
    )
    low, high = np.minimum((longest - 1) * ranks + 1, top), np.minimum(longest * ranks, top)
    found = _bisect(low, high, is_enough)
    return np.where((most > 0) & is_enough(found), found, 0)


def job_s(system: System, grid: Grid, batch: Ints, times: StepTimes, work: Workload) -> Floats:
    """Seconds for all rows: prefill in full steps, and decode steps of the batch; never fewer of these than the
    longest row has tokens. Infinite without a batch.
    """
    full = grid.num_attention * system.max_step_tokens
    num_prefill = work.num_rows * work.mean_prompt / full
    # A prompt's token has half of it behind it.
    prefill = step_times(system, grid, full, context=work.mean_prompt / 2).tpot_s
    num_decode = work.num_rows * work.mean_new / np.maximum(batch, 1)
    seconds = num_prefill * prefill + np.maximum(num_decode, work.mean_new) * times.tpot_s
    found: Floats = np.where(batch > 0, seconds, np.inf)
    return found


def _largest_within(system: System, grid: Grid, most: Ints, slo_s: float) -> Ints:
    """The largest batch whose step is within the SLO; 0 without any."""
    within = slo_s / system.slo_ratio

    def is_too_slow(batch: Ints) -> Bools:
        slow: Bools = step_times(system, grid, batch).tpot_s > within
        return slow

    top = np.maximum(most, 1)
    first_slow = _bisect(np.ones_like(top), top + 1, is_too_slow)
    return np.where(most > 0, np.minimum(first_slow - 1, most), 0)


def _bisect(low: Ints, high: Ints, holds: Callable[[Ints], Bools]) -> Ints:
    """The smallest value in [low, high] from which a monotone condition holds; high where it holds nowhere."""
    while (low < high).any():
        middle = (low + high) // 2
        good = holds(middle)
        low, high = np.where(good, low, middle + 1), np.where(good, middle, high)
        low = np.minimum(low, high)
    return low


def _judge(
    system: System, grid: Grid, most: Ints, batch: Ints, slo_s: float, without_batch: int
) -> Judged:
    shown = np.maximum(batch, 1)
    times = step_times(system, grid, shown)
    no_link = ~nodes_of(system, grid).is_one & ~np.isfinite(times.comm_s)
    too_slow = times.tpot_s * system.slo_ratio > slo_s
    reason = np.select(
        [most == 0, no_link, batch == 0, too_slow], [MEMORY, NODES, without_batch, SLO], OK
    )
    attention = attention_bytes(system, grid) + cache_bytes(
        system, np.ceil(shown / grid.num_attention)
    )
    experts = expert_bytes(system, grid, shown)
    both = np.where(grid.colocated, attention + experts, 0.0)
    prices = system.attention.hardware.price, system.experts.hardware.price
    cost = grid.num_attention * prices[0] + np.where(grid.colocated, 0, grid.num_expert) * prices[1]
    return Judged(
        grid=grid,
        batch=batch,
        times=times,
        attention_bytes=np.where(grid.colocated, both, attention),
        expert_bytes=np.where(grid.colocated, both, experts),
        tokens_per_s=batch / times.tpot_s,
        reason=reason,
        cost=cost,
    )
