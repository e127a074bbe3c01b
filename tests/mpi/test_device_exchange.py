"""The device exchange: its very code on CPU memory, and on a GPU with CUDA IPC where there is one.

On CPUs its kernels run in Triton's interpreter, in each rank's own process and on shared memory. One
process cannot both interpret and compile: on a machine with a GPU their plain twin takes their place
there, and tests/kernels interprets them in processes of their own.
"""

import random
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from platform import machine
from typing import Any

import pytest
import torch
from janus_hpc.kernels.flags import Flags
from mpi4py import MPI
from torch import Tensor

from janus_hpc.comm.device.exchange import DeviceExchange, why_too_large
from janus_hpc.comm.device.make import make_device_exchange
from janus_hpc.comm.device.slots import slab_sizes
from janus_hpc.comm.exchange import StepHeader
from janus_hpc.comm.host import HostExchange
from janus_hpc.comm.layout import Peers, Sizes
from janus_hpc.comm.objects import group_comm
from janus_hpc.comm.waits import WaitPolicy
from janus_hpc.comm.world import World
from janus_hpc.errors import CommTimeout
from janus_hpc.topology import Role, Topology
from tests.mpi.round_trip import round_trip_us
from tests.mpi.test_exchange import SPLITS, D, run_step, topology_of
from tests.mpi.window_slabs import WindowSlabs

PLENTY, FEW = 1_000_000_000, 30
POLICY = WaitPolicy(timeout_s=60)
HAS_GPU = torch.cuda.is_available()
# About as many polls as fit in a second; the interpreter's are slow.
SECOND = 1_000_000 if HAS_GPU else 1000
needs_gpu = pytest.mark.skipif(
    not (HAS_GPU and find_spec("cupy")), reason="no GPU, or no CuPy to share its memory with"
)
SPLITS_HERE = [its for its in SPLITS.get(MPI.COMM_WORLD.size, []) if its != "cp"]


class OnHost:
    """An exchange whose tensors are brought to the CPU, where the checks are."""

    def __init__(self, exchange: DeviceExchange) -> None:
        self._exchange = exchange

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exchange, name)

    def recv_tokens(self, layer: int, microbatch: int) -> tuple[Tensor, list[int]]:
        x_ND, counts = self._exchange.recv_tokens(layer, microbatch)
        return x_ND.cpu(), counts

    def output_buffer(self, layer: int, microbatch: int, num_rows: int) -> Tensor:
        buffer_ND = self._exchange.output_buffer(layer, microbatch, num_rows)
        assert num_rows == self._exchange.num_rows(microbatch)
        return torch.empty_like(buffer_ND, device="cpu") if buffer_ND.is_cuda else buffer_ND

    def recv_outputs(self, layer: int, microbatch: int) -> Tensor:
        return self._exchange.recv_outputs(layer, microbatch).cpu()


@pytest.fixture(scope="module")
def flags() -> Iterator[Flags]:
    """What CPU ranks post and wait with."""
    if HAS_GPU:
        if machine() not in ("x86_64", "AMD64"):
            pytest.skip(f"the plain flags need a CPU that stores in order, not {machine()}")
        yield import_module("janus_hpc.kernels.flags")
        return
    if find_spec("triton") is None:
        pytest.skip("the kernels need triton")
    assert "triton" not in sys.modules, "triton was imported before it was told to interpret"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        yield import_module("janus_hpc.kernels.flags_triton")


def active_comm(world: World, topology: Topology) -> MPI.Intracomm:
    return group_comm(world.comm, topology.active_ranks, 5)


def sizes_for(
    max_tokens: int, num_microbatches: int = 1, dtype: torch.dtype = torch.float32, hidden: int = D
) -> Sizes:
    return Sizes(
        hidden=hidden,
        row_dtype=dtype,
        max_tokens_per_rank=max_tokens,
        num_microbatches=num_microbatches,
    )


def on_cpu(
    world: World,
    topology: Topology,
    sizes: Sizes,
    flags: Flags,
    *,
    on_device: bool = True,
    policy: WaitPolicy = POLICY,
    bound: int = PLENTY,
) -> DeviceExchange:
    peers, comm = Peers(topology, world.world_rank), active_comm(world, topology)
    slabs = WindowSlabs(comm, slab_sizes(peers, sizes), policy, on_device=on_device)
    return DeviceExchange(
        comm, peers, sizes, policy, "a test", slabs=slabs, flags=flags, bound=bound
    )


