"""Every exchange against sums worked out locally, for all splits, counts and row types.

Rows carry their identity: each value is a function of (step, layer, global token, column), so that
a row in a wrong place cannot pass. T: tokens of one attention rank, N: of all, D: hidden size.
"""

import random
from dataclasses import replace

import pytest
import torch
from mpi4py import MPI
from torch import Tensor

from janus_hpc.comm.exchange import Exchange, StepHeader
from janus_hpc.comm.make import make_exchange
from janus_hpc.comm.world import World
from janus_hpc.errors import UsageError
from janus_hpc.topology import Role, Topology

D = 24
A, E, C, P = Role.ATTENTION, Role.EXPERT, Role.COLOCATED, Role.PARKED
SPLITS = {
    1: ["c"],
    2: ["ae", "cc", "ea", "cp"],
    3: ["aee", "aae", "ccc", "aec", "eca", "pae"],
    5: ["aeeee", "aaaae", "ccccc", "aecpe", "eaeac"],
}
LETTERS = {"a": A, "e": E, "c": C, "p": P}


def topology_of(world: World, split: str) -> Topology:
    return world.topology([LETTERS[letter] for letter in split])


def rows_of(step: int, layer: int, first: int, num_tokens: int, dtype: torch.dtype) -> Tensor:
    """Small integers, exact in bfloat16, that tell neighbouring rows and columns apart."""
    token = torch.arange(first, first + num_tokens).unsqueeze(1)
    column = torch.arange(D).unsqueeze(0)
    return ((token * 31 + column * 7 + layer * 13 + step * 5) % 251 - 125).to(dtype)


def partial_sums(x_ND: Tensor, expert_role: int) -> Tensor:
    """What an expert rank answers: different on each, exact in float64 but not in float32."""
    return x_ND.double() * (expert_role + 1) + (expert_role + 3) * 2.0**-30


def expected_sums(x_TD: Tensor, num_expert: int) -> Tensor:
    y_TD = partial_sums(x_TD, 0)
    for expert_role in range(1, num_expert):
        y_TD = y_TD + partial_sums(x_TD, expert_role)
    return y_TD


def active_roles(topology: Topology) -> list[Role]:
    return [topology.roles[active] for active in topology.active_ranks]


def run_step(
    exchange: Exchange,
    topology: Topology,
    world_rank: int,
    counts: list[list[int]],
    step: int,
    num_layers: int,
    dtype: torch.dtype,
) -> list[Tensor]:
    """One step with counts[a][m] tokens; checks all that arrives, returns this rank's sums."""
    role, num_microbatches = topology.roles[world_rank], len(counts[0])
    own = topology.attention_ranks.index(world_rank) if role.does_attention else -1
    expert = topology.expert_ranks.index(world_rank) if role.does_experts else -1
    headers = [
        StepHeader(
            num_tokens=sum(count),
            done=step == a,
            want_rows=step + a,
            stop=a == 1,
            counters=(a, -step, 2**62, 0, 1, 2),
            microbatch_tokens=tuple(count) if num_microbatches > 1 else (),
        )
        for a, count in enumerate(counts)
    ]
    # One rank's wish to stop, also a rank's without a header, is everybody's.
    asks = own < 0 and step % 3 == 2
    others_ask = step % 3 == 2 and any(not role.does_attention for role in active_roles(topology))
    stop = others_ask or any(header.stop for header in headers)
    expected = [replace(header, stop=stop) for header in headers]
    assert exchange.open_step(headers[own] if own >= 0 else None, stop=asks) == expected
    # first[m][a]: global index of the first token.
    first, base = [], 0
    for m in range(num_microbatches):
        first.append([base + sum(count[m] for count in counts[:a]) for a in range(len(counts))])
        base += sum(count[m] for count in counts)
    outputs = []

    def send(layer: int, m: int) -> Tensor:
        x_TD = rows_of(step, layer, first[m][own], counts[own][m], dtype)
        exchange.send_tokens(layer, m, x_TD)
        return x_TD

    def answer(layer: int, m: int) -> None:
        num_rows = sum(count[m] for count in counts)
        x_ND, num_tokens = exchange.recv_tokens(layer, m)
        assert num_tokens == [count[m] for count in counts]
        assert torch.equal(x_ND, rows_of(step, layer, first[m][0], num_rows, dtype))
        if (layer + step) % 2:
            exchange.send_outputs(layer, m, partial_sums(x_ND, expert))
            return
        y_ND = exchange.output_buffer(layer, m, num_rows)
        y_ND.copy_(partial_sums(x_ND, expert))
        exchange.send_outputs(layer, m, y_ND)

    def receive(layer: int, m: int, x_TD: Tensor) -> None:
        y_TD = exchange.recv_outputs(layer, m)
        assert y_TD.dtype == torch.float32
        assert torch.equal(y_TD, expected_sums(x_TD, len(topology.expert_ranks)).float())
        outputs.append(y_TD.clone())

    # Attention ranks have all microbatches under way; expert ranks take them one by one.
    for layer in range(num_layers):
        if role is Role.EXPERT:
            for m in range(num_microbatches):
                answer(layer, m)
            continue
        if role is Role.ATTENTION:
            sent = [send(layer, m) for m in range(num_microbatches)]
            for m in range(num_microbatches):
                receive(layer, m, sent[m])
            continue
        for m in range(num_microbatches):
            x_TD = send(layer, m)
            answer(layer, m)
            receive(layer, m, x_TD)
    return outputs


