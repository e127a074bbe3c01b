"""Groups of ranks that gather and reduce together, and the trees that tokens take from group to group.

Pure: computed alike on every rank from the topology and the kind; knows no sizes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from janus_hpc.topology import Topology


class Kind(StrEnum):
    """How tokens cross nodes (Janus, section 3.3).

    one-phase: each attention rank sends to each expert rank; every rank is a group of its own.
    direct (case 1): groups are nodes; a node's tokens go to every expert node.
    relay (case 2): groups are nodes; a node's tokens go to one expert node, which passes them on
    along a binomial tree over the expert nodes. Sums come back the way the tokens went.
    """

    ONE_PHASE = "one-phase"
    DIRECT = "direct"
    RELAY = "relay"


@dataclass(frozen=True)
class Group:
    """Ranks that share memory for an exchange; world ranks ascending, a colocated one in both."""

    index: int
    node_id: int
    attention: tuple[int, ...]
    experts: tuple[int, ...]

    @property
    def members(self) -> tuple[int, ...]:
        """All world ranks of the group, ascending."""
        return tuple(sorted({*self.attention, *self.experts}))


# A tree over groups: each group's children, in the order they are sent to. The root is the group
# that tokens come from.
Tree = dict[int, tuple[int, ...]]


@dataclass(frozen=True)
class Fabric:
    """The groups of an exchange, node by node, and a tree from each group that has attention."""

    kind: Kind
    groups: tuple[Group, ...]

    @cached_property
    def attention_ranks(self) -> tuple[int, ...]:
        """All attention ranks in the order in which their rows lie: node by node."""
        return tuple(rank for group in self.groups for rank in group.attention)

    @cached_property
    def expert_ranks(self) -> tuple[int, ...]:
        """All expert ranks, node by node."""
        return tuple(rank for group in self.groups for rank in group.experts)

    @cached_property
    def group_of(self) -> dict[int, Group]:
        """World rank -> its group."""
        return {rank: group for group in self.groups for rank in group.members}

    @cached_property
    def sources(self) -> tuple[int, ...]:
        """Groups that tokens come from."""
        return tuple(group.index for group in self.groups if group.attention)

    @cached_property
    def trees(self) -> dict[int, Tree]:
        """Source -> its tree, which reaches every other group that has experts."""
        return {source: self._tree(place, source) for place, source in enumerate(self.sources)}

    def _tree(self, place: int, source: int) -> Tree:
        """Sources start at different targets, so that they do not all send to one at a time."""
        targets = [group.index for group in self.groups if group.experts and group.index != source]
        if not targets:
            return {source: ()}
        shift = place % len(targets)
        targets = targets[shift:] + targets[:shift]
        if self.kind is not Kind.RELAY:
            return {source: tuple(targets)} | dict.fromkeys(targets, ())
        return {source: (targets[0],)} | _binomial(targets)


def make_fabric(topology: Topology, kind: Kind) -> Fabric:
    """The groups of the active ranks: nodes, or single ranks for one-phase over several nodes."""
    active = topology.active_ranks
    alone = kind is Kind.ONE_PHASE and not topology.same_node(active)
    parts: dict[tuple[int, int], list[int]] = {}
    for rank in sorted(active, key=lambda rank: (topology.node_ids[rank], rank)):
        parts.setdefault((topology.node_ids[rank], rank if alone else 0), []).append(rank)
    groups = [
        Group(
            index=index,
            node_id=node_id,
            attention=tuple(rank for rank in members if topology.roles[rank].does_attention),
            experts=tuple(rank for rank in members if topology.roles[rank].does_experts),
        )
        for index, ((node_id, _), members) in enumerate(parts.items())
    ]
    return Fabric(kind, tuple(groups))


def preorder(tree: Tree, start: int) -> Iterator[int]:
    """The groups of the subtree that begins at `start`, each before its children."""
    yield start
    for child in tree[start]:
        yield from preorder(tree, child)


def parent_of(tree: Tree, group: int) -> int | None:
    """The group that passes tokens on to this one; None for the root."""
    return next((parent for parent, children in tree.items() if group in children), None)


def _binomial(order: Sequence[int]) -> Tree:
    """A binomial tree: place p passes on to p + 2^k for every 2^k > p, the largest subtree first."""
    size = len(order)
    children: Tree = {}
    for place, group in enumerate(order):
        steps = [1 << k for k in range(size.bit_length()) if 1 << k > place]
        children[group] = tuple(order[place + step] for step in steps if place + step < size)
    return children
