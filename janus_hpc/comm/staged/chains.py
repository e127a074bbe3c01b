"""Runs the chains of a rank's plan side by side: each goes on whenever what it waits for has come.

Owns messages under way and sums in the making; knows nothing of layers. It never waits by itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from janus_hpc.comm.links.link import Link, Transfer
from janus_hpc.comm.links.tags import message_tag
from janus_hpc.comm.plan.steps import (
    Add,
    AwaitAnswered,
    AwaitGathered,
    Chain,
    Chunk,
    Land,
    Payload,
    Recv,
    Reduce,
    Send,
    Step,
)

# In the place of a group that parts come from: this rank's own sums, and the same as float32.
_SUMS, _ROUNDED = -1, -2


class Surroundings(Protocol):
    """What chains need of the exchange; m is the microbatch, `number` counts its messages."""

    def is_gathered(self, chunk: Chunk, microbatch: int, number: int) -> bool:
        """Whether the group's attention ranks have put the chunk's rows into its memory."""

    def is_answered(self, microbatch: int, number: int) -> bool:
        """Whether the group's expert ranks have written their partial sums."""

    def land(self, chunk: Chunk, origin: int, microbatch: int, number: int) -> None:
        """Publish that a chunk has come."""

    def tokens_to_send(self, step: Send, microbatch: int) -> Tensor:
        """Bytes of the chunk's tokens."""

    def tokens_to_fill(self, step: Recv, microbatch: int) -> Tensor:
        """Bytes that the chunk's tokens are received into."""

    def sums_to_fill(self, step: Recv, microbatch: int) -> Tensor:
        """Bytes that sums for the group's own rows are received into."""

    def partial_sums(self, chunk: Chunk, microbatch: int) -> Tensor:
        """parts_ERD float64 of the group's expert ranks, R the rows of the chunk."""

    def count_sent(self, world_rank: int, num_bytes: int) -> None:
        """Take note of a message."""


@dataclass
class Running:
    """A chain under way; `step` is where it stands, `transfer` what it waits for, if a message."""

    microbatch: int
    step: Step
    takes_tokens: bool
    steps: Iterator[None] = field(init=False)
    transfer: Transfer | None = None


class ChainRunner:
    """The chains of one rank that are under way."""

    def __init__(self, group: int, hidden: int, link: Link | None, around: Surroundings) -> None:
        self._group, self._hidden, self._link, self._around = group, hidden, link, around
        self.running: list[Running] = []
        self._memory: dict[tuple[int, int, int, int], Tensor] = {}

    def start(self, chains: tuple[Chain, ...], microbatch: int, number: int) -> None:
        """Begin chains: their receives are posted, and they go as far as they can."""
        for chain in chains:
            first = chain[0]
            receives = isinstance(first, Recv) and first.payload is Payload.TOKENS
            running = Running(microbatch, first, receives)
            running.steps = self._run(chain, running, number)
            if _goes_on(running.steps):
                self.running.append(running)

    def progress(self) -> None:
        """Let every chain go on as far as it can."""
        if self.running:
            assert self._link is not None
            self._link.progress()
            self.running = [its for its in self.running if _goes_on(its.steps)]

    def is_idle(self, microbatch: int, *, only_takes: bool) -> bool:
        """Whether no chain of the microbatch is under way, or none that began with its tokens."""
        return not any(
            its.microbatch == microbatch and (its.takes_tokens or not only_takes)
            for its in self.running
        )

    def free(self) -> None:
        """Give up link and memory; nothing may be under way."""
        assert not self.running, f"{self.running=}"
        self._link = None
        self._memory.clear()

    def under_way(self) -> list[tuple[int, Transfer]]:
        """Messages that chains wait for, with their peers' world ranks."""
        return [
            (its.step.world_rank, its.transfer)
            for its in self.running
            if its.transfer is not None and isinstance(its.step, Send | Recv)
        ]

    def _run(self, chain: Chain, running: Running, number: int) -> Iterator[None]:
        around, m = self._around, running.microbatch
        posted = {step: self._post(step, m) for step in chain if isinstance(step, Recv)}
        sums_RD, sent = torch.empty(0), []
        for step in chain:
            running.step = step
            match step:
                case AwaitGathered(chunk):
                    while not around.is_gathered(chunk, m, number):
                        yield
                case AwaitAnswered():
                    while not around.is_answered(m, number):
                        yield
                case Recv():
                    yield from _finish(running, posted[step])
                case Land(chunk, origin):
                    around.land(chunk, origin, m, number)
                case Reduce(chunk):
                    sums_RD = self._reduce(chunk, m, in_place=len(posted) == 0)
                case Add(chunk, origin):
                    sums_RD += self._own(chunk, m, origin)
                case Send():
                    sent.append(self._send(step, m, sums_RD))
        for transfer in sent:
            yield from _finish(running, transfer)

    def _post(self, step: Recv, microbatch: int) -> Transfer:
        if step.payload is Payload.TOKENS:
            memory_B = self._around.tokens_to_fill(step, microbatch)
        elif step.chunk.source == self._group:
            memory_B = self._around.sums_to_fill(step, microbatch)
        else:
            memory_B = _bytes(self._own(step.chunk, microbatch, step.origin))
        tag = _tag(step, microbatch)
        assert self._link is not None
        return self._link.recv(step.world_rank, tag, memory_B)

    def _send(self, step: Send, microbatch: int, sums_RD: Tensor) -> Transfer:
        if step.payload is Payload.TOKENS:
            memory_B = self._around.tokens_to_send(step, microbatch)
        elif step.payload is Payload.PARTS:
            memory_B = _bytes(sums_RD)
        else:
            rounded = self._own(step.chunk, microbatch, _ROUNDED).view(torch.float32)
            memory_B = _bytes(rounded.view(-1, self._hidden)[: sums_RD.shape[0]].copy_(sums_RD))
        self._around.count_sent(step.world_rank, memory_B.numel())
        assert self._link is not None
        return self._link.send(step.world_rank, _tag(step, microbatch), memory_B)

    def _reduce(self, chunk: Chunk, microbatch: int, *, in_place: bool) -> Tensor:
        """The group's sums; one expert rank's are left where they are if nothing is added."""
        parts_ERD = self._around.partial_sums(chunk, microbatch)
        if parts_ERD.shape[0] == 1 and in_place:
            return parts_ERD[0]
        sums_RD = self._own(chunk, microbatch, _SUMS)
        return torch.sum(parts_ERD, dim=0, out=sums_RD)

    def _own(self, chunk: Chunk, microbatch: int, origin: int) -> Tensor:
        """This rank's own memory for sums of a chunk [R, D] float64; it grows to the largest."""
        key = (microbatch, chunk.source, chunk.index, origin)
        size = chunk.rows.num_rows * self._hidden
        memory = self._memory.get(key)
        if memory is None or memory.numel() < size:
            memory = self._memory[key] = torch.empty(size, dtype=torch.float64)
        return memory[:size].view(-1, self._hidden)


def _goes_on(steps: Iterator[None]) -> bool:
    """Take the steps that can be taken; whether any are left."""
    return next(steps, steps) is None


def _finish(running: Running, transfer: Transfer) -> Iterator[None]:
    running.transfer = transfer
    while not transfer.is_done():
        yield
    running.transfer = None


def _tag(step: Send | Recv, microbatch: int) -> int:
    comes_back = step.payload is not Payload.TOKENS
    return message_tag(comes_back, microbatch, step.chunk.source, step.chunk.index)


def _bytes(rows: Tensor) -> Tensor:
    return rows.reshape(-1).view(torch.uint8)
