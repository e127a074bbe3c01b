"""Ranks decide alike without talking, in C and in Python, and experts move from rank to rank whole."""

import hashlib
import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from janus_hpc.kernels.assign import POLICIES
from janus_hpc.kernels.make import make_ops
from janus_hpc.kernels.slot_lists import SlotLists
from janus_hpc.kernels.slot_map import SlotMap
from janus_hpc.kernels.torch_ops import TorchOps

from janus_hpc.comm.links.make import make_link
from janus_hpc.comm.waits import make_policy
from janus_hpc.comm.world import World
from janus_hpc.engine.relocate import Relocation, plan_moves
from janus_hpc.experts.balancer import Balancer
from janus_hpc.experts.expert_model import ExpertModel
from janus_hpc.placement.make import make_placement
from janus_hpc.placement.moves import aligned
from janus_hpc.placement.placement import Placement
from janus_hpc.topology import Role
from janus_hpc.weights.random import RandomWeights
from tests.unit.test_gates import SPEC, gate_of

CPU = torch.device("cpu")
NUM_LAYERS = 10_000


def random_layer(draw: random.Random) -> tuple[SlotMap, torch.Tensor]:
    """A placement with replicas and the choices of a few tokens."""
    num_experts, num_ranks = draw.randint(4, 48), draw.randint(1, 12)
    num_ranks = min(num_ranks, num_experts)
    num_slots = min(num_experts, -(-num_experts // num_ranks) + draw.randint(0, 3))
    ranks = [list(range(g, num_experts, num_ranks)) for g in range(num_ranks)]
    for experts in ranks:
        others = [e for e in range(num_experts) if e not in experts]
        experts.extend(draw.sample(others, num_slots - len(experts)))
    num_tokens, top_k = draw.randint(0, 12), draw.randint(1, 4)
    ids = [sorted(draw.sample(range(num_experts), top_k)) for _ in range(num_tokens)]
    ids_NK = torch.tensor(ids, dtype=torch.int32).view(num_tokens, top_k)
    return SlotMap.make(SlotLists(ranks, num_experts), CPU), ids_NK


@pytest.mark.world_size(3)
def test_all_ranks_decide_the_same(world: World, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Even ranks with the compiled kernels, odd ones in plain Python."""
    ops = make_ops(CPU, 1, tmp_path_factory.mktemp("cache"))
    ops = TorchOps(CPU) if world.world_rank % 2 else ops
    digest, draw = hashlib.sha256(), random.Random(11)
    for layer in range(NUM_LAYERS):
        slot_map, ids_NK = random_layer(draw)
        found = ops.balance(ids_NK, slot_map, POLICIES[layer % len(POLICIES)], layer)
        for its in (found.slots_TJ, found.counts_E, found.loads_R):
            digest.update(its.numpy().tobytes())
    assert len(set(world.allgather(digest.hexdigest()))) == 1


def placements(num_ranks: int) -> list[Placement]:
    """Placements one after the other, each from other counts and aligned with the one before."""
    made: list[Placement] = []
    generator = torch.Generator().manual_seed(2)
    for epoch, kind in enumerate(("contiguous", "janus", "eplb", "janus")):
        counts_LE = torch.randint(1, 100, (2, SPEC.moe.num_experts), generator=generator).numpy()
        placement = make_placement(
            kind,
            num_layers=2,
            num_experts=SPEC.moe.num_experts,
            num_ranks=num_ranks,
            num_slots=min(SPEC.moe.num_experts, -(-SPEC.moe.num_experts // num_ranks) + epoch // 4),
            counts_LE=counts_LE,
        ).with_epoch(epoch)
        made.append(aligned(placement, made[-1]) if made else placement)
    return made


@pytest.mark.world_size(2, 3, 5)
@pytest.mark.parametrize("from_ranks", [True, False])
def test_slots_hold_their_experts_after_every_move(world: World, from_ranks: bool) -> None:
    topology = world.topology([Role.COLOCATED] * world.world_size)
    ops, epochs = TorchOps(CPU), placements(world.world_size)
    reader = RandomWeights(3, torch.float32)
    balancer = Balancer(ops, epochs[0], SPEC.sparse_layers, "aebs", 0, CPU)
    gate = gate_of(ops, reader)
    experts = ExpertModel(
        SPEC,
        ops,
        gate,
        balancer,
        world.world_rank,
        reader=reader,
        dtype=torch.float32,
        device=CPU,
    )
    policy = make_policy(60.0, ranks_per_core=3)
    link = make_link(world.comm, topology.expert_ranks, "mpi", policy=policy)
    relocation = Relocation(experts, topology, link, policy)
    for old, new in pairwise(epochs):
        planned = plan_moves(old, new, topology)
        assert planned and all(its.source is not None for its in planned)
        if not from_ranks:
            planned = [replace(move, source=None) for move in planned]
        relocation.move(planned, old)
        experts.use(new)
        check_weights(experts, new, world.world_rank)
    link.free()


def check_weights(experts: ExpertModel, placement: Placement, expert_rank: int) -> None:
    """Every slot holds the tensors of its expert, read anew."""
    again = ExpertModel(
        SPEC,
        experts.ops,
        experts.gate,
        Balancer(experts.ops, placement, SPEC.sparse_layers, "aebs", 0, CPU),
        expert_rank,
        reader=RandomWeights(3, torch.float32),
        dtype=torch.float32,
        device=CPU,
    )
    for index in range(placement.num_layers):
        for slot, expert in enumerate(placement.experts_of(index, expert_rank)):
            if expert >= 0:
                found, wanted = (its.slot_weights(index, slot) for its in (experts, again))
                assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
