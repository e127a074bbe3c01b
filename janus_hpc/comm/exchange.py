"""The contract of every exchange: a step's headers, and hidden states there and back.

Attention ranks send rows and receive sums, expert ranks receive rows and send partial sums, a
colocated rank does all four. Knows no transport and no model. T: one attention rank's tokens in a
microbatch; N: all attention ranks' tokens in it; D: hidden size.
"""

from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

NUM_COUNTERS = 6
MAX_MICROBATCHES = 4
GATES = ("egate", "agate")
# Where `stop` stands in the words of a header.
STOP_WORD = 3
HEADER_WORDS = 5 + MAX_MICROBATCHES + NUM_COUNTERS


@dataclass(frozen=True)
class StepHeader:
    """What an attention rank tells all others before a step.

    `num_tokens` it will send in all; `microbatch_tokens` how many of them in each microbatch, ()
    for all in microbatch 0. `done`: it has no rows left. `want_rows`: rows it could take. `stop`:
    it was asked to drain. `counters`: NUM_COUNTERS integers the exchange does not look into.
    """

    num_tokens: int
    done: bool = False
    want_rows: int = 0
    stop: bool = False
    counters: tuple[int, ...] = (0,) * NUM_COUNTERS
    microbatch_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        assert len(self.counters) == NUM_COUNTERS, f"{self.counters=}"
        assert len(self.microbatch_tokens) <= MAX_MICROBATCHES, f"{self.microbatch_tokens=}"
        assert self.num_tokens >= 0, f"{self.num_tokens=}"
        if self.microbatch_tokens:
            assert self.num_tokens == sum(self.microbatch_tokens), f"{self=}"

    def tokens_in(self, microbatch: int) -> int:
        """Tokens this rank sends in one microbatch; 0 beyond its last one."""
        if not self.microbatch_tokens:
            return self.num_tokens if microbatch == 0 else 0
        return self.microbatch_tokens[microbatch] if microbatch < len(self.microbatch_tokens) else 0

    def to_words(self) -> list[int]:
        """The header as HEADER_WORDS int64 values."""
        sizes = self.microbatch_tokens
        flags = (self.num_tokens, int(self.done), self.want_rows, int(self.stop), len(sizes))
        padding = (0,) * (MAX_MICROBATCHES - len(sizes))
        return [*flags, *sizes, *padding, *self.counters]

    @staticmethod
    def from_words(words: list[int]) -> "StepHeader":
        """The inverse of `to_words`."""
        num_tokens, done, want_rows, stop, num_sizes = words[:5]
        return StepHeader(
            num_tokens=num_tokens,
            done=bool(done),
            want_rows=want_rows,
            stop=bool(stop),
            microbatch_tokens=tuple(words[5 : 5 + num_sizes]),
            counters=tuple(words[5 + MAX_MICROBATCHES : HEADER_WORDS]),
        )


@dataclass(frozen=True)
class Routing:
    """What the gate chose for T tokens: ids_TK int32, ascending in a row, and weights_TK float32.

    owners_TK int32, where rows are to travel to the experts: the expert role rank that serves each
    choice, which has a replica of its expert.
    """

    ids_TK: Tensor
    weights_TK: Tensor
    owners_TK: Tensor | None = None


@dataclass(frozen=True)
class RoutedRows:
    """With the gate on the attention side: a row for each (token, expert) of this expert rank.

    x_RD of the row dtype; expert_ids_R int64; weights_R float32; token_ids_R int64, the row of the
    output buffer that the expert's output is added to. R may be 0.
    """

    x_RD: Tensor
    expert_ids_R: Tensor
    weights_R: Tensor
    token_ids_R: Tensor


