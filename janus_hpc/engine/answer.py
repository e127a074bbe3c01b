"""Answering the pending rows on one rank, batch by batch: its part of the engine with rows, journal and progress
around it, and the border between two batches.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from janus_hpc.comm.exchange import StepHeader
from janus_hpc.core import RowProgress, RowResult
from janus_hpc.engine.account import Account, BatchFacts, Reporter
from janus_hpc.engine.border import Border
from janus_hpc.engine.claims import RowIds
from janus_hpc.engine.ending import Horizon
from janus_hpc.engine.ending import is_last as is_last_step
from janus_hpc.engine.parts import RunHooks
from janus_hpc.engine.plan import RunPlan
from janus_hpc.engine.progress import Progress
from janus_hpc.engine.row_input import RowInput
from janus_hpc.engine.signals import StopFlag
from janus_hpc.errors import JanusError
from janus_hpc.results.journal import JournalWriter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answered:
    """`account` is None on all ranks but 0; `stopped`: why rows are left, empty where none are."""

    account: Account | None
    seconds: float
    stopped: str

    @property
    def num_tokens(self) -> int:
        """Tokens generated in this launch, as world rank 0 knows it; 0 elsewhere."""
        tallies = [] if self.account is None else self.account.tallies
        return sum(its.tokens_generated for its in tallies)


def answer(
    plan: RunPlan, border: Border, stop: StopFlag, horizon: Horizon, progress: Progress | None
) -> Answered:
    """Answer all pending rows. Collective over the world."""
    started_s = time.monotonic()
    stop.tell_by(plan.run_dir / f"stop-{plan.launch:04d}")
    answering = _Answering(plan, border, stop, horizon, progress, started_s)
    stopped = ""
    batches = plan.batches()
    num_left = sum(map(len, batches))
    try:
        for number, rows in enumerate(batches):
            if number:
                border.cross(answering.account, number, num_left)
            num_left -= len(rows)
            stopped = answering.run_batch(rows, is_last=number == len(batches) - 1)
            if stopped:
                break
        border.free()
    finally:
        answering.close()
    return Answered(answering.account, time.monotonic() - started_s, stopped)


class _Answering:
    """What one rank needs from the first batch to the last, whatever its role in each."""

    def __init__(
        self,
        plan: RunPlan,
        border: Border,
        stop: StopFlag,
        horizon: Horizon,
        progress: Progress | None,
        started_s: float,
    ) -> None:
        world = border.setup.world
        self.account = Account(plan.spec.moe.top_k) if world.world_rank == 0 else None
        self._plan = plan
        self._border = border
        self._stop = stop
        self._progress = progress
        self._started_s = started_s
        self._input = RowInput(plan)
        self._horizon = horizon
        self._reporter = Reporter()
        self._journal: JournalWriter | None = None

    def run_batch(self, rows: RowIds, *, is_last: bool) -> str:
        """Why rows are left, empty where none are; the same on every rank. Collective over the world."""
        plan, border = self._plan, self._border
        border.check()
        hooks = RunHooks(
            make_rows=self._input.rows,
            record=self._open_journal(),
            leave=self._leave,
            stop_asked=self._must_stop,
            horizon=self._horizon,
            on_step=partial(self._on_step, self._elsewhere(), is_last),
        )
        began_s = time.monotonic()
        part = border.part
        log.debug("batch of %d rows begins", len(rows))
        with border.setup.world.pulse.steps():
            headers = part.run(rows, hooks)
        if part.joined.exchange is not None:
            part.joined.exchange.settle()
        # A stop that comes with the last row changes nothing; parked ranks have no headers.
        stopped = not all(h.done for h in headers)
        seconds = time.monotonic() - began_s
        log.debug("batch ended after %.3g s, %s", seconds, "rows are left" if stopped else "done")
        if self._journal is not None:
            # At the next border this rank may turn to something else for a long time.
            self._journal.sync()
        # Samples stay behind in a part that ends with a change of roles.
        with_trace = is_last or plan.config.rebalance != "off" or plan.config.replan != "off"
        report = self._reporter.report(part, with_trace=with_trace)
        reports = border.setup.world.gather(report)
        if self.account is not None and reports is not None:
            facts = _facts(border, len(rows), began_s - self._started_s, seconds)
            self.account.add(facts, reports)
        # With rows left in later batches a stop counts that came too late for this one's.
        stopped |= not is_last and self._must_stop()
        if not any(border.setup.world.allgather(stopped)):
            return ""
        # Only now: a signal may come while a rank waits for the others.
        return _why_stopped(border.setup.world.allgather(self._stop.signal_name))

    def close(self) -> None:
        """Close what is open on this rank."""
        if self._journal is not None:
            self._journal.close()

    def _open_journal(self) -> Callable[[RowResult], None]:
        """Where finished rows go: this rank's journal, which it has from its first batch with rows on."""
        plan, setup = self._plan, self._border.setup
        if not setup.role.does_attention:
            return _no_record
        if self._journal is None:
            own = setup.world.world_rank
            self._journal = JournalWriter(plan.run_dir, plan.launch, own, plan.fingerprint)
        return self._journal.append

    def _must_stop(self) -> bool:
        if self._stop() or self._horizon.is_over():
            return True
        setup = self._border.setup
        is_first = setup.world.world_rank == setup.topology.attention_ranks[0]
        return is_first and self._stop.told_by_any()

    def _leave(self, rows: list[RowProgress]) -> None:
        """Keep what rows in flight have, for the launch that resumes."""
        if self._journal is None:
            return
        self._journal.sync()
        try:
            self._journal.append_progress(rows)
        except JanusError as error:
            log.warning("rows in flight will be computed anew: %s", error)
            self._journal = None

    def _elsewhere(self) -> list[tuple[int, ...]]:
        """The counters of ranks that did attention in earlier batches and have no header in this one."""
        here = self._border.setup.topology.attention_ranks
        tallies = [] if self.account is None else self.account.tallies
        return [its.counters(0) for rank, its in enumerate(tallies) if rank not in here]

    def _on_step(
        self, elsewhere: list[tuple[int, ...]], is_last: bool, headers: list[StepHeader]
    ) -> None:
        pulse, tallies = self._border.setup.world.pulse, self._border.part.tallies
        if self._journal is not None:
            with pulse.spans.span("journal"):
                self._journal.maybe_sync(time.monotonic())
        pulse.tell(tallies.attention_s, tallies.experts_s)
        if self._progress is not None:
            done = all(h.done for h in headers)
            stopping = is_last_step(headers) and not done
            state = "merging" if is_last and done else "interrupted" if stopping else "running"
            self._progress.update([*elsewhere, *(h.counters for h in headers)], state)


def _why_stopped(names: list[str]) -> str:
    """From the signals that every rank got."""
    signals = [f"{name} on world rank {rank}" for rank, name in enumerate(names) if name]
    return signals[0] if signals else "the job's end is near"


def _facts(border: Border, num_rows: int, began_s: float, seconds: float) -> BatchFacts:
    assignment, joined = border.assignment, border.part.joined
    return BatchFacts(
        plan=assignment.why,
        split=str(assignment.split),
        roles="".join(role.value[0] for role in assignment.roles),
        decision=border.text,
        exchange=joined.kind,
        num_rows=num_rows,
        began_s=began_s,
        seconds=seconds,
        placement=border.placement,
        slots_moved=border.moved.num_slots,
        moved_bytes=border.moved.num_bytes,
        move_s=border.move_s,
        microbatches=joined.microbatches.num,
        prediction=border.decision.prediction,
    )


def _no_record(result: RowResult) -> None:
    raise AssertionError(f"a rank without a journal finished a row: {result}")
