"""The steps that plans are made of, and the plan of one rank for one microbatch.

Plain data. Rows are numbered within the microbatch: group by group, attention ranks ascending inside.
"""

from dataclasses import dataclass
from enum import IntEnum


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows first, ..., stop - 1 of a microbatch."""

    first: int
    stop: int

    @property
    def num_rows(self) -> int:
        """How many they are."""
        return self.stop - self.first

    def overlaps(self, other: "Rows") -> bool:
        """Whether they have a row in common."""
        return self.first < other.stop and other.first < self.stop


class Payload(IntEnum):
    """What a message holds for its rows."""

    TOKENS = 0
    """Activations: rows of the row dtype, or frames of routed rows with the gate on the attention side."""
    PARTS = 1
    """Sums over some of the expert ranks, float64."""
    SUMS = 2
    """Sums over all expert ranks, float32."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a source group's rows that travels by itself."""

    source: int
    index: int
    rows: Rows


@dataclass(frozen=True, slots=True)
class AwaitGathered:
    """Until the group's attention ranks have put the chunk's rows into the group's memory."""

    chunk: Chunk


@dataclass(frozen=True, slots=True)
class Send:
    """Start to send the chunk to a rank of the group `target`."""

    chunk: Chunk
    payload: Payload
    world_rank: int
    target: int


@dataclass(frozen=True, slots=True)
class Recv:
    """Receive the chunk from a rank of the group `origin`, into its place in the group's memory
    (tokens, and sums at their source) or into this rank's own (parts on their way).
    """

    chunk: Chunk
    payload: Payload
    world_rank: int
    origin: int


@dataclass(frozen=True, slots=True)
class Land:
    """Tell the group that what came from `origin` of this chunk is in the group's memory."""

    chunk: Chunk
    origin: int


@dataclass(frozen=True, slots=True)
class AwaitAnswered:
    """Until the group's expert ranks have written their partial sums."""

    chunk: Chunk


@dataclass(frozen=True, slots=True)
class Reduce:
    """Add up the group's partial sums of the chunk's rows in this rank's own memory."""

    chunk: Chunk


@dataclass(frozen=True, slots=True)
class Add:
    """Add the parts received from the group `origin` to this rank's sums of the chunk."""

    chunk: Chunk
    origin: int


Step = AwaitGathered | Send | Recv | Land | AwaitAnswered | Reduce | Add
# Steps taken one after the other. A rank's chains go on independently of each other.
Chain = tuple[Step, ...]


@dataclass(frozen=True, slots=True)
class Need:
    """A chunk that must land in the group's memory, and the rank of `origin` that it comes from."""

    chunk: Chunk
    payload: Payload
    world_rank: int
    origin: int


@dataclass(frozen=True)
class RankPlan:
    """What one rank does in one microbatch of a layer, beside its own rows.

    `feed` begins when an attention rank has put its rows into the group's memory, `fetch` at the
    same time: it receives the sums for the group. `take` begins when an expert rank asks for
    tokens, `reply` when it has written its partial sums. `needs_tokens`: what an expert rank needs from
    other groups; `needs_sums`: what holds sums of an attention rank's own rows.
    """

    feed: tuple[Chain, ...]
    fetch: tuple[Chain, ...]
    take: tuple[Chain, ...]
    reply: tuple[Chain, ...]
    needs_tokens: tuple[Need, ...]
    needs_sums: tuple[Need, ...]