class Exchange(Protocol):
    """Hidden states to the expert ranks and back; `kind` and `why` say which one and by what rule.

    `gate` says where tokens are routed: "egate" on the expert side, where every expert rank gets
    every token, or "agate" on the attention side, where it gets the rows of its own experts.

    In a step every rank first calls `open_step`. Then, for each MoE layer and microbatch in one
    order, attention ranks call `send_tokens` and later `recv_outputs`, expert ranks `recv_tokens`
    and later `send_outputs`, colocated ranks all in the order send_tokens, recv_tokens,
    send_outputs, recv_outputs. Ranks without tokens call them too; only where every header says 0
    tokens may all ranks leave the layers out. A microbatch is in one layer at a time, and all
    outputs are received before the next step is opened. Every call may raise CommTimeout.

    Tensors handed in may be on any device; those handed out are on the CPU, except that a rank
    alone gets its own back, and that kind "device" hands out tensors on the rank's GPU, whose calls
    must all be made on one stream.
    """

    kind: str
    why: str
    gate: str

    def open_step(self, header: StepHeader | None, *, stop: bool = False) -> list[StepHeader]:
        """The headers of all attention ranks, in role order; expert ranks pass None.

        `stop` asks for a drain from any rank, expert ranks too: every header then says so.
        Collective over the active ranks.
        """

    def send_tokens(
        self, layer: int, microbatch: int, x_TD: Tensor, routing: Routing | None = None
    ) -> None:
        """Send rows of the row dtype to the expert ranks; T as the header said.

        `routing` is given exactly where `gate` is "agate".
        The rows may not be written to before `recv_outputs` of the same layer and microbatch.
        """

    def recv_outputs(self, layer: int, microbatch: int) -> Tensor:
        """y_TD float32: the exact sum of the expert ranks' partial sums, rounded once.

        Partial sums come with a common quantum (see `Ops.experts`), so that float64 adds them
        exactly and in any order. Rows are in the order of `send_tokens`.
        Valid until the next `send_tokens` of that microbatch or the next `open_step`.
        """

    def recv_tokens(self, layer: int, microbatch: int) -> tuple[Tensor, list[int]]:
        """x_ND of the row dtype, node by node and inside a node in world order of the attention
        ranks, and each attention rank's T in that order. Only with gate "egate".

        Valid until `send_outputs` of the same layer and microbatch.
        """

    def recv_routed(self, layer: int, microbatch: int) -> RoutedRows:
        """In the place of `recv_tokens` with gate "agate". Valid as long as its result is."""

    def num_rows(self, microbatch: int) -> int:
        """N of a microbatch of the open step: rows of `output_buffer`, whatever the gate."""

    def output_buffer(self, layer: int, microbatch: int, num_rows: int) -> Tensor:
        """y_ND float64, where partial sums can be written so that `send_outputs` need not copy.

        To be asked for after `recv_tokens`. Not zeroed: every row must be written.
        """

    def send_outputs(self, layer: int, microbatch: int, y_ND: Tensor) -> None:
        """Send float64 partial sums back, in the row order of `recv_tokens`."""

    def settle(self) -> None:
        """Return when all outputs handed out are real and all that was sent has left; CommTimeout
        if that will never be.

        Where waits run on a GPU outputs are handed out before they have come. To be called before
        anything computed from them leaves this rank, such as a token; and before a rank turns to
        anything but the exchange, since messages may move only while their sender takes part.
        """

    def free(self) -> None:
        """Give up the buffers. Collective over the active ranks."""


def header_words(header: StepHeader | None, stop: bool) -> list[int]:
    """What a rank posts: its header, or, from a rank without rows, only whether it wants to stop."""
    words = header.to_words() if header is not None else [0] * HEADER_WORDS
    words[STOP_WORD] |= int(stop)
    return words


def read_headers(words: list[list[int]], attention: list[int]) -> list[StepHeader]:
    """The attention ranks' headers from all active ranks' words; one rank's stop is everybody's."""
    stop = any(its[STOP_WORD] for its in words)
    headers = [StepHeader.from_words(words[active]) for active in attention]
    return [replace(header, stop=stop) for header in headers]
