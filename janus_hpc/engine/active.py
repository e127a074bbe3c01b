"""Rows in flight on an attention rank: their samples, tokens so far and times.

Joins the batcher's, the sampler's and the results' views of a row; decides nothing.
"""

import time
from dataclasses import dataclass, field

from janus_hpc.core import (
    FinishReason,
    Row,
    RowError,
    RowProgress,
    RowResult,
    SampleProgress,
    SampleResult,
    TokenLogprobs,
)
from janus_hpc.rows.ids import row_key
from janus_hpc.sampling.state import SampleState
from janus_hpc.sampling.text import OutputTracker
from janus_hpc.sampling.tokenizer import TextCodec


@dataclass(eq=False)
class ActiveSample:
    """One of a row's n answers; the batcher's `TokenSource`."""

    row: "ActiveRow"
    state: SampleState
    tracker: OutputTracker
    finish_reason: FinishReason | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    token_times_s: list[float] = field(default_factory=list)

    def num_tokens(self) -> int:
        return len(self.state.prompt_token_ids) + len(self.state.output_token_ids)

    def tokens(self, start: int, stop: int) -> list[int]:
        prompt, output = self.state.prompt_token_ids, self.state.output_token_ids
        size = len(prompt)
        if start >= size:
            return output[start - size : stop - size]
        return prompt[start:stop] + output[: max(0, stop - size)]

    def restore(self, progress: SampleProgress) -> None:
        """Take over the tokens that an earlier launch chose."""
        for token_id in progress.token_ids:
            self.finish_reason = self.tracker.push(token_id)
        self.logprobs = list(progress.logprobs)
        self.token_times_s = list(progress.token_times_s)

    def progress(self) -> SampleProgress:
        return SampleProgress(
            token_ids=self.tracker.token_ids,
            logprobs=self.logprobs,
            token_times_s=self.token_times_s,
        )

    def result(self) -> SampleResult:
        assert self.finish_reason is not None
        return SampleResult(
            token_ids=self.tracker.token_ids,
            text=self.tracker.text,
            finish_reason=self.finish_reason,
            stop_reason=self.tracker.stop_reason,
            logprobs=self.logprobs if self.state.params.logprobs is not None else None,
            token_times_s=self.token_times_s,
        )


class ActiveRow:
    """A row being answered; finished when all its samples are."""

    def __init__(
        self,
        row: Row,
        prompt_token_ids: list[int],
        codec: TextCodec | None,
        eos_token_ids: list[int],
        vocab_size: int,
        max_context: int,
        run_seed: int,
    ) -> None:
        self.row = row
        self.prompt_token_ids = prompt_token_ids
        self.admitted_s = time.monotonic()
        self.samples: list[ActiveSample] = []
        seed = run_seed if row.params.seed is None else row.params.seed
        for sample in range(row.params.n):
            state = SampleState(
                params=row.params,
                seed=seed,
                row_key=row_key(row),
                sample=sample,
                prompt_token_ids=prompt_token_ids,
                eos_token_ids=eos_token_ids,
                vocab_size=vocab_size,
            )
            tracker = OutputTracker(state, codec, max_context)
            self.samples.append(ActiveSample(self, state, tracker))

    @property
    def finished(self) -> bool:
        return all(sample.finish_reason is not None for sample in self.samples)

    def restore(self, progress: RowProgress) -> None:
        """Go on from what an earlier launch left; the time between launches does not count."""
        self.admitted_s -= progress.elapsed_s
        for sample, its in zip(self.samples, progress.samples, strict=True):
            sample.restore(its)

    def progress(self) -> RowProgress | None:
        """What a later launch needs to go on; None where that is nothing, or computing anew is all one can do."""
        has_error = any(its.finish_reason is FinishReason.ERROR for its in self.samples)
        if has_error or not any(its.tracker.token_ids for its in self.samples):
            return None
        return RowProgress(
            index=self.row.index,
            samples=[its.progress() for its in self.samples],
            elapsed_s=time.monotonic() - self.admitted_s,
        )

    def result(self) -> RowResult:
        """The finished row. A sample whose logits were not finite makes the whole row an error row."""
        error = None
        if any(sample.finish_reason is FinishReason.ERROR for sample in self.samples):
            reason = "the model's logits were not finite"
            error = RowError(line=self.row.line, field="", reason=reason)
        return RowResult(
            index=self.row.index,
            id=self.row.id,
            prompt_token_ids=self.prompt_token_ids,
            samples=[] if error else [sample.result() for sample in self.samples],
            error=error,
            finished_at_unix_s=time.time(),
        )
