"""Roles, splits and the map of ranks to nodes: pure values every rank computes alike.

Knows neither MPI nor devices; `comm.world` fills a Topology from what the communicator says.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from janus_hpc.errors import UsageError

_EXAMPLES = "write 1a3e (1 attention and 3 expert ranks), colocated (every rank does both) or 2c"


class Role(StrEnum):
    """What a rank does during a batch."""

    ATTENTION = "attention"
    EXPERT = "expert"
    COLOCATED = "colocated"
    PARKED = "parked"

    @property
    def does_attention(self) -> bool:
        """Holds attention weights and rows."""
        return self in (Role.ATTENTION, Role.COLOCATED)

    @property
    def does_experts(self) -> bool:
        """Holds experts."""
        return self in (Role.EXPERT, Role.COLOCATED)


@dataclass(frozen=True, kw_only=True)
class Split:
    """How many ranks have which role. Either colocated ranks or both other roles, never a mixture;
    the rest is parked.
    """

    num_attention: int = 0
    num_expert: int = 0
    num_colocated: int = 0
    num_parked: int = 0

    @property
    def world_size(self) -> int:
        """Ranks of all roles together."""
        return self.num_attention + self.num_expert + self.num_colocated + self.num_parked

    @property
    def num_expert_ranks(self) -> int:
        """Ranks that hold experts."""
        return self.num_expert + self.num_colocated

    def __str__(self) -> str:
        if not self.num_colocated:
            return f"{self.num_attention}a{self.num_expert}e"
        return f"{self.num_colocated}c" if self.num_parked else "colocated"


def parse_split(text: str, world_size: int, num_experts: int) -> Split:
    """Read `2a6e`, `colocated` (all ranks) or `3c` (3 colocated ranks); ranks left over are parked.

    UsageError for a wrong syntax, a missing role, more ranks than `world_size`, more expert ranks
    than `num_experts`.
    """
    split = _read_split(text.strip().lower(), world_size)
    num_wanted = split.world_size
    if num_wanted > world_size:
        raise UsageError(
            f"split {text!r} needs {num_wanted} ranks, but {world_size} were started: "
            f"start with mpirun -n {num_wanted}, or choose a smaller split"
        )
    if split.num_expert_ranks > num_experts:
        raise UsageError(
            f"split {text!r} on {world_size} ranks has {split.num_expert_ranks} expert ranks, but "
            f"the model has {num_experts} experts a layer, so at most {num_experts} can be used"
        )
    return Split(
        num_attention=split.num_attention,
        num_expert=split.num_expert,
        num_colocated=split.num_colocated,
        num_parked=world_size - num_wanted,
    )


def _read_split(text: str, world_size: int) -> Split:
    if text == "colocated":
        return Split(num_colocated=world_size)
    if match := re.fullmatch(r"([0-9]{1,9})c", text):
        split = Split(num_colocated=int(match[1]))
    elif match := re.fullmatch(r"(?:([0-9]{1,9})a)?(?:([0-9]{1,9})e)?", text):
        split = Split(num_attention=int(match[1] or 0), num_expert=int(match[2] or 0))
    else:
        raise UsageError(f"split {text!r} is not understood: {_EXAMPLES}")
    if not split.num_colocated and not (split.num_attention and split.num_expert):
        raise UsageError(
            f"split {text!r} has {split.num_attention} attention and {split.num_expert} expert "
            f"ranks; at least one of each is needed: {_EXAMPLES}"
        )
    return split


def assign_roles(split: Split, node_of_rank: Sequence[int]) -> list[Role]:
    """The role of every world rank, packed by node so that ranks of one role share as few nodes as
    possible.

    Ranks are taken node by node, in world order inside a node: first attention (or colocated), then
    expert, then parked. Where the launcher fills nodes in turn this is plain world order.
    """
    world_size = len(node_of_rank)
    assert split.world_size == world_size, f"{split=} {world_size=}"
    in_turn = (
        [Role.ATTENTION] * split.num_attention
        + [Role.COLOCATED] * split.num_colocated
        + [Role.EXPERT] * split.num_expert
        + [Role.PARKED] * split.num_parked
    )
    packed = sorted(
        range(world_size), key=lambda world_rank: (node_of_rank[world_rank], world_rank)
    )
    role_of = dict(zip(packed, in_turn, strict=True))
    return [role_of[world_rank] for world_rank in range(world_size)]


def contiguous_experts(num_experts: int, num_expert_ranks: int) -> list[range]:
    """The experts of each expert rank: contiguous, sizes within one of another, larger ones
    first.
    """
    assert 0 < num_expert_ranks <= num_experts, f"{num_expert_ranks=} {num_experts=}"
    size, num_larger = divmod(num_experts, num_expert_ranks)
    starts = [i * size + min(i, num_larger) for i in range(num_expert_ranks + 1)]
    return [range(starts[i], starts[i + 1]) for i in range(num_expert_ranks)]


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Role, node, host and local rank of every world rank; each tuple has one entry a world rank.

    Role ranks count attention ranks and expert ranks apart, each in ascending world order. A
    colocated rank is in both lists, at the same place.
    """

    roles: tuple[Role, ...]
    node_ids: tuple[int, ...]
    hosts: tuple[str, ...]
    local_ranks: tuple[int, ...]

    def __post_init__(self) -> None:
        sizes = {len(self.roles), len(self.node_ids), len(self.hosts), len(self.local_ranks)}
        assert len(sizes) == 1, f"{self=}"

    @property
    def world_size(self) -> int:
        """Ranks started, parked ones included."""
        return len(self.roles)

    @cached_property
    def attention_ranks(self) -> tuple[int, ...]:
        """World ranks that do attention, ascending; the index is the attention role rank."""
        return tuple(r for r, role in enumerate(self.roles) if role.does_attention)

    @cached_property
    def expert_ranks(self) -> tuple[int, ...]:
        """World ranks that hold experts, ascending; the index is the expert role rank."""
        return tuple(r for r, role in enumerate(self.roles) if role.does_experts)

    @cached_property
    def active_ranks(self) -> tuple[int, ...]:
        """World ranks that are not parked, ascending."""
        return tuple(r for r, role in enumerate(self.roles) if role is not Role.PARKED)

    def role_rank(self, world_rank: int) -> int:
        """Place of a rank among the ranks of its role, in world order (a colocated rank among
        attention ranks).
        """
        role = self.roles[world_rank]
        if role.does_attention:
            return self.attention_ranks.index(world_rank)
        if role.does_experts:
            return self.expert_ranks.index(world_rank)
        return self.roles[:world_rank].count(role)

    def label(self, world_rank: int) -> str:
        """How messages name a rank: `expert 1/3@host`, role rank before world rank."""
        return (
            f"{self.roles[world_rank]} {self.role_rank(world_rank)}/{world_rank}"
            f"@{self.hosts[world_rank]}"
        )

    def same_node(self, world_ranks: Iterable[int]) -> bool:
        """Whether these ranks all share memory."""
        return len({self.node_ids[r] for r in world_ranks}) <= 1
