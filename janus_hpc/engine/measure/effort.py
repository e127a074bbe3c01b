"""How much is measured: sizes of batches and numbers of repetitions. Plain data."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Effort:
    """`batches` of an attention rank are combined with `contexts`; `kv_bytes` bounds what a rank's made-up
    sequences may have cached. `tokens` of all attention ranks are combined with `shares` of the choices that
    are an expert rank's, among at most `num_slots` experts. In each of `turns` over all points `passes` over
    the layers are timed, after one that is not. `rows` of an attention rank go through the exchange.
    `sharing`: numbers of ranks of a node to measure at once, beside all of them.
    """

    name: str
    batches: Sequence[int]
    contexts: Sequence[int]
    kv_bytes: int
    tokens: Sequence[int]
    shares: Sequence[float]
    num_slots: int
    passes: int
    turns: int
    rows: Sequence[int]
    sharing: Sequence[int]
    file_bytes: int


FULL = Effort(
    name="full",
    batches=(1, 8, 32, 128),
    contexts=(64, 256, 1024),
    kv_bytes=256 << 20,
    tokens=(1, 4, 16, 64, 128, 256),
    shares=(1.0, 0.25),
    num_slots=64,
    passes=2,
    turns=3,
    rows=(1, 16, 64, 128),
    sharing=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128),
    file_bytes=64 << 20,
)
QUICK = Effort(
    name="quick",
    batches=(1, 8, 64),
    contexts=(64, 512),
    kv_bytes=64 << 20,
    tokens=(1, 16, 128),
    shares=(1.0, 0.25),
    num_slots=32,
    passes=3,
    turns=1,
    rows=(1, 64),
    sharing=(1, 2, 4, 8, 16, 32, 64, 128),
    file_bytes=16 << 20,
)
