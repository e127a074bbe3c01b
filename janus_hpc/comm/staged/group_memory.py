"""What lies where in the memory of a group: counters, headers, tokens, partial sums, sums that came back.

Owns the views; knows nothing of the order they are used in. N: rows of the step, D: hidden size.
"""

import mmap
from collections.abc import Iterator
from itertools import count

import torch
from mpi4py import MPI
from torch import Tensor

from janus_hpc.comm.exchange import HEADER_WORDS
from janus_hpc.comm.layout import Sizes
from janus_hpc.comm.plan.build import MAX_CHUNKS
from janus_hpc.comm.plan.fabric import Fabric, Group
from janus_hpc.comm.shm_memory import SharedMemory
from janus_hpc.comm.staged.frames import FrameSizes
from janus_hpc.comm.waits import WaitPolicy

# A line holds what one rank writes, so that no two ranks write to one cache line.
_LINE_WORDS = 8
_HEADER_LINES = -(-HEADER_WORDS // _LINE_WORDS)


class Lines:
    """Counters and words of a group, as indices of their first word.

    arrived[i], i-th member; sent[m][a]; answered[m][e]; landed[m][source, chunk]; returned[m][child,
    chunk]; counted[m][a] and routed[m][a], one word for each expert rank of the fabric, with the
    gate on the attention side; header_words[parity][i].
    """

    def __init__(self, fabric: Fabric, group: Group, sizes: Sizes, routes: bool) -> None:
        lines = count(0, _LINE_WORDS)
        microbatches = range(sizes.num_microbatches)
        attention, experts = range(len(group.attention)), range(len(group.experts))
        chunks = range(MAX_CHUNKS)
        sources = [s for s in fabric.sources if s != group.index] if group.experts else []
        children = fabric.trees[group.index][group.index] if group.attention else ()
        self.arrived = [next(lines) for _ in group.members]
        self.sent = [[next(lines) for _ in attention] for _ in microbatches]
        self.answered = [[next(lines) for _ in experts] for _ in microbatches]
        self.landed = [{(s, c): next(lines) for s in sources for c in chunks} for _ in microbatches]
        self.returned = [
            {(g, c): next(lines) for g in children for c in chunks} for _ in microbatches
        ]
        self.counted = [[next(lines) for _ in attention] for _ in microbatches]
        headers = count(next(lines), _HEADER_LINES * _LINE_WORDS)
        self.header_words = [[next(headers) for _ in group.members] for _ in range(2)]
        num_experts = len(fabric.expert_ranks) if routes else 0
        words = count(next(headers), -(-num_experts // _LINE_WORDS) * _LINE_WORDS or 1)
        self.routed = [[next(words) for _ in attention] for _ in microbatches]
        self.num_words = next(words)


def _areas(
    fabric: Fabric, group: Group, sizes: Sizes, frames: FrameSizes | None
) -> Iterator[tuple[str, int]]:
    """Names and bytes of the areas that follow the words."""
    num_own = len(group.attention) * sizes.max_tokens_per_rank
    num_all = len(fabric.attention_ranks) * sizes.max_tokens_per_rank
    num_held = num_all if group.experts else num_own
    num_children = len(fabric.trees[group.index][group.index]) if group.attention else 0
    if frames is None:
        yield "tokens", num_held * sizes.row_bytes
    else:
        for source in fabric.sources:
            if group.experts or source == group.index:
                yield f"frames {source}", frames.capacity(source)
    yield "parts", len(group.experts) * num_all * sizes.hidden * 8
    yield "returned", num_children * num_own * sizes.hidden * 8


def group_bytes(fabric: Fabric, group: Group, sizes: Sizes, frames: FrameSizes | None) -> int:
    """Bytes of the whole memory of a group."""
    words = Lines(fabric, group, sizes, frames is not None).num_words
    areas = sum(_page_up(size) for _, size in _areas(fabric, group, sizes, frames))
    return _page_up(words * 8) + areas


class GroupMemory:
    """The mapped memory. x_ND in the row dtype and y_END in float64, N up to the maximum of a step.

    `x_ND` holds the rows of all attention ranks where the group has experts, else only its own;
    it is empty with the gate on the attention side, where `frames[source]` are bytes. `y_END`: the
    partial sums of the group's expert ranks. `returned_CND`: what the children of the group's tree
    sent back for its own rows.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        fabric: Fabric,
        group: Group,
        sizes: Sizes,
        frames: FrameSizes | None,
    ) -> None:
        """Map it. Collective over `comm`, the members of the group, which it takes over."""
        self.lines = Lines(fabric, group, sizes, frames is not None)
        self._shared = SharedMemory(comm, group_bytes(fabric, group, sizes, frames))
        self.fence = self._shared.fence
        start = _page_up(self.lines.num_words * 8)
        self.words = self._shared.memory.cast("B")[:start].cast("q")
        all_bytes = self._shared.bytes()
        areas: dict[str, Tensor] = {}
        for name, size in _areas(fabric, group, sizes, frames):
            areas[name] = all_bytes[start : start + size]
            start += _page_up(size)
        rows, hidden = sizes.max_tokens_per_rank, sizes.hidden
        none = torch.empty(0, dtype=torch.uint8)
        self.x_ND = areas.get("tokens", none).view(sizes.row_dtype).view(-1, hidden)
        num_all, num_own = len(fabric.attention_ranks) * rows, len(group.attention) * rows
        y = areas["parts"].view(torch.float64)
        self.y_END = y.view(len(group.experts), num_all, hidden)
        back = areas["returned"].view(torch.float64)
        self.returned_CND = back.view(-1, max(num_own, 1), hidden)
        self.frames = {s: areas[f"frames {s}"] for s in fabric.sources if f"frames {s}" in areas}

    def write_words(self, start: int, values: list[int]) -> None:
        """Store words one after the other from `start`."""
        for offset, value in enumerate(values):
            self.words[start + offset] = value

    def read_words(self, start: int, num_words: int) -> list[int]:
        """The words from `start`."""
        return self.words[start : start + num_words].tolist()

    def free(self, policy: WaitPolicy) -> None:
        """Unmap; views handed out are invalid from then on. Collective over the group."""
        del self.x_ND, self.y_END, self.returned_CND, self.frames
        self.words.release()
        self._shared.free(policy)


def _page_up(num_bytes: int) -> int:
    return -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
