"""Answering the pending rows on one rank: its part of the engine with rows, journal and progress around it."""

import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from janus_hpc.comm.exchange import StepHeader
from janus_hpc.comm.world import World
from janus_hpc.engine.attention_loop import RowSource
from janus_hpc.engine.intake import Intake
from janus_hpc.engine.parts import Part, RunHooks
from janus_hpc.engine.plan import RunPlan
from janus_hpc.engine.prepare import row_defaults
from janus_hpc.engine.progress import Progress
from janus_hpc.engine.signals import StopFlag
from janus_hpc.results.journal import JournalWriter
from janus_hpc.rows.index import InputIndex
from janus_hpc.rows.reader import RowReader
from janus_hpc.sampling.eos import load_eos_token_ids
from janus_hpc.sampling.tokenizer import TextCodec


def answer(
    world: World, plan: RunPlan, part: Part, stop: StopFlag, progress: Progress | None
) -> list[StepHeader]:
    """The last step's headers; empty on a rank that takes no part. Collective over the active ranks."""
    pending = plan.pending_rows()
    journal: JournalWriter | None = None
    if plan.roles[world.world_rank].does_attention:
        journal = JournalWriter(plan.run_dir, plan.launch, world.world_rank, plan.fingerprint)

    def on_step(headers: list[StepHeader]) -> None:
        if journal is not None:
            journal.maybe_sync(time.monotonic())
        if progress is not None:
            ended = all(h.done for h in headers)
            stopping = any(h.stop for h in headers)
            state = "merging" if ended else "interrupted" if stopping else "running"
            progress.update([h.counters for h in headers], state)

    try:
        return part.run(
            pending,
            RunHooks(
                make_rows=partial(_make_rows, plan),
                record=journal.append if journal is not None else _no_record,
                stop_asked=stop,
                on_step=on_step,
            ),
        )
    finally:
        if journal is not None:
            journal.close()


def _no_record(result: object) -> None:
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
