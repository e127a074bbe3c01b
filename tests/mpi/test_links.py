"""Both links against bytes worked out on the receiving side: sizes, order, many at once, errors."""

import random
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from janus_hpc.comm.links.link import TAG_BITS, Link, Transfer
from janus_hpc.comm.links.make import make_link
from janus_hpc.comm.links.ucx_library import load_ucx, settings
from janus_hpc.comm.waits import make_policy, wait_until
from janus_hpc.comm.world import World
from janus_hpc.errors import LinkError, UsageError

POLICY = make_policy(60, ranks_per_core=2)
SIZES = [0, 1, 7, 100, 4096, 65_537, 3_000_000]


@pytest.fixture(params=["mpi", "ucx"])
def link(world: World, request: pytest.FixtureRequest) -> Iterator[Link]:
    """A link between all ranks; its end shows that nothing was left under way."""
    if request.param == "ucx":
        need_ucx()
    link = make_link(world.comm, range(world.world_size), request.param, policy=POLICY)
    assert link.name == request.param and link.why == "asked for" and link.detail
    yield link
    link.free()


def need_ucx() -> None:
    try:
        load_ucx()
    except (ImportError, OSError) as error:
        pytest.skip(f"ucxx cannot be used here: {error}")


def message(source: int, target: int, number: int, num_bytes: int) -> Tensor:
    """Bytes that only this message has."""
    generator = torch.Generator().manual_seed(source * 10_007 + target * 101 + number)
    return torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, generator=generator)


def finish(transfers: list[Transfer]) -> None:
    for transfer in transfers:
        wait_until(transfer.is_done, POLICY, lambda: "a test's transfer")


def others(world: World) -> list[int]:
    return [peer for peer in range(world.world_size) if peer != world.world_rank]


def test_all_pairs_with_many_tags_under_way(world: World, link: Link) -> None:
    """Receives are posted in another order than the sends, some before and some after them."""
    draw = random.Random(world.world_rank)
    me, tags = world.world_rank, [0, 5, (1 << TAG_BITS) - 1]

    def size(source: int, target: int, number: int) -> int:
        return SIZES[(source + 2 * target + number) % len(SIZES)]

    jobs: list[Callable[[], None]] = []
    sends: list[Transfer] = []
    receives: list[tuple[Transfer, Tensor, Tensor]] = []

    def post_send(peer: int, number: int) -> None:
        payload = message(me, peer, number, size(me, peer, number))
        sends.append(link.send(peer, tags[number], payload))

    def post_recv(peer: int, number: int) -> None:
        expected = message(peer, me, number, size(peer, me, number))
        # Memory may be longer than the message.
        memory_B = torch.zeros(expected.nbytes + number, dtype=torch.uint8)
        receives.append((link.recv(peer, tags[number], memory_B), memory_B, expected))

    for peer in others(world):
        for number in range(len(tags)):
            jobs.append(lambda peer=peer, number=number: post_send(peer, number))  # type: ignore[misc]
            jobs.append(lambda peer=peer, number=number: post_recv(peer, number))  # type: ignore[misc]
    draw.shuffle(jobs)
    for job in jobs:
        job()
        link.progress()
    finish(sends + [transfer for transfer, _, _ in receives])
    for transfer, memory_B, expected in receives:
        assert transfer.num_bytes == memory_B.nbytes
        assert torch.equal(memory_B[: expected.nbytes], expected)
        assert not memory_B[expected.nbytes :].any()


@pytest.mark.parametrize("receive_first", [True, False])
def test_order_with_one_tag_is_kept(world: World, link: Link, receive_first: bool) -> None:
    """Small and large messages take different ways inside the libraries."""
    me, sizes = world.world_rank, SIZES * 3
    sends: list[Transfer] = []
    receives: list[Transfer] = []
    memories = {
        peer: [torch.zeros(size, dtype=torch.uint8) for size in sizes] for peer in others(world)
    }

    def post_sends() -> None:
        for peer in memories:
            for number, size in enumerate(sizes):
                sends.append(link.send(peer, 3, message(me, peer, number, size)))

    def post_receives() -> None:
        for peer, pieces in memories.items():
            receives.extend(link.recv(peer, 3, memory_B) for memory_B in pieces)

    if receive_first:
        post_receives()
        world.barrier()
        post_sends()
    else:
        post_sends()
        world.barrier()
        link.progress()
        post_receives()
    finish(sends + receives)
    for peer, pieces in memories.items():
        for number, memory_B in enumerate(pieces):
            assert torch.equal(memory_B, message(peer, me, number, memory_B.nbytes))


