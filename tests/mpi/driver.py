"""Drives an exchange on one rank as the engine does, and checks all that arrives.

A row's experts and weights follow from its own numbers, so that both gates must come to the same
sums. T: tokens of one attention rank, K: choices a token, R: rows, D: hidden size.
"""

import random

import torch
from torch import Tensor

from janus_hpc.comm.exchange import Exchange, RoutedRows, Routing, StepHeader
from janus_hpc.comm.make import make_exchange
from janus_hpc.comm.staged.make import GateRules
from janus_hpc.comm.world import World
from janus_hpc.topology import Role, Topology, contiguous_experts

D, K, NUM_EXPERTS = 24, 3, 17


def tokens(step: int, layer: int, role: int, m: int, num_tokens: int, dtype: torch.dtype) -> Tensor:
    """Small integers, exact in bfloat16, different for every token."""
    token = torch.arange(num_tokens).unsqueeze(1)
    column = torch.arange(D).unsqueeze(0)
    number = token * 31 + column * 7 + layer * 13 + step * 5 + role * 101 + m * 57
    return (number % 251 - 125).to(dtype)


def route(x_TD: Tensor, num_expert_ranks: int = 1) -> Routing:
    """K different experts and exact weights from a row's first numbers; owners in contiguous order."""
    first_T1 = x_TD[:, :1].long() + 125
    ids_TK = (first_T1 * 5 + torch.arange(K) * (1 + first_T1 % 5)) % NUM_EXPERTS
    weights_TK = (1 + (first_T1 + torch.arange(K)) % 8) / 8
    ids_TK = ids_TK.sort(dim=1).values.int()
    starts = torch.tensor([its.start for its in contiguous_experts(NUM_EXPERTS, num_expert_ranks)])
    owners_TK = torch.searchsorted(starts, ids_TK.long(), right=True).int() - 1
    return Routing(ids_TK, weights_TK.float(), owners_TK)


def outputs(x_RD: Tensor, ids_R: Tensor, weights_R: Tensor) -> Tensor:
    """An expert's weighted output: exact in float64, not in float32."""
    scale_R1 = (weights_R.double() * (ids_R.double() + 1)).unsqueeze(1)
    return x_RD.double() * scale_R1 + ids_R.double().unsqueeze(1) * 2.0**-30


def sums_of(x_TD: Tensor, experts: range) -> Tensor:
    """y_TD float64 of those choices that fall on these experts."""
    routing = route(x_TD)
    y_TD = torch.zeros(x_TD.shape, dtype=torch.float64)
    for k in range(K):
        ids_T = routing.ids_TK[:, k]
        mine_T = (ids_T >= experts.start) & (ids_T < experts.stop)
        y_TD[mine_T] += outputs(x_TD[mine_T], ids_T[mine_T], routing.weights_TK[mine_T, k])
    return y_TD


