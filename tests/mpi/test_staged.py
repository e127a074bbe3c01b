"""Every kind, gate and link over made-up nodes against sums worked out from the rows alone."""

from importlib.util import find_spec

import pytest
from mpi4py import MPI

from janus_hpc.comm.world import World
from tests.mpi.driver import run
from tests.mpi.nodes import dealt_out, topology_of

NODES = {
    1: ["c"],
    2: ["a e", "c c", "ae"],
    3: ["a e e", "aa e", "a ee", "c c c", "ae e", "a ce"],
    5: ["aa ee e", "a a eee", "ae ae e", "aaa e e", "cc c cc", "e aae e", "a e e e e", "aaaa e"],
}
KINDS = ["one-phase", "direct", "relay"]
LINKS = ["mpi"] + (["ucx"] if find_spec("ucxx") else [])


@pytest.mark.world_size(1, 2, 3, 5)
@pytest.mark.parametrize("num_microbatches", [1, 2, 3])
@pytest.mark.parametrize("gate", ["egate", "agate"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nodes", NODES.get(MPI.COMM_WORLD.size, []))
def test_sums_are_exact(
    world: World, nodes: str, kind: str, gate: str, num_microbatches: int
) -> None:
    run(world, topology_of(world, nodes), kind, gate, num_microbatches=num_microbatches)


@pytest.mark.world_size(2, 3, 5)
@pytest.mark.parametrize("gate", ["egate", "agate"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inter", LINKS)
def test_links(world: World, inter: str, kind: str, gate: str) -> None:
    topology = topology_of(world, NODES[world.world_size][0])
    run(world, topology, kind, gate, inter=inter, num_steps=20, chunk_bytes=10**6)


@pytest.mark.world_size(3, 5)
@pytest.mark.parametrize("kind", KINDS)
def test_nodes_whose_ranks_are_not_neighbours(world: World, kind: str) -> None:
    topology = topology_of(world, NODES[world.world_size][1])
    order = list(range(0, world.world_size, 2)) + list(range(1, world.world_size, 2))
    run(world, dealt_out(topology, order), kind, "egate", num_microbatches=2)
