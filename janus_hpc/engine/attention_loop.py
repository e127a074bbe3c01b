"""The attention side's loop: claim rows, choose a step's tokens, run the layers, sample, record what finishes.

A colocated rank runs the same loop; what differs is `while_away`, called while its tokens are at the experts.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch

from janus_hpc.batcher import Batcher, Sequence, StepBatch, even_sizes
from janus_hpc.comm.exchange import Exchange, StepHeader
from janus_hpc.comm.pulse import Pulse
from janus_hpc.core import FinishReason, RowProgress, RowResult
from janus_hpc.engine.active import ActiveRow, ActiveSample
from janus_hpc.engine.claims import ClaimQueue
from janus_hpc.engine.ending import Horizon, is_last
from janus_hpc.engine.interleave import Interleaved
from janus_hpc.engine.order import exchange_order
from janus_hpc.engine.tallies import StepSums, Tallies
from janus_hpc.engine.tokens import build_tokens
from janus_hpc.experts.routed_gate import RoutedGate
from janus_hpc.kvcache import KVCache
from janus_hpc.models.attention_model import AttentionModel
from janus_hpc.sampling.sampler import NO_TOKEN, choose

# Legend: T tokens of the step, D hidden, S sequences sampled, V vocabulary.


class RowSource(Protocol):
    """Turns claimed row numbers into rows in flight and refused rows."""

    def admit(self, index: int) -> ActiveRow | RowResult: ...


class AttentionLoop:
    """One attention (or colocated) rank's run over the rows of a batch; adds to `tallies`.

    `experts_busy_s`: seconds that this rank has computed experts so far.
    """

    def __init__(
        self,
        *,
        model: AttentionModel,
        cache: KVCache,
        batcher: Batcher[ActiveSample],
        exchange: Exchange,
        num_microbatches: int,
        gate: RoutedGate | None,
        claims: ClaimQueue,
        rows: RowSource,
        record: Callable[[RowResult], None],
        leave: Callable[[list[RowProgress]], None],
        while_away: Callable[[int, int], None],
        experts_busy_s: Callable[[], float],
        stop_asked: Callable[[], bool],
        horizon: Horizon,
        on_step: Callable[[list[StepHeader]], None],
        pulse: Pulse,
        tallies: Tallies,
    ) -> None:
        self.model = model
        self.cache = cache
        self.batcher = batcher
        self.exchange = exchange
        self.num_microbatches = num_microbatches
        self.gate = gate
        self.claims = claims
        self.rows = rows
        self.record = record
        self.leave = leave
        self.while_away = while_away
        self.experts_busy_s = experts_busy_s
        self.stop_asked = stop_asked
        self.horizon = horizon
        self.on_step = on_step
        self.pulse = pulse
        self.tallies = tallies
        self._num_admitted = self._tokens_admitted = 0

    def run(self) -> list[StepHeader]:
        """Until every attention rank is done or a stop was agreed on. Returns the last step's headers.

        At a stop `leave` is given the rows in flight that have tokens.
        """
        while True:
            started_s = time.perf_counter()
            self.pulse.spans.next_step()
            batch = self.batcher.next_step()
            with self.pulse.spans.span("wait for headers"):
                headers = self.exchange.open_step(self._header(batch))
            opened_s = time.perf_counter() - started_s
            self.on_step(headers)
            if is_last(headers):
                self._leave()
                return headers
            self._admit(self.claims.claim([h.want_rows for h in headers]))
            if any(h.num_tokens for h in headers):
                step = self._compute(batch)
                # What comes between, such as reading prompts, is no part of a decode step.
                step = replace(step, seconds=step.seconds + opened_s)
                self.tallies.stages(headers, step)

    def _header(self, batch: StepBatch[ActiveSample]) -> StepHeader:
        left = self.claims.num_left
        return StepHeader(
            num_tokens=batch.num_tokens,
            microbatch_tokens=even_sizes(batch.num_tokens, self.num_microbatches),
            done=self.batcher.idle and left == 0,
            want_rows=min(self.batcher.room(), left) if self._takes_rows() else 0,
            stop=self.stop_asked(),
            counters=self.tallies.counters(len(self.batcher.running)),
        )

    def _takes_rows(self) -> bool:
        mean_tokens = self._tokens_admitted / max(self._num_admitted, 1)
        return self.horizon.admits(self.tallies, mean_tokens)

    def _leave(self) -> None:
        in_flight = [*self.batcher.running, *self.batcher.waiting]
        rows = dict.fromkeys(sequence.source.row for sequence in in_flight)
        begun = [row.progress() for row in rows]
        self.leave([its for its in begun if its is not None])

    def _admit(self, row_indices: list[int]) -> None:
        if not row_indices:
            return
        with self.pulse.spans.span("read rows"):
            for index in row_indices:
                # Thousands of long prompts may take longer than a stall is given.
                self.pulse.beat("reading rows")
                row = self.rows.admit(index)
                if isinstance(row, RowResult):
                    self._finish_row(row)
                else:
                    self._begin_row(row)

    def _begin_row(self, row: ActiveRow) -> None:
        self._num_admitted += 1
        self._tokens_admitted += row.row.params.max_tokens
        for sample in row.samples:
            if sample.finish_reason is None:
                self.batcher.add(Sequence(sample))

    def _compute(self, batch: StepBatch[ActiveSample]) -> StepSums:
        started_s, experts_s = time.perf_counter(), self.experts_busy_s()
        routing_s = 0.0 if self.gate is None else self.gate.busy_s
        sizes = even_sizes(batch.num_tokens, self.num_microbatches)
        tokens = build_tokens(batch, self.model).split(sizes)
        streams = [self.model.forward(part, self.cache) for part in tokens]
        order = exchange_order(self.model.spec.sparse_layers, self.num_microbatches)
        step = Interleaved(streams, self.exchange, self.gate, self.pulse)
        built_s = time.perf_counter()
        h_TD = torch.cat(step.run(order, self.while_away))
        self.exchange.settle()
        passed_s = time.perf_counter()
        if batch.sampled:
            rows_S = torch.tensor(batch.last_tokens, device=h_TD.device)
            with self.pulse.spans.span("head and sampling"):
                self._sample(batch, self.model.logits(h_TD, rows_S))
        ended_s = time.perf_counter()
        if self.gate is not None:
            routing_s = self.gate.busy_s - routing_s
        self.tallies.step(batch.num_tokens, len(batch.sampled), ended_s - started_s)
        return StepSums(
            num_steps=1,
            seconds=ended_s - started_s,
            attention_s=built_s - started_s + step.busy_s + routing_s + ended_s - passed_s,
            experts_s=self.experts_busy_s() - experts_s,
            num_sequences=len(batch.sampled),
            num_context=sum(batch.positions[token] + 1 for token in batch.last_tokens),
        )

    def _sample(self, batch: StepBatch[ActiveSample], logits_SV: torch.Tensor) -> None:
        sequences = [batch.sequences[index] for index in batch.sampled]
        samples = [sequence.source for sequence in sequences]
        choices = choose(logits_SV, [sample.state for sample in samples])
        now_s = time.monotonic()
        for sequence, sample, choice in zip(sequences, samples, choices, strict=True):
            if choice.token_id == NO_TOKEN:
                sample.finish_reason = FinishReason.ERROR
            else:
                if choice.logprobs is not None:
                    sample.logprobs.append(choice.logprobs)
                sample.token_times_s.append(now_s - sample.row.admitted_s)
                sample.finish_reason = sample.tracker.push(choice.token_id)
            if sample.finish_reason is not None:
                self._finish_sample(sequence, sample)

    def _finish_sample(self, sequence: Sequence[ActiveSample], sample: ActiveSample) -> None:
        self.batcher.finish(sequence)
        self.tallies.answer(len(sample.tracker.token_ids))
        if sample.row.finished:
            self._finish_row(sample.row.result())

    def _finish_row(self, result: RowResult) -> None:
        self.record(result)
        self.tallies.row(failed=result.error is not None)
