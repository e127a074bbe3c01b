"""Continuous batching on one attention rank: which tokens of which sequences a step computes.

Pure bookkeeping over token counts and block ids: no tensors, no files, no MPI.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from janus_hpc.kvcache import BlockPool


class TokenSource(Protocol):
    """What the batcher needs of a sample: its tokens so far, prompt and output."""

    def num_tokens(self) -> int: ...

    def tokens(self, start: int, stop: int) -> list[int]: ...


S = TypeVar("S", bound=TokenSource)


@dataclass(eq=False)
class Sequence(Generic[S]):
    """One sample in flight. `num_cached` tokens have their keys and values in `block_ids`."""

    source: S
    num_cached: int = 0
    block_ids: list[int] = field(default_factory=list)


@dataclass
class StepBatch(Generic[S]):
    """The tokens of one step, flattened: token t belongs to `sequences[sequence_ids[t]]`.

    `slots` are cache slots to store into; `last_tokens` are the positions in the flat batch whose
    logits are needed, for the sequences `sampled` (indices into `sequences`), in the same order.
    """

    sequences: list[Sequence[S]]
    token_ids: list[int]
    positions: list[int]
    sequence_ids: list[int]
    slots: list[int]
    last_tokens: list[int]
    sampled: list[int]

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)


class Batcher(Generic[S]):
    """Admits sequences in order, mixes decode with chunks of prefill, preempts by recomputation.

    Decode tokens come first, then prompts in order of admission, up to `max_step_tokens`. When blocks run
    out the sequence admitted last gives its blocks back and is computed again later.
    """

    def __init__(
        self, pool: BlockPool, block_size: int, max_step_tokens: int, max_sequences: int
    ) -> None:
        assert max_step_tokens >= 1 and max_sequences >= 1
        self.pool = pool
        self.block_size = block_size
        self.max_step_tokens = max_step_tokens
        self.max_sequences = max_sequences
        self.waiting: deque[Sequence[S]] = deque()
        self.running: list[Sequence[S]] = []

    @property
    def capacity_tokens(self) -> int:
        """Most tokens one sequence can ever have cached here."""
        return self.pool.num_blocks * self.block_size

    @property
    def idle(self) -> bool:
        return not self.running and not self.waiting

    def add(self, sequence: Sequence[S]) -> None:
        self.waiting.append(sequence)

    def finish(self, sequence: Sequence[S]) -> None:
        """Take a running sequence out and free its blocks."""
        self.running.remove(sequence)
        self._release(sequence)

    def room(self) -> int:
        """How many more sequences this rank would start soon: its free places, as far as memory goes.

        Memory is judged by the mean number of blocks of the sequences in flight.
        """
        places = self.max_sequences - len(self.running) - len(self.waiting)
        if places <= 0:
            return 0
        if not self.running:
            return places
        used = self.pool.num_blocks - self.pool.num_free
        mean_blocks = max(1, -(-used // len(self.running)))
        queued = sum(self._blocks_for(s.source.num_tokens()) for s in self.waiting)
        return max(0, min(places, (self.pool.num_free - queued) // mean_blocks))

    def next_step(self) -> StepBatch[S]:
        """Choose the tokens of the next step; empty when nothing is in flight."""
        chosen: list[tuple[Sequence[S], int]] = []
        budget = self.max_step_tokens
        decoding = [s for s in self.running if s.source.num_tokens() - s.num_cached == 1]
        prefilling = [s for s in self.running if s.source.num_tokens() - s.num_cached > 1]
        for sequence in decoding + prefilling:
            if budget == 0:
                break
            if sequence not in self.running:  # preempted a moment ago
                continue
            count = self._schedule(sequence, budget)
            if count:
                chosen.append((sequence, count))
                budget -= count
        budget = self._admit(chosen, budget)
        # A decoding sequence chosen early may since have been preempted for a prompt admitted before it.
        return self._flatten([(s, n) for s, n in chosen if s in self.running])

    def _schedule(self, sequence: Sequence[S], budget: int) -> int:
        """Tokens of a running sequence this step, with blocks for them; preempts later ones if it must."""
        count = min(sequence.source.num_tokens() - sequence.num_cached, budget)
        needed = self._missing_blocks(sequence, count)
        while needed > self.pool.num_free:
            victim = self.running[-1]
            self._preempt(victim)
            if victim is sequence:
                return 0
        self._grow(sequence, needed)
        return count

    def _admit(self, chosen: list[tuple[Sequence[S], int]], budget: int) -> int:
        """Start waiting sequences while places, budget and blocks for their whole present length last."""
        while self.waiting and budget > 0 and len(self.running) < self.max_sequences:
            sequence = self.waiting[0]
            total = sequence.source.num_tokens()
            # One spare block keeps the newcomer from being preempted by the next decode step.
            spare = 1 if self.running else 0
            if self._blocks_for(total) + spare > self.pool.num_free:
                break
            self.waiting.popleft()
            self.running.append(sequence)
            count = min(total, budget)
            self._grow(sequence, self._missing_blocks(sequence, count))
            chosen.append((sequence, count))
            budget -= count
        return budget

    def _preempt(self, sequence: Sequence[S]) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        self.waiting.appendleft(sequence)

    def _release(self, sequence: Sequence[S]) -> None:
        self.pool.give_back(sequence.block_ids)
        sequence.block_ids = []
        sequence.num_cached = 0

    def _grow(self, sequence: Sequence[S], num_blocks: int) -> None:
        sequence.block_ids.extend(self.pool.take() for _ in range(num_blocks))

    def _missing_blocks(self, sequence: Sequence[S], count: int) -> int:
        return self._blocks_for(sequence.num_cached + count) - len(sequence.block_ids)

    def _blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _flatten(self, chosen: list[tuple[Sequence[S], int]]) -> StepBatch[S]:
        batch: StepBatch[S] = StepBatch([s for s, _ in chosen], [], [], [], [], [], [])
        for index, (sequence, count) in enumerate(chosen):
            start, stop = sequence.num_cached, sequence.num_cached + count
            batch.token_ids += sequence.source.tokens(start, stop)
            batch.positions += range(start, stop)
            batch.sequence_ids += [index] * count
            batch.slots += [
                sequence.block_ids[p // self.block_size] * self.block_size + p % self.block_size
                for p in range(start, stop)
            ]
            sequence.num_cached = stop
            if stop == sequence.source.num_tokens():
                batch.last_tokens.append(batch.num_tokens - 1)
                batch.sampled.append(index)
        return batch


def even_sizes(total: int, num_parts: int) -> tuple[int, ...]:
    """A number of tokens cut into parts within one of another, larger ones first."""
    size, num_larger = divmod(total, num_parts)
    return tuple(size + (part < num_larger) for part in range(num_parts))