class Driver:
    """Runs steps on one rank as the engine does, and checks all that arrives."""

    def __init__(
        self, world: World, topology: Topology, exchange: Exchange, dtype: torch.dtype
    ) -> None:
        self.topology, self.exchange, self.dtype = topology, exchange, dtype
        rank = world.world_rank
        self.role = topology.roles[rank]
        self.a = topology.attention_ranks.index(rank) if self.role.does_attention else -1
        ranks = topology.expert_ranks
        self.experts = range(0)
        if self.role.does_experts:
            self.experts = contiguous_experts(NUM_EXPERTS, len(ranks))[ranks.index(rank)]
        self.row_order = sorted(topology.attention_ranks, key=lambda r: (topology.node_ids[r], r))

    def step(self, step: int, counts: list[list[int]], num_layers: int) -> None:
        """counts[a][m] tokens of attention role rank a."""
        self.number, self.counts = step, counts
        headers = [StepHeader(sum(its), microbatch_tokens=tuple(its)) for its in counts]
        mine = headers[self.a] if self.a >= 0 else None
        assert self.exchange.open_step(mine) == headers
        microbatches = range(len(counts[0]))
        for layer in range(num_layers):
            if self.role is Role.ATTENTION:
                for m in microbatches:
                    self.send(layer, m)
            for m in microbatches:
                if self.role is Role.COLOCATED:
                    self.send(layer, m)
                if self.role.does_experts:
                    self.answer(layer, m)
                if self.role.does_attention:
                    self.receive(layer, m)

    def rows(self, layer: int, role: int, m: int) -> Tensor:
        return tokens(self.number, layer, role, m, self.counts[role][m], self.dtype)

    def send(self, layer: int, m: int) -> None:
        x_TD = self.rows(layer, self.a, m)
        num_ranks = len(self.topology.expert_ranks)
        routing = route(x_TD, num_ranks) if self.exchange.gate == "agate" else None
        self.exchange.send_tokens(layer, m, x_TD, routing)

    def answer(self, layer: int, m: int) -> None:
        roles = [self.topology.attention_ranks.index(rank) for rank in self.row_order]
        x_ND = torch.cat([self.rows(layer, role, m) for role in roles])
        if self.exchange.gate == "egate":
            got_ND, num_tokens = self.exchange.recv_tokens(layer, m)
            assert num_tokens == [self.counts[role][m] for role in roles]
            assert torch.equal(got_ND, x_ND)
            y_ND = self.exchange.output_buffer(layer, m, x_ND.shape[0])
            y_ND.copy_(sums_of(x_ND, self.experts))
        else:
            routed = self.exchange.recv_routed(layer, m)
            self.check(routed, x_ND)
            y_ND = self.exchange.output_buffer(layer, m, self.exchange.num_rows(m))
            y_ND.zero_()
            y_RD = outputs(routed.x_RD, routed.expert_ids_R, routed.weights_R)
            y_ND.index_add_(0, routed.token_ids_R, y_RD)
        self.exchange.send_outputs(layer, m, y_ND)

    def check(self, routed: RoutedRows, x_ND: Tensor) -> None:
        """Exactly the (token, expert) pairs of this rank's experts, with their rows and weights."""
        routing = route(x_ND)
        want = {
            (token, expert): weight
            for token in range(x_ND.shape[0])
            for expert, weight in zip(
                routing.ids_TK[token].tolist(), routing.weights_TK[token].tolist(), strict=True
            )
            if expert in self.experts
        }
        pairs = list(zip(routed.token_ids_R.tolist(), routed.expert_ids_R.tolist(), strict=True))
        assert dict(zip(pairs, routed.weights_R.tolist(), strict=True)) == want
        assert len(pairs) == len(want) and torch.equal(routed.x_RD, x_ND[routed.token_ids_R])

    def receive(self, layer: int, m: int) -> None:
        y_TD = self.exchange.recv_outputs(layer, m)
        expected = sums_of(self.rows(layer, self.a, m), range(NUM_EXPERTS))
        assert y_TD.dtype == torch.float32 and torch.equal(y_TD, expected.float())


def run(
    world: World,
    topology: Topology,
    kind: str,
    gate: str,
    *,
    inter: str = "mpi",
    num_microbatches: int = 1,
    num_steps: int = 8,
    chunk_bytes: int = 300,
) -> int:
    """Steps of random sizes; returns the bytes this rank sent to other nodes."""
    if topology.roles[world.world_rank] is Role.PARKED:
        return 0
    dtype = [torch.float32, torch.bfloat16, torch.float16][num_microbatches % 3]
    exchange = make_exchange(
        world,
        topology,
        kind=kind,
        gate=gate,
        rules=GateRules(top_k=K),
        inter=inter,
        hidden=D,
        row_dtype=dtype,
        max_tokens_per_rank=20 * num_microbatches,
        timeout_s=60,
        num_microbatches=num_microbatches,
        chunk_bytes=chunk_bytes,
    )
    driver, draw = Driver(world, topology, exchange, dtype), random.Random(5)
    for step in range(num_steps):
        most = draw.choice([0, 1, 6, 20])
        busy = draw.randrange(len(topology.attention_ranks) + 1)
        # A step may use fewer microbatches than there are.
        num_used = draw.randint(1, num_microbatches)
        num_attention = len(topology.attention_ranks)
        counts = [
            [draw.randint(0, most) * (busy in (a, num_attention))]
            + [draw.randint(0, most) for _ in range(num_used - 1)]
            for a in range(num_attention)
        ]
        driver.step(step, counts, 3 if any(map(sum, counts)) else 0)
    exchange.free()
    return getattr(exchange, "bytes_between_nodes", 0)
