"""Ranks decide alike without talking, in C and in Python, and experts move from rank to rank whole."""

import hashlib
import random
from dataclasses import replace

import pytest
import torch
from janus_hpc.kernels.assign import POLICIES
from janus_hpc.kernels.make import make_ops
from janus_hpc.kernels.slot_lists import SlotLists
from janus_hpc.kernels.slot_map import SlotMap
from janus_hpc.kernels.torch_ops import TorchOps

from janus_hpc.comm.world import World
from janus_hpc.config import RunConfig
from janus_hpc.engine.carrier import make_carrier
from janus_hpc.engine.relocate import Relocation
from janus_hpc.experts.expert_weights import ExpertWeights, slot_parts
from janus_hpc.placement.make import make_placement
from janus_hpc.placement.moves import moves
from janus_hpc.placement.placement import Placement
from janus_hpc.placement.world_rows import aligned_with, over_world
from janus_hpc.weights.random import RandomWeights
from tests.unit.test_gates import SPEC

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


def spread(epoch: int, num_ranks: int, world_size: int, extra: int) -> tuple[Placement, list[int]]:
    """A placement of its own routing over some ranks of the world, and which these are."""
    num_experts = SPEC.moe.num_experts
    generator = torch.Generator().manual_seed(epoch)
    counts_LE = torch.randint(1, 100, (2, num_experts), generator=generator).numpy()
    placement = make_placement(
        ("contiguous", "janus", "eplb")[epoch % 3],
        num_layers=2,
        num_experts=num_experts,
        num_ranks=num_ranks,
        num_slots=min(num_experts, -(-num_experts // num_ranks) + extra),
        counts_LE=counts_LE,
    ).with_epoch(epoch)
    return placement, sorted(random.Random(epoch).sample(range(world_size), num_ranks))


@pytest.mark.world_size(2, 3, 5)
@pytest.mark.parametrize("from_ranks", [True, False])
def test_slots_hold_their_experts_after_every_move(world: World, from_ranks: bool) -> None:
    """Between all, some and one of the ranks, with as many slots as before, more and fewer."""
    size = world.world_size
    numbers = [(size, 0), (size, 0), (1, 0), (size - 1, 1), (size - 1, 1), (size, 2), (1, 0)]
    reader = RandomWeights(3, torch.float32)
    weights = ExpertWeights(SPEC, TorchOps(CPU), reader, torch.float32, CPU)
    carrier = make_carrier(world, RunConfig(prompts="", comm_timeout_s=60.0), {})
    old, ranks = spread(0, size, size, 0)
    if world.world_rank in ranks:
        weights.load(old, ranks.index(world.world_rank))
    for epoch, (num_ranks, extra) in enumerate(numbers, start=1):
        new, new_ranks = spread(epoch, num_ranks, size, extra)
        new = aligned_with(new, new_ranks, old, ranks, size)
        whole_old, whole_new = over_world(old, ranks, size), over_world(new, new_ranks, size)
        planned = moves(whole_old, whole_new)
        assert all(its.source is not None for its in planned)
        if not from_ranks:
            planned = [replace(move, source=None) for move in planned]
        stays = world.world_rank in new_ranks
        Relocation(weights, carrier, whole_old, whole_new, stays=stays).move(planned)
        world.barrier(carrier.progress)
        if stays:
            check_weights(weights, new, new_ranks.index(world.world_rank))
        else:
            assert not weights.layers
        old, ranks = new, new_ranks
    carrier.free()


def check_weights(weights: ExpertWeights, placement: Placement, expert_rank: int) -> None:
    """Every slot holds the tensors of its expert, read anew."""
    reader = RandomWeights(3, torch.float32)
    again = ExpertWeights(SPEC, TorchOps(CPU), reader, torch.float32, CPU)
    again.load(placement, expert_rank)
    for index in range(placement.num_layers):
        assert weights.layers[index].num_slots == placement.num_slots
        for slot, expert in enumerate(placement.experts_of(index, expert_rank)):
            if expert >= 0:
                found, wanted = (slot_parts(its.layers[index], slot) for its in (weights, again))
                assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
