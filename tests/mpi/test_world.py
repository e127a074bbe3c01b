"""The world: objects between ranks, agreement on errors, nodes, shared memory of a node."""

import pytest
import torch
from mpi4py import MPI

from janus_hpc.comm.shared_weights import NodeShared
from janus_hpc.comm.waits import make_policy, wait_until
from janus_hpc.comm.world import World
from janus_hpc.errors import JanusError, ModelError, UsageError
from janus_hpc.topology import Role

pytestmark = pytest.mark.world_size(1, 2, 3, 5)


def test_objects_travel(world: World) -> None:
    mine = {"rank": world.world_rank, "payload": "x" * (1000 * world.world_rank)}
    gathered = world.allgather(mine)
    assert [len(its["payload"]) for its in gathered] == [1000 * i for i in range(world.world_size)]
    root = world.world_size - 1
    assert world.bcast(mine, root)["rank"] == root
    at_root = world.gather(world.world_rank, root)
    expected = list(range(world.world_size)) if world.world_rank == root else None
    assert at_root == expected


def test_nodes_come_from_shared_memory(world: World) -> None:
    assert world.node_ids == (0,) * world.world_size
    assert world.local_ranks == tuple(range(world.world_size))
    assert (world.node_id, world.local_rank, world.num_local) == (
        0,
        world.world_rank,
        world.world_size,
    )
    assert world.num_cores >= 1
    assert world.library_version
    topology = world.topology([Role.COLOCATED] * world.world_size)
    assert topology.same_node(range(world.world_size))
    assert world.label == f"colocated {world.world_rank}/{world.world_rank}@{world.hostname}"


def test_split_by_colour(world: World) -> None:
    even = world.world_rank % 2 == 0
    comm = world.split(0 if even else None)
    assert (comm is not None) == even
    if comm is not None:
        assert comm.size == (world.world_size + 1) // 2
        comm.Free()


def test_agree_passes_without_an_error(world: World) -> None:
    world.agree(None)


def test_agree_names_the_lowest_rank_that_failed(world: World) -> None:
    last = world.world_size - 1
    error = ModelError("config.json: hidden_size is missing") if world.world_rank == last else None
    with pytest.raises(ModelError) as caught:
        world.agree(error)
    assert world.agreed_error is caught.value
    message = str(caught.value)
    assert message.startswith("config.json: hidden_size is missing")
    if world.world_size > 1:
        assert f"(world rank {last} on " in message
        assert f"1 of {world.world_size} ranks failed" in message


def test_agree_says_what_all_ranks_say_once(world: World) -> None:
    with pytest.raises(UsageError) as caught:
        world.agree(UsageError("no such file: a.jsonl"))
    assert str(caught.value) == "no such file: a.jsonl"


def test_agree_turns_a_foreign_error_into_one_of_ours(world: World) -> None:
    with pytest.raises(JanusError, match="KeyError: 'w1'"):
        world.agree(KeyError("w1") if world.world_rank == 0 else None)


def test_node_shared_is_one_memory(world: World) -> None:
    shared = NodeShared(world, "even" if world.world_rank % 2 == 0 else "odd")
    assert shared.is_leader == (world.world_rank < 2)
    parity = world.world_rank % 2
    assert shared.num_ranks == (world.world_size + 1 - parity) // 2
    weights = shared.allocate(4096 * 4).view(torch.float32)
    if shared.is_leader:
        weights.copy_(torch.arange(4096) + parity)
    shared.fence()
    assert torch.equal(weights, torch.arange(4096, dtype=torch.float32) + parity)
    assert shared.allocate(0).numel() == 0
    del weights
    shared.free()


@pytest.mark.world_size(2, 3, 5)
def test_node_shared_that_cannot_fit_says_so_on_all_ranks(world: World) -> None:
    shared = NodeShared(world, "all")
    with pytest.raises(UsageError, match=r"/dev/shm has [0-9]+ bytes free"):
        shared.allocate(2**55)
    shared.free()


@pytest.mark.world_size(2, 5)
def test_a_rank_at_a_barrier_still_serves_others(world: World) -> None:
    """Rank 0 comes to the barrier only with what rank 1 sends while it waits there."""
    sent: list[MPI.Request] = []

    def send_once() -> None:
        if world.world_rank == 1 and not sent:
            sent.append(world.comm.isend("late", dest=0, tag=5))

    if world.world_rank == 0:
        request = world.comm.irecv(source=1, tag=5)
        wait_until(lambda: request.test()[0], make_policy(30.0), lambda: "for rank 1")
    world.barrier(send_once)
    assert all(request.test()[0] for request in sent)
