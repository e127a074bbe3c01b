"""Where things lie in the slabs of a node's GPUs: flags, rows and partial sums of the device exchange.

Owns the views into the slabs; knows nothing of the order they are used in, or of who made the slabs.
A: attention ranks, E: expert ranks, M: microbatches, T: tokens of an attention rank in a step, at
most, N: of all of them, D: hidden size.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from janus_hpc.comm.layout import Peers, Sizes

_ALIGN_BYTES = 256


class Slabs(Protocol):
    """One piece of memory for each active rank, seen by all of them.

    `tensors` are uint8 on `device`, in the order of the active ranks, and start as zeros.
    `waits_on_device`: a kernel of this rank may wait for one of another rank.
    """

    device: torch.device
    tensors: list[Tensor]
    waits_on_device: bool

    def free(self) -> None:
        """Give up the memory. Collective over the active ranks."""


@dataclass(frozen=True)
class Place:
    """First byte of each part of one rank's slab, and its size.

    Token flags: M x A int64, rows x_ND, both on expert ranks; output flags: M x E int64, partial
    sums y_ETD, both on attention ranks.
    """

    token_flags: int
    output_flags: int
    x_start: int
    y_start: int
    num_bytes: int


def place_of(world_rank: int, peers: Peers, sizes: Sizes) -> Place:
    """Where things lie in a rank's slab; computed alike on every rank."""
    role = peers.topology.roles[world_rank]
    flags = 8 * sizes.num_microbatches
    output_flags = _up(flags * peers.num_attention * role.does_experts)
    x_start = _up(output_flags + flags * peers.num_expert * role.does_attention)
    y_start = _up(x_start + sizes.max_rows(peers) * sizes.row_bytes * role.does_experts)
    max_parts = peers.num_expert * sizes.max_tokens_per_rank * role.does_attention
    return Place(0, output_flags, x_start, y_start, y_start + max_parts * sizes.hidden * 8)


def slab_sizes(peers: Peers, sizes: Sizes) -> list[int]:
    """Bytes of each active rank's slab."""
    ranks = peers.topology.active_ranks
    return [place_of(world_rank, peers, sizes).num_bytes for world_rank in ranks]


class Slots:
    """Views into the slabs.

    x_ND[e] and y_ETD[a] are the slots of expert rank e and attention rank a. The own flags:
    token_flags_MA where this rank does experts, output_flags_ME where it does attention, else None.
    """

    def __init__(self, slabs: Slabs, peers: Peers, sizes: Sizes) -> None:
        self._slabs, self._peers, self._sizes = slabs, peers, sizes
        topology, max_rows, hidden = peers.topology, sizes.max_rows(peers), sizes.hidden
        parts_shape = (peers.num_expert, sizes.max_tokens_per_rank, hidden)
        self.x_ND = [
            self._part(its, "x_start", sizes.row_dtype, (max_rows, hidden))
            for its in topology.expert_ranks
        ]
        self.y_ETD = [
            self._part(its, "y_start", torch.float64, parts_shape)
            for its in topology.attention_ranks
        ]
        self.token_flags_MA = self._flags("token_flags", peers.expert_role, peers.num_attention)
        self.output_flags_ME = self._flags("output_flags", peers.attention_role, peers.num_expert)

    def token_addresses(self, microbatch: int) -> Tensor:
        """Where this attention rank posts tokens: its flag in each expert rank's slab."""
        ranks, role = self._peers.topology.expert_ranks, self._peers.attention_role
        return self._addresses(ranks, "token_flags", microbatch, self._peers.num_attention, role)

    def output_addresses(self, microbatch: int) -> Tensor:
        """Where this expert rank posts sums: its flag in each attention rank's slab."""
        ranks, role = self._peers.topology.attention_ranks, self._peers.expert_role
        return self._addresses(ranks, "output_flags", microbatch, self._peers.num_expert, role)

    def _flags(self, name: str, role: int | None, num_senders: int) -> Tensor | None:
        if role is None:
            return None
        shape = (self._sizes.num_microbatches, num_senders)
        return self._part(self._peers.world_rank, name, torch.int64, shape)

    def _addresses(
        self,
        world_ranks: tuple[int, ...],
        name: str,
        microbatch: int,
        num_senders: int,
        role: int | None,
    ) -> Tensor:
        assert role is not None, f"{self._peers=}"
        offset = 8 * (microbatch * num_senders + role)
        starts = [self._part(its, name, torch.uint8, (1,)).data_ptr() for its in world_ranks]
        values = [start + offset for start in starts]
        return torch.tensor(values, dtype=torch.int64, device=self._slabs.device)

    def _part(
        self, world_rank: int, name: str, dtype: torch.dtype, shape: tuple[int, ...]
    ) -> Tensor:
        slab = self._slabs.tensors[self._peers.topology.active_ranks.index(world_rank)]
        start: int = getattr(place_of(world_rank, self._peers, self._sizes), name)
        num_bytes = torch.Size(shape).numel() * dtype.itemsize
        return slab[start : start + num_bytes].view(dtype).view(shape)


def _up(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGN_BYTES) * _ALIGN_BYTES