def run_random_steps(
    world: World, split: str, kind: str, *, num_steps: int, num_microbatches: int, seed: int
) -> list[Tensor]:
    topology = topology_of(world, split)
    if topology.roles[world.world_rank] is Role.PARKED:
        return []
    dtypes = [torch.float32, torch.bfloat16, torch.float16]
    dtype = dtypes[sum(map(ord, split)) % 3]
    exchange = make_exchange(
        world,
        topology,
        kind=kind,
        hidden=D,
        row_dtype=dtype,
        max_tokens_per_rank=9 * num_microbatches,
        timeout_s=60,
        num_microbatches=num_microbatches,
    )
    outputs, draw = [], random.Random(seed)
    for step in range(num_steps):
        most = draw.choice([0, 1, 9])
        counts = [
            [draw.randint(0, most) for _ in range(num_microbatches)]
            for _ in topology.attention_ranks
        ]
        # Steps without any token leave the layers out, so that ranks run ahead of each other.
        num_layers = 3 if any(map(sum, counts)) else 0
        outputs += run_step(exchange, topology, world.world_rank, counts, step, num_layers, dtype)
    exchange.free()
    return outputs


@pytest.mark.world_size(1, 2, 3, 5)
@pytest.mark.parametrize("num_microbatches", [1, 3])
@pytest.mark.parametrize("split", SPLITS.get(MPI.COMM_WORLD.size, []))
def test_kinds_agree_bit_for_bit(world: World, split: str, num_microbatches: int) -> None:
    outputs = {
        kind: run_random_steps(
            world, split, kind, num_steps=40, num_microbatches=num_microbatches, seed=3
        )
        for kind in ("host", "shm", "auto")
    }
    for kind in ("shm", "auto"):
        assert len(outputs[kind]) == len(outputs["host"])
        assert all(map(torch.equal, outputs[kind], outputs["host"]))


@pytest.mark.world_size(1, 2, 3, 5)
@pytest.mark.parametrize("kind", ["host", "shm"])
def test_many_steps_of_random_sizes(world: World, kind: str) -> None:
    split = SPLITS[world.world_size][0]
    run_random_steps(world, split, kind, num_steps=200, num_microbatches=1, seed=7)


@pytest.mark.world_size(1, 2, 3, 5)
@pytest.mark.parametrize("kind", ["host", "shm"])
def test_one_busy_rank_and_the_largest_step(world: World, kind: str) -> None:
    topology = topology_of(world, "c" * world.world_size)
    exchange = make_exchange(
        world,
        topology,
        kind=kind,
        hidden=D,
        row_dtype=torch.float32,
        max_tokens_per_rank=300,
    )
    for step, busy in enumerate([0, world.world_size - 1]):
        counts = [[300 if a == busy else 0] for a in range(world.world_size)]
        run_step(exchange, topology, world.world_rank, counts, step, 2, torch.float32)
    counts = [[300]] * world.world_size
    run_step(exchange, topology, world.world_rank, counts, 2, 2, torch.float32)
    exchange.free()


@pytest.mark.world_size(1, 2, 3, 5)
def test_auto_says_what_it_took_and_why(world: World) -> None:
    topology = topology_of(world, SPLITS[world.world_size][0])
    exchange = make_exchange(
        world, topology, hidden=D, row_dtype=torch.float32, max_tokens_per_rank=4
    )
    assert exchange.kind == ("local" if world.world_size == 1 else "shm")
    assert "alone" in exchange.why if world.world_size == 1 else "one node" in exchange.why
    exchange.free()
    with pytest.raises(UsageError, match="'nccl' is unknown; one of auto, host, shm, device"):
        make_exchange(
            world, topology, kind="nccl", hidden=D, row_dtype=torch.float32, max_tokens_per_rank=4
        )
