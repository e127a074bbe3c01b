"""What an attention rank counts for progress and for the results: rows, tokens, time in steps.

Plain numbers; `counters` is the form that travels in step headers.
"""

from dataclasses import dataclass


@dataclass
class Tallies:
    """Totals of one rank since its start. `decode_s` is time in steps that generated tokens."""

    rows_done: int = 0
    rows_failed: int = 0
    tokens_generated: int = 0
    tokens_computed: int = 0
    num_steps: int = 0
    num_decode_steps: int = 0
    decode_s: float = 0.0

    def row(self, *, failed: bool) -> None:
        self.rows_done += 1
        self.rows_failed += failed

    def step(self, num_tokens: int, num_sampled: int, seconds: float) -> None:
        self.num_steps += 1
        self.tokens_computed += num_tokens
        self.tokens_generated += num_sampled
        if num_sampled:
            self.num_decode_steps += 1
            self.decode_s += seconds

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
