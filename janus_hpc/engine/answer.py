"""Answering the pending rows on one rank, batch by batch: its part of the engine with rows, journal and progress
around it, and the border between two batches.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path

from janus_hpc.comm.exchange import StepHeader
from janus_hpc.core import RowResult
from janus_hpc.engine.account import Account, BatchFacts, report_of
from janus_hpc.engine.attention_loop import RowSource
from janus_hpc.engine.border import Border
from janus_hpc.engine.claims import RowIds
from janus_hpc.engine.intake import Intake
from janus_hpc.engine.parts import Part, RunHooks
from janus_hpc.engine.plan import RunPlan
from janus_hpc.engine.prepare import row_defaults
from janus_hpc.engine.progress import Progress
from janus_hpc.engine.setup import EngineSetup
from janus_hpc.engine.signals import StopFlag
from janus_hpc.results.journal import JournalWriter
from janus_hpc.rows.index import InputIndex
from janus_hpc.rows.reader import RowReader
from janus_hpc.sampling.eos import load_eos_token_ids
from janus_hpc.sampling.tokenizer import TextCodec


@dataclass(frozen=True)
class Answered:
    """`account` is None on all ranks but 0; `stopped`: rows are left, since a stop was asked for."""

    account: Account | None
    seconds: float
    stopped: bool


def answer(
    plan: RunPlan, setup: EngineSetup, part: Part, stop: StopFlag, progress: Progress | None
) -> Answered:
    """Answer all pending rows. Collective over the world."""
    world = setup.world
    account = Account(plan.spec.moe.top_k) if world.world_rank == 0 else None
    journal: JournalWriter | None = None
    if plan.roles[world.world_rank].does_attention:
        journal = JournalWriter(plan.run_dir, plan.launch, world.world_rank, plan.fingerprint)
    border, batches, stopped = Border(setup, part), plan.batches(), False
    # A tokenizer can take seconds to load: one source of rows serves all batches.
    make_rows = lru_cache(maxsize=1)(partial(_make_rows, plan))
    started_s = time.monotonic()
    try:
        for number, rows in enumerate(batches):
            is_last = number == len(batches) - 1
            border.check()
            hooks = RunHooks(
                make_rows=make_rows,
                record=journal.append if journal is not None else _no_record,
                stop_asked=stop,
                on_step=partial(_on_step, journal, progress, is_last),
            )
            with_trace = is_last or plan.config.rebalance != "off"
            stopped = _run_batch(
                plan, setup, part, border, account, rows, hooks, with_trace=with_trace
            )
            if stopped or is_last:
                break
            border.cross(account)
        border.free()
    finally:
        if journal is not None:
            journal.close()
    return Answered(account, time.monotonic() - started_s, stopped)


def _run_batch(
    plan: RunPlan,
    setup: EngineSetup,
    part: Part,
    border: Border,
    account: Account | None,
    rows: RowIds,
    hooks: RunHooks,
    *,
    with_trace: bool,
) -> bool:
    """Whether rows are left because of a stop, the same on every rank."""
    world, exchange = setup.world, part.joined.exchange
    started_s = time.monotonic()
    headers = part.run(rows, hooks)
    if exchange is not None:
        exchange.settle()
    # A stop that comes with the last row changes nothing.
    stopped = any(h.stop for h in headers) and not all(h.done for h in headers)
    seconds = time.monotonic() - started_s
    reports = world.gather(report_of(part, with_trace=with_trace))
    if account is not None and reports is not None:
        facts = BatchFacts(
            plan=plan.split_why,
            split=str(plan.split),
            exchange=part.joined.kind,
            num_rows=len(rows),
            seconds=seconds,
            placement=border.placement,
            slots_moved=border.slots_moved,
            move_s=border.move_s,
        )
        account.add(facts, reports)
    # Parked ranks have no headers.
    return any(world.allgather(stopped))


def _on_step(
    journal: JournalWriter | None,
    progress: Progress | None,
    is_last: bool,
    headers: list[StepHeader],
) -> None:
    if journal is not None:
        journal.maybe_sync(time.monotonic())
    if progress is not None:
        ended = is_last and all(h.done for h in headers)
        stopping = any(h.stop for h in headers)
        state = "merging" if ended else "interrupted" if stopping else "running"
        progress.update([h.counters for h in headers], state)


def _no_record(result: RowResult) -> None:
    raise AssertionError(f"a rank without a journal finished a row: {result}")


def _make_rows(plan: RunPlan, capacity_tokens: int) -> RowSource:
    """Rows of the prompts file for one attention rank."""
    # Templates that print the date give a resumed run the prompts of the run's first day.
    began = datetime.fromtimestamp(plan.began_at_unix_s, tz=UTC)
    codec = TextCodec.load(plan.model_dir, now=lambda: began)
    eos = codec.eos_token_ids if codec is not None else load_eos_token_ids(plan.model_dir)
    index = InputIndex.open(plan.index_path)
    reader = RowReader(Path(plan.config.prompts), index, row_defaults(plan.config))
    return Intake(
        reader,
        codec,
        eos,
        plan.spec.vocab,
        plan.max_context,
        capacity_tokens,
        plan.config.seed,
    )
