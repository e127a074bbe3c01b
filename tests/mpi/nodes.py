"""Topologies whose nodes are made up: ranks of one host that an exchange takes for several nodes."""

from janus_hpc.comm.world import World
from janus_hpc.topology import Role, Topology

LETTERS = {"a": Role.ATTENTION, "e": Role.EXPERT, "c": Role.COLOCATED, "p": Role.PARKED}


def topology_of(world: World, nodes: str) -> Topology:
    """`ae e`: two nodes, an attention and an expert rank on the first, an expert rank on the
    second.
    """
    parts = nodes.split()
    roles = [LETTERS[letter] for part in parts for letter in part]
    node_ids = [node for node, part in enumerate(parts) for _ in part]
    assert len(roles) == world.world_size, f"{nodes=} {world.world_size=}"
    return Topology(
        roles=tuple(roles),
        node_ids=tuple(node_ids),
        hosts=tuple(f"n{node}" for node in node_ids),
        local_ranks=tuple(node_ids[:i].count(node) for i, node in enumerate(node_ids)),
    )


def dealt_out(topology: Topology, order: list[int]) -> Topology:
    """The same nodes and roles with world rank i in the place of order[i]."""
    return Topology(
        roles=tuple(topology.roles[i] for i in order),
        node_ids=tuple(topology.node_ids[i] for i in order),
        hosts=tuple(topology.hosts[i] for i in order),
        local_ranks=tuple(topology.local_ranks[i] for i in order),
    )
