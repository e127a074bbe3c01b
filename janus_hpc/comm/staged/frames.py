"""Frames: the rows routed to one group of expert ranks, with what the gate chose, as bytes.

Owns the format and where frames lie; knows neither MPI nor who reads them when. A frame holds a
source group's rows for one target group: its int64 words, then expert ids (int32), weights (float32)
and token rows (int32) of all its rows, then the rows themselves. Rows are sorted by expert rank,
then attention rank, then expert, then token, so that each expert rank finds its own in one piece.
R: rows of a frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from janus_hpc.comm.layout import Sizes
from janus_hpc.comm.plan.fabric import Fabric, preorder

_ALIGN = 64
_MAGIC = 0x4A414E5553
_FIXED_WORDS = 4
_META_BYTES = 12


@dataclass(frozen=True)
class FrameSizes:
    """Most bytes that the frames of a source can take: K choices a token, one row each."""

    fabric: Fabric
    sizes: Sizes
    top_k: int

    def capacity(self, source: int) -> int:
        """Bytes of all frames of a source, over all microbatches of a step."""
        return self.start(source, self._num_own(source), self.sizes.num_microbatches)

    def start(self, source: int, num_tokens_before: int, microbatch: int) -> int:
        """Where a microbatch's frames begin, after microbatches of so many tokens in all."""
        num_targets = sum(bool(group.experts) for group in self.fabric.groups)
        num_counts = len(self.fabric.groups[source].attention) * len(self.fabric.expert_ranks)
        words = 8 * (num_targets * _FIXED_WORDS + num_counts)
        slack = num_targets * 3 * _ALIGN
        row_bytes = self.sizes.row_bytes + _META_BYTES
        per_microbatch = _align(words + slack)
        return microbatch * per_microbatch + _align(num_tokens_before * self.top_k * row_bytes)

    def _num_own(self, source: int) -> int:
        return len(self.fabric.groups[source].attention) * self.sizes.max_tokens_per_rank


@dataclass(frozen=True)
class Frame:
    """Where one frame lies in its source's bytes. counts_EA: rows of each expert rank of the target
    from each attention rank of the source.
    """

    start: int
    counts_EA: tuple[tuple[int, ...], ...]
    row_bytes: int

    @property
    def num_rows(self) -> int:
        """R."""
        return sum(map(sum, self.counts_EA))

    @property
    def num_words(self) -> int:
        """int64 words at its start."""
        return _FIXED_WORDS + sum(map(len, self.counts_EA))

    @property
    def meta_start(self) -> int:
        """First byte of the expert ids."""
        return self.start + _align(self.num_words * 8)

    @property
    def rows_start(self) -> int:
        """First byte of the rows."""
        return self.meta_start + _align(self.num_rows * _META_BYTES)

    @property
    def stop(self) -> int:
        """First byte after it."""
        return self.rows_start + _align(self.num_rows * self.row_bytes)

    def first_row(self, expert: int, attention: int) -> int:
        """The first row of an expert rank of the target from an attention rank of the source."""
        before = sum(map(sum, self.counts_EA[:expert]))
        return before + sum(self.counts_EA[expert][:attention])

    def write_header(self, memory_B: Tensor, layer: int, microbatch: int) -> None:
        """Its words: magic, layer, microbatch, bytes, counts."""
        counts = [count for row in self.counts_EA for count in row]
        words = [_MAGIC, layer, microbatch, self.stop - self.start, *counts]
        end = self.start + self.num_words * 8
        memory_B[self.start : end].view(torch.int64).copy_(torch.tensor(words))

    def check(self, memory_B: Tensor, layer: int, microbatch: int) -> None:
        """Assert that it was written for this layer and microbatch."""
        words = memory_B[self.start : self.start + 24].view(torch.int64).tolist()
        assert words[1:] == [layer, microbatch], f"a frame of {words=}, not {layer=} {microbatch=}"

    def columns(self, memory_B: Tensor, rows: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Views of expert ids, weights, token rows (R each) and bytes of the rows [R, row_bytes]."""
        num_rows, start = self.num_rows, self.meta_start
        ids = memory_B[start : start + 4 * num_rows].view(torch.int32)
        weights = memory_B[start + 4 * num_rows : start + 8 * num_rows].view(torch.float32)
        tokens = memory_B[start + 8 * num_rows : start + 12 * num_rows].view(torch.int32)
        end = self.rows_start + num_rows * self.row_bytes
        data = memory_B[self.rows_start : end].view(num_rows, self.row_bytes)
        return ids[rows], weights[rows], tokens[rows], data[rows]


def lay_out(
    fabric: Fabric, source: int, start: int, counts_AE: Sequence[Sequence[int]], row_bytes: int
) -> dict[int, Frame]:
    """Target group -> its frame, in the order in which the source's tree passes them on.

    counts_AE[a][e]: rows of the source's attention rank a for fabric.expert_ranks[e].
    """
    frames = {}
    first = {group.index: _first_expert(fabric, group.index) for group in fabric.groups}
    for target in preorder(fabric.trees[source], source):
        experts = range(first[target], first[target] + len(fabric.groups[target].experts))
        if not experts:
            continue
        counts_EA = tuple(tuple(counts[e] for counts in counts_AE) for e in experts)
        frames[target] = Frame(start, counts_EA, row_bytes)
        start = frames[target].stop
    return frames


def read_frames(
    fabric: Fabric, source: int, target: int, memory_B: Tensor, start: int, row_bytes: int
) -> dict[int, Frame]:
    """The frames that lie from `start` after the tree's subtree at `target` was received."""
    frames = {}
    num_attention = len(fabric.groups[source].attention)
    for group in preorder(fabric.trees[source], target):
        num_experts = len(fabric.groups[group].experts)
        num_words = _FIXED_WORDS + num_attention * num_experts
        words = memory_B[start : start + num_words * 8].view(torch.int64).tolist()
        assert words[0] == _MAGIC, f"no frame of group {source} at {start}: {words[:4]}"
        counts = words[_FIXED_WORDS:]
        by_expert = [
            counts[i * num_attention : (i + 1) * num_attention] for i in range(num_experts)
        ]
        frames[group] = Frame(start, tuple(map(tuple, by_expert)), row_bytes)
        assert frames[group].stop - start == words[3], f"{words[:4]} {frames[group]}"
        start = frames[group].stop
    return frames


def _first_expert(fabric: Fabric, group: int) -> int:
    return sum(len(its.experts) for its in fabric.groups[:group])


def _align(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGN) * _ALIGN