def random_steps(
    exchange: Any, topology: Topology, world_rank: int, sizes: Sizes, num_steps: int
) -> None:
    """Steps of random sizes, among them such without tokens, each checked by `run_step`."""
    draw, num_microbatches = random.Random(11), sizes.num_microbatches
    for step in range(num_steps):
        most = draw.choice([0, 1, sizes.max_tokens_per_rank // num_microbatches])
        counts = [
            [draw.randint(0, most) for _ in range(num_microbatches)]
            for _ in topology.attention_ranks
        ]
        num_layers = 2 if any(map(sum, counts)) else 0
        run_step(exchange, topology, world_rank, counts, step, num_layers, sizes.row_dtype)


@pytest.mark.world_size(1, 2, 3)
@pytest.mark.parametrize(("on_device", "num_microbatches"), [(True, 1), (True, 3), (False, 2)])
@pytest.mark.parametrize("split", SPLITS_HERE)
def test_sums_are_those_worked_out_locally(
    world: World, flags: Flags, split: str, num_microbatches: int, on_device: bool
) -> None:
    topology = topology_of(world, split)
    if topology.roles[world.world_rank] is Role.PARKED:
        return
    dtype = [torch.float32, torch.bfloat16, torch.float16][sum(map(ord, split)) % 3]
    sizes = sizes_for(7 * num_microbatches, num_microbatches, dtype)
    exchange = on_cpu(world, topology, sizes, flags, on_device=on_device)
    assert (exchange.kind, exchange.gate, exchange.why) == ("device", "egate", "a test")
    random_steps(OnHost(exchange), topology, world.world_rank, sizes, 6)
    exchange.free()


@pytest.mark.world_size(2, 3)
def test_one_busy_rank_and_the_largest_step(world: World, flags: Flags) -> None:
    topology = topology_of(world, "c" * world.world_size)
    exchange = on_cpu(world, topology, sizes_for(300), flags)
    for step, busy in enumerate([0, world.world_size - 1]):
        counts = [[300 if a == busy else 0] for a in range(world.world_size)]
        run_step(exchange, topology, world.world_rank, counts, step, 2, torch.float32)
    counts = [[300]] * world.world_size
    run_step(exchange, topology, world.world_rank, counts, 2, 2, torch.float32)
    exchange.free()


def stall(exchange: DeviceExchange, world: World, stalled: int) -> None:
    """A step of two layers whose second one the attention rank of that place never sends."""
    rank, x_TD = world.world_rank, torch.ones(3, D)
    is_attention = rank < world.world_size - 1
    exchange.open_step(StepHeader(num_tokens=3) if is_attention else None)
    for layer in (4, 9):
        if layer == 9 and rank == stalled:
            return
        if is_attention:
            exchange.send_tokens(layer, 0, x_TD * layer)
            y_TD = exchange.recv_outputs(layer, 0)
            assert layer == 9 or torch.equal(y_TD, x_TD * 8)
        else:
            x_ND, _ = exchange.recv_tokens(layer, 0)
            exchange.send_outputs(layer, 0, x_ND.double() * 2)
    exchange.settle()


@pytest.mark.world_size(2, 3)
@pytest.mark.parametrize("on_device", [True, False], ids=["kernels-wait", "hosts-wait"])
def test_a_stalled_peer_is_named(world: World, flags: Flags, on_device: bool) -> None:
    topology = topology_of(world, "a" * (world.world_size - 1) + "e")
    policy, stalled = WaitPolicy(timeout_s=3), world.world_size - 2
    expert, num_rows = world.world_size - 1, 3 * (world.world_size - 1)
    # The hosts' waits end by the clock, the kernels' after a number of polls. The expert rank gives
    # up first: were it to answer all the same, the other attention rank would still be there.
    bound = (2 if world.world_rank == expert else 5) * SECOND
    sizes = sizes_for(3)
    exchange = on_cpu(
        world, topology, sizes, flags, on_device=on_device, policy=policy, bound=bound
    )
    waiter, culprit = topology.label(world.world_rank), topology.label(stalled)
    late = f"tokens of layer 9, microbatch 0 ({num_rows} rows, {num_rows * D * 4} bytes)"
    if world.world_rank == stalled:
        stall(exchange, world, stalled)
    else:
        with pytest.raises(CommTimeout) as caught:
            stall(exchange, world, stalled)
        if world.world_rank != expert:
            # Nothing wrong is passed on: a rank that has given up posts no sums either.
            late = f"outputs of layer 9, microbatch 0 (3 rows, {3 * D * 8} bytes)"
            culprit = topology.label(expert)
        assert str(caught.value) == f"{waiter} waits for {late} from {culprit}: no answer in 3 s"
    world.barrier()


@pytest.mark.world_size(2)
def test_a_wait_that_gave_up_is_known_when_the_next_step_is_opened(
    world: World, flags: Flags
) -> None:
    exchange = on_cpu(world, topology_of(world, "ae"), sizes_for(3), flags, bound=FEW)
    exchange.open_step(StepHeader(num_tokens=3) if world.world_rank == 0 else None)
    if world.world_rank == 1:
        exchange.recv_tokens(2, 0)
        with pytest.raises(
            CommTimeout, match=r"expert 0/1@\S+ waits for tokens of layer 2, .* 0/0"
        ):
            exchange.open_step(None)
    world.barrier()


@pytest.mark.world_size(1, 2)
def test_round_trips_are_timed(world: World, flags: Flags) -> None:
    topology = topology_of(world, "c" if world.world_size == 1 else "ae")
    exchange = on_cpu(world, topology, sizes_for(8), flags)
    peers = Peers(topology, world.world_rank)
    assert round_trip_us(exchange, peers, torch.ones(8, D), num_rounds=3, num_warm_up=1) > 0
    exchange.free()


@pytest.mark.world_size(1, 2)
def test_ranks_on_cpus_are_told_why_not(world: World) -> None:
    topology = topology_of(world, "c" * world.world_size)
    comm, peers = active_comm(world, topology), Peers(topology, world.world_rank)
    cpu = torch.device("cpu")
    why = make_device_exchange(comm, peers, sizes_for(3), POLICY, cpu)
    assert why == "a rank's tensors are on cpu"
    comm.Free()


def test_more_ranks_than_flags_are_refused() -> None:
    roles = (Role.ATTENTION,) * 65 + (Role.EXPERT,)
    many = Topology(roles=roles, node_ids=(0,) * 66, hosts=("n",) * 66, local_ranks=(0,) * 66)
    assert why_too_large(Peers(many, 0)) == "65 ranks of a role on a node, at most 64"


def gpu(world: World) -> torch.device:
    device = torch.device("cuda", world.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


@needs_gpu
@pytest.mark.world_size(1, 2, 3)
@pytest.mark.parametrize("num_microbatches", [1, 3])
@pytest.mark.parametrize("split", SPLITS_HERE)
def test_gpus_give_the_same_sums(world: World, split: str, num_microbatches: int) -> None:
    topology = topology_of(world, split)
    if topology.roles[world.world_rank] is Role.PARKED:
        return
    sizes = sizes_for(7 * num_microbatches, num_microbatches, torch.bfloat16)
    peers, comm = Peers(topology, world.world_rank), active_comm(world, topology)
    exchange = make_device_exchange(comm, peers, sizes, POLICY, gpu(world))
    assert isinstance(exchange, DeviceExchange), exchange
    random_steps(OnHost(exchange), topology, world.world_rank, sizes, 40)
    exchange.free()


@needs_gpu
@pytest.mark.world_size(2)
def test_a_stalled_peer_on_a_gpu_is_named(world: World) -> None:
    topology, policy = topology_of(world, "ae"), WaitPolicy(timeout_s=2)
    peers, comm = Peers(topology, world.world_rank), active_comm(world, topology)
    exchange = make_device_exchange(comm, peers, sizes_for(3), policy, gpu(world))
    assert isinstance(exchange, DeviceExchange), exchange
    exchange.open_step(StepHeader(num_tokens=3) if world.world_rank == 0 else None)
    if world.world_rank == 1:
        with pytest.raises(
            CommTimeout, match=r"expert 0/1@\S+ waits for tokens of layer 2, .* 0/0"
        ):
            exchange.recv_tokens(2, 0)
            exchange.settle()
    world.barrier()


@needs_gpu
@pytest.mark.world_size(2)
def test_gpu_round_trips_against_staging_through_the_host(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prints both times; which is faster depends on whether the ranks share one GPU."""
    topology, device = topology_of(world, "ae"), gpu(world)
    peers, sizes = Peers(topology, world.world_rank), sizes_for(64, hidden=512)
    x_TD = torch.ones(64, 512, device=device)
    host = HostExchange(active_comm(world, topology), peers, sizes, POLICY, "a test")
    direct = make_device_exchange(active_comm(world, topology), peers, sizes, POLICY, device)
    assert isinstance(direct, DeviceExchange), direct
    times = {its.kind: round_trip_us(its, peers, x_TD) for its in (host, direct)}
    with capsys.disabled():
        print(f"\nround trip of 64 x 512 float32, us: {times} ({direct.why})")
    assert all(time_us > 0 for time_us in times.values())
    host.free()
    direct.free()
