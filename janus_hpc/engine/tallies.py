"""What a rank counts for progress and for the results: rows, tokens, and where the time of its steps goes.

Plain numbers; `counters` is the form that travels in step headers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from janus_hpc.comm.exchange import StepHeader


@dataclass(frozen=True, kw_only=True)
class StepSums:
    """Sums over steps of one rank, all of the same kind.

    `seconds` from the step's headers to its tokens; `attention_s` and `experts_s` of them it computed,
    as the host sees it; `num_sequences` got a token, with `num_context` tokens in their caches.
    """

    num_steps: int = 0
    seconds: float = 0.0
    attention_s: float = 0.0
    experts_s: float = 0.0
    num_sequences: int = 0
    num_context: int = 0

    def plus(self, other: "StepSums", sign: int = 1) -> "StepSums":
        names = [its.name for its in fields(self)]
        return StepSums(**{its: getattr(self, its) + sign * getattr(other, its) for its in names})


@dataclass
class Tallies:
    """Totals of one rank. `decode_s` is time in steps that generated tokens; `answer_tokens` are those of its
    `answers_done` finished samples.

    `decoding`: steps in which no rank had prefill; `mixed`: the others. Every active rank counts these.
    """

    rows_done: int = 0
    rows_failed: int = 0
    answers_done: int = 0
    answer_tokens: int = 0
    tokens_generated: int = 0
    tokens_computed: int = 0
    num_steps: int = 0
    num_decode_steps: int = 0
    decode_s: float = 0.0
    decoding: StepSums = field(default_factory=StepSums)
    mixed: StepSums = field(default_factory=StepSums)

    @property
    def attention_s(self) -> float:
        """Seconds computed as attention in steps of either kind."""
        return self.decoding.attention_s + self.mixed.attention_s

    @property
    def experts_s(self) -> float:
        """The same of experts."""
        return self.decoding.experts_s + self.mixed.experts_s

    def row(self, *, failed: bool) -> None:
        self.rows_done += 1
        self.rows_failed += failed

    def answer(self, num_tokens: int) -> None:
        """A sample is finished."""
        self.answers_done += 1
        self.answer_tokens += num_tokens

    def step(self, num_tokens: int, num_sampled: int, seconds: float) -> None:
        self.num_steps += 1
        self.tokens_computed += num_tokens
        self.tokens_generated += num_sampled
        if num_sampled:
            self.num_decode_steps += 1
            self.decode_s += seconds

    def stages(self, headers: Sequence[StepHeader], step: StepSums) -> None:
        """Count a step by its kind, which all ranks see alike."""
        if decodes_only(headers):
            self.decoding = self.decoding.plus(step)
        else:
            self.mixed = self.mixed.plus(step)

    def counters(self, num_running: int) -> tuple[int, ...]:
        """As in `Counters`."""
        return (
            self.rows_done,
            self.rows_failed,
            self.tokens_generated,
            self.tokens_computed,
            num_running,
            self.num_steps,
        )

    def plus(self, other: "Tallies", sign: int = 1) -> "Tallies":
        """The sum, or with sign -1 what came after `other`."""
        names = [its.name for its in fields(self) if its.name not in ("decoding", "mixed")]
        total = Tallies(**{its: getattr(self, its) + sign * getattr(other, its) for its in names})
        total.decoding = self.decoding.plus(other.decoding, sign)
        total.mixed = self.mixed.plus(other.mixed, sign)
        return total


@dataclass(frozen=True)
class Counters:
    """The sum over attention ranks of what their headers carry."""

    rows_done: int
    rows_failed: int
    tokens_generated: int
    tokens_computed: int
    num_running: int
    num_steps: int

    @classmethod
    def total(cls, counters: list[tuple[int, ...]]) -> "Counters":
        return cls(*(sum(column) for column in zip(*counters, strict=True)))


def decodes_only(headers: Sequence[StepHeader]) -> bool:
    """Whether no attention rank has more tokens in the step than sequences in flight.

    A prompt's last piece of a token or two may hide among sequences that wait; it costs what they would.
    """
    return all(its.num_tokens <= Counters(*its.counters).num_running for its in headers)
