"""Measuring costs on nodes that are made up: every figure is there, sensible, and alike on all ranks."""

from dataclasses import replace
from importlib.util import find_spec

import pytest
from mpi4py import MPI

from janus_hpc.comm.costs import ExchangeCosts
from janus_hpc.comm.measure import Effort, measure_costs
from janus_hpc.comm.world import World

LITTLE = Effort(
    sizes=[(1024, 3), (1 << 16, 2)],
    num_small=3,
    num_rounds=2,
    num_bulk=4,
    bulk_bytes=1 << 14,
    memory_bytes=1 << 16,
)
LINKS = ["mpi"] + (["ucx"] if find_spec("ucxx") else [])


def check(world: World, costs: ExchangeCosts, link: str, *, across: bool, inside: bool) -> None:
    its = costs.links[link]
    for points, expected in ((its.across, across), (its.inside, inside)):
        assert [size for size, _ in points] == ([1024, 1 << 16] if expected else [])
        assert all(0 < time_s < 10 for _, time_s in points)
    assert (its.node_rate > 0) == (its.across_busy_s > 0) == across
    assert costs.memory.copy_rate > 0 and costs.memory.add_rate > 0
    assert (costs.memory.signal_s > 0) == (world.num_local > 1)
    assert all(theirs == costs for theirs in world.allgather(costs))


@pytest.mark.world_size(1, 2, 3, 5)
@pytest.mark.parametrize("link", LINKS)
def test_one_node(world: World, link: str) -> None:
    costs = measure_costs(world, [link], effort=LITTLE)
    check(world, costs, link, across=False, inside=world.world_size > 1)


@pytest.mark.world_size(2, 3, 5)
@pytest.mark.parametrize(
    "node_ids",
    {2: [(0, 1)], 3: [(0, 1, 2), (0, 0, 1), (1, 0, 0)], 5: [(0, 0, 0, 1, 1), (0, 1, 0, 2, 3)]}.get(
        MPI.COMM_WORLD.size, []
    ),
)
def test_several_nodes(world: World, node_ids: tuple[int, ...]) -> None:
    nodes = replace(world, node_ids=node_ids)
    costs = measure_costs(nodes, LINKS, effort=LITTLE)
    for link in LINKS:
        check(nodes, costs, link, across=True, inside=len(set(node_ids)) < len(node_ids))
