"""Asking ranks that may not answer, and comparing the clocks of nodes that are made up."""

import time
from dataclasses import replace
from functools import partial

import pytest
from mpi4py import MPI

from janus_hpc.comm.clocks import clock_offsets
from janus_hpc.comm.libraries import mpi_library
from janus_hpc.comm.measure import measure_pairs
from janus_hpc.comm.roll_call import RollCall, private_world
from janus_hpc.comm.world import World
from janus_hpc.errors import CommTimeout

AHEAD_S = 1000.0


@pytest.mark.world_size(1, 2, 3, 5)
def test_a_roll_call_names_who_is_silent(world: World) -> None:
    me, size = world.world_rank, world.world_size
    calls = RollCall(world, 1.0)
    big = {"of": me, "bytes": bytes(100_000)}
    questions = (4, 9)
    if me == 0:
        for question in questions:
            found = calls.collect(question, big)
            assert {r: its["of"] for r, its in found.items()} == {r: r for r in range(size)}
        # The last rank is not asked to answer this one.
        expected = {r for r in range(size) if r == 0 or r != size - 1}
        assert set(calls.collect(11, None)) == expected
    else:
        for question in questions:
            calls.answer(question, big)
        if me != size - 1:
            calls.answer(11, None)
    calls.finish()
    world.barrier()


@pytest.mark.world_size(2, 3)
def test_a_failure_in_a_private_world_leaves_the_world_in_step(world: World) -> None:
    private = private_world(world, 0.5)
    if world.world_rank == 0:
        with pytest.raises(CommTimeout):
            private.allgather("rank 0 alone gets this far")
    world.barrier()
    assert world.allgather(world.world_rank) == list(range(world.world_size))


@pytest.mark.world_size(2, 3, 5)
def test_clock_offsets(world: World) -> None:
    """Ranks of later nodes have clocks that are ahead by known amounts."""
    nodes = {2: (0, 1), 3: (0, 1, 1), 5: (0, 0, 1, 2, 2)}[world.world_size]
    apart = replace(world, node_ids=nodes)

    clock = partial(_shifted, nodes[world.world_rank] * AHEAD_S)
    offsets = clock_offsets(apart, clock=clock)
    if world.world_rank:
        assert offsets == {}
        return
    assert sorted(offsets) == sorted(set(nodes) - {0})
    for node, (offset_s, error_s) in offsets.items():
        assert abs(offset_s - node * AHEAD_S) <= error_s + 1e-3
        assert 0 < error_s < AHEAD_S / 10


def _shifted(by_s: float) -> float:
    return time.time() + by_s


@pytest.mark.world_size(2, 3, 5)
def test_times_of_pairs(world: World) -> None:
    pairs = {2: [[(0, 1)]], 3: [[(0, 1)], [(1, 2)]], 5: [[(0, 4), (1, 3)], [(2, 4)]]}
    rounds = pairs[world.world_size]
    measured = measure_pairs(world, "mpi", rounds, [(8, 2), (1 << 16, 2)])
    assert measured.link == "mpi"
    assert list(measured.times) == [pair for its in rounds for pair in its]
    assert all(set(its) == {8, 1 << 16} for its in measured.times.values())
    assert all(0 < t < 10 for its in measured.times.values() for t in its.values())
    assert world.allgather(measured) == [measured] * world.world_size


def test_the_library_in_use() -> None:
    library = mpi_library()
    assert library.name in " ".join(MPI.Get_library_version().split())
    assert len(library.files) == 1, library
