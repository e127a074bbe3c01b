"""The rows of a run's prompts file on one rank: opened once, for whatever number of batches it does attention in."""

from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from janus_hpc.config import RunConfig
from janus_hpc.core import RowProgress, SamplingParams
from janus_hpc.engine.intake import Intake
from janus_hpc.engine.plan import RunPlan
from janus_hpc.planner.workload import Lengths
from janus_hpc.results.done import InFlight
from janus_hpc.results.scan import read_progress
from janus_hpc.rows.index import InputIndex
from janus_hpc.rows.reader import RowReader
from janus_hpc.sampling.eos import load_eos_token_ids
from janus_hpc.sampling.errors import RowRejected
from janus_hpc.sampling.prompt import prompt_ids
from janus_hpc.sampling.tokenizer import TextCodec


def row_defaults(config: RunConfig) -> SamplingParams:
    """Sampling parameters of rows that name none."""
    return SamplingParams(max_tokens=config.max_tokens, temperature=config.temperature)


class RowInput:
    """Opens nothing until rows are asked for: a tokenizer can take seconds to load."""

    def __init__(self, plan: RunPlan) -> None:
        self._plan = plan

    def rows(self, capacity_tokens: int) -> Intake:
        """Rows for a KV cache that holds so many tokens of one sequence."""
        plan, codec = self._plan, self._codec
        eos = codec.eos_token_ids if codec is not None else load_eos_token_ids(plan.model_dir)
        return Intake(
            self._reader,
            codec,
            eos,
            plan.spec.vocab,
            plan.max_context,
            capacity_tokens,
            plan.config.seed,
            self._progress,
        )

    def lengths(self, row_indices: Iterable[int]) -> Lengths:
        """Tokens of these rows' prompts, and of their answers at most; rows that will be refused have 1 and 1."""
        plan, codec = self._plan, self._codec
        prompts: list[float] = []
        answers: list[float] = []
        for index in row_indices:
            row = self._reader.read(int(index))
            try:
                if row.error is not None:
                    raise RowRejected(row.error.field, row.error.reason)
                prompt = len(prompt_ids(row, codec, plan.spec.vocab, plan.max_context))
                answer = min(row.params.max_tokens, plan.max_context - prompt)
            except RowRejected:
                prompt, answer = 1, 1
            prompts += [float(prompt)] * row.params.n
            answers += [float(answer)] * row.params.n
        return Lengths(
            prompts=prompts, answers=answers, num_sequences=len(prompts), how="rows of this run"
        )

    def _progress(self, index: int) -> RowProgress | None:
        found = self._in_flight.get(index)
        if found is None:
            return None
        return read_progress(self._plan.run_dir / found.journal, found.offset)

    @cached_property
    def _in_flight(self) -> dict[int, InFlight]:
        return {its.row: its for its in self._plan.in_flight}

    @cached_property
    def _codec(self) -> TextCodec | None:
        # Templates that print the date give a resumed run the prompts of the run's first day.
        began = datetime.fromtimestamp(self._plan.began_at_unix_s, tz=UTC)
        return TextCodec.load(self._plan.model_dir, now=lambda: began)

    @cached_property
    def _reader(self) -> RowReader:
        plan = self._plan
        index = InputIndex.open(plan.index_path)
        return RowReader(Path(plan.config.prompts), index, row_defaults(plan.config))