@pytest.mark.world_size(2, 3, 5)
def test_the_same_memory_again_and_again(world: World, link: Link) -> None:
    """What a link remembers of memory must not outlive its content."""
    draw = random.Random(11)
    memory_B = torch.zeros(100_000, dtype=torch.uint8)
    right, left = (world.world_rank + 1) % world.world_size, world.world_rank - 1
    left %= world.world_size
    for number in range(200):
        num_bytes = draw.choice([0, 3, 5000, 100_000])
        out_B = message(world.world_rank, right, number, num_bytes)
        receive = link.recv(left, 1, memory_B)
        finish([link.send(right, 1, out_B), receive])
        expected = message(left, world.world_rank, number, num_bytes)
        assert torch.equal(memory_B[:num_bytes], expected)


@pytest.mark.world_size(2, 3, 5)
@pytest.mark.parametrize("num_bytes", [100, 70_000])
def test_a_message_that_is_too_long_is_an_error(world: World, link: Link, num_bytes: int) -> None:
    if world.world_rank == 0:
        send = link.send(1, 9, torch.ones(num_bytes, dtype=torch.uint8))
        assert send.num_bytes == num_bytes
    if world.world_rank == 1:
        receive = link.recv(0, 9, torch.zeros(50, dtype=torch.uint8))
        with pytest.raises(LinkError, match="up to 50 bytes with tag 9 from world rank 0"):
            finish([receive])
    # Rank 0 must help a large message on its way, whose end MPI may not tell it.
    done = world.comm.Ibarrier()
    wait_until(lambda: link.progress() is None and done.Test(), POLICY, lambda: "the other rank")


@pytest.mark.world_size(3, 5)
def test_parked_ranks_stay_out(world: World) -> None:
    active = [peer for peer in range(world.world_size) if peer != 1]
    if world.world_rank in active:
        link = make_link(world.comm, active, "auto", policy=POLICY)
        right = active[(active.index(world.world_rank) + 1) % len(active)]
        left = active[active.index(world.world_rank) - 1]
        memory_B = torch.zeros(10, dtype=torch.uint8)
        expected = message(left, world.world_rank, 0, 10)
        receive = link.recv(left, 0, memory_B)
        finish([link.send(right, 0, message(world.world_rank, right, 0, 10)), receive])
        assert torch.equal(memory_B, expected)
        link.free()


def test_auto_takes_ucx_where_it_can(world: World) -> None:
    need_ucx()
    link = make_link(world.comm, range(world.world_size), policy=POLICY)
    assert link.name == "ucx" and "every rank" in link.why and "UCX 1." in link.detail
    link.free()


def test_one_rank_without_ucx(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """All ranks take MPI together, or fail together and say how to mend it."""

    def missing() -> None:
        raise ImportError("No module named 'ucxx'")

    last = world.world_size - 1
    if world.world_rank == last:
        monkeypatch.setattr("janus_hpc.comm.links.ucx.load_ucx", missing)
    link = make_link(world.comm, range(world.world_size), policy=POLICY)
    assert link.name == "mpi" and f"world ranks {last}: ImportError: No module" in link.why
    link.free()
    with pytest.raises(UsageError, match=r"No module named 'ucxx'.*install janus-hpc\[ucx\]"):
        make_link(world.comm, range(world.world_size), "ucx", policy=POLICY)
    with pytest.raises(UsageError, match="'nccl' is unknown; one of auto, ucx, mpi"):
        make_link(world.comm, range(world.world_size), "nccl", policy=POLICY)


def test_settings_of_the_user_win() -> None:
    own = settings({})
    assert "TCP_TX_SEG_SIZE" in own
    left = settings({"UCX_TCP_TX_SEG_SIZE": "8k", "UCX_TLS": "tcp"})
    assert left == {key: value for key, value in own.items() if key != "TCP_TX_SEG_SIZE"}
