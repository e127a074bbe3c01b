"""Weights that several ranks of a node need (attention's, the gates'): held, and filled, once a node.

A node gets them when a rank of it first needs them: from a node that has them, else from the checkpoint. Branches
on no role: the caller says which ranks need them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import torch

from janus_hpc.engine.carrier import Carrier
from janus_hpc.kernels.ops import Ops
from janus_hpc.layers.source import Reader, SizingSource, SlabSource, WeightSource

M = TypeVar("M")
# The tags below are of experts.
_TAG = 2


class Shared(Protocol):
    """What is needed of `comm.shared_weights.NodeShared`."""

    def allocate(self, num_bytes: int) -> torch.Tensor: ...

    def fence(self) -> None: ...


@dataclass(frozen=True)
class Fill:
    """World rank `target` fills its group's memory from world rank `source`; None: from the checkpoint."""

    group: tuple[int, ...]
    target: int
    source: int | None


def plan_fills(
    groups: Sequence[tuple[int, ...]], holders: Sequence[int], wanted: Sequence[int]
) -> list[Fill]:
    """The groups that newly need weights, each filled by its lowest rank that does; pure.

    `groups`: world ranks that share memory; `holders`: a rank of each group that has the weights
    already; these are asked in turn.
    """
    having = [group for group in groups if any(holder in group for holder in holders)]
    needing = [group for group in groups if group not in having and set(group) & set(wanted)]
    sources = sorted(holders)
    return [
        Fill(
            group,
            min(set(group) & set(wanted)),
            sources[number % len(sources)] if sources else None,
        )
        for number, group in enumerate(needing)
    ]


class NodeWeights(Generic[M]):
    """One kind of weights; `make` constructs what computes with them.

    `open`, `fill` and `close` follow each other, with the same plan on all ranks.
    """

    def __init__(
        self,
        make: Callable[[WeightSource], M],
        ops: Ops,
        dtype: torch.dtype,
        shared: Shared,
        groups: Sequence[tuple[int, ...]],
        world_rank: int,
    ) -> None:
        self._make = make
        self._ops = ops
        self._dtype = dtype
        self._shared = shared
        self._groups = groups
        self._world_rank = world_rank
        self._holders: list[int] = []
        self._slab_bytes: torch.Tensor | None = None

    def plan(self, wanted: Sequence[int]) -> list[Fill]:
        """What is to be done for these world ranks; empty where all have the weights."""
        return plan_fills(self._groups, self._holders, wanted)

    def open(self, fills: Sequence[Fill]) -> None:
        """Make room where this rank's group has none. Collective over a group; UsageError on all of it."""
        if any(self._world_rank in fill.group for fill in fills):
            sizing = SizingSource(self._ops, self._dtype)
            self._make(sizing)
            self._slab_bytes = self._shared.allocate(sizing.num_bytes)

    def fill(self, fills: Sequence[Fill], reader: Reader, carrier: Carrier | None) -> int:
        """Read, or receive from a rank that has them, or send; the bytes that were filled here.

        `carrier` may be None where no fill has a source. CommTimeout as for every wait.
        """
        num_bytes, transfers = 0, []
        for fill in fills:
            if self._world_rank not in (fill.target, fill.source):
                continue
            assert self._slab_bytes is not None, f"{fill=}"
            if self._world_rank == fill.target:
                num_bytes += self._slab_bytes.nbytes
            if fill.source is None:
                self._make(SlabSource(self._ops, self._dtype, self._slab_bytes, reader))
                continue
            assert carrier is not None, f"{fill=}"
            if self._world_rank == fill.target:
                transfers += carrier.recv(fill.source, _TAG, self._slab_bytes)
            else:
                transfers += carrier.send(fill.target, _TAG, self._slab_bytes)
        if carrier is not None:
            carrier.wait(transfers, lambda: "moving weights that a node shares")
        self._holders += [fill.target for fill in fills]
        return num_bytes

    def close(self, fills: Sequence[Fill]) -> None:
        """What was filled is seen by the whole group. Collective over it."""
        if any(self._world_rank in fill.group for fill in fills):
            self._shared.fence()

    def build(self, device: torch.device) -> M:
        """What computes with the weights: in the shared memory itself, or with a copy on a GPU."""
        assert self._slab_bytes is not None
        # `to` hands out the same memory on a CPU. A layer may copy what it is handed: all is filled now.
        slab_bytes = self._slab_bytes.to(device)
        return self._make(SlabSource(self._ops, self._dtype, slab_bytes, None))

    def release(self) -> None:
        """Let go of this rank's view, where nobody will build from it again."""
        self._slab_bytes = None
