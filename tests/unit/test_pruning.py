"""A rank reads the tensors of its role and slots and no other; files are named when shapes are wrong."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from janus_hpc.kernels.torch_ops import TorchOps

from janus_hpc.engine.node_weights import NodeWeights
from janus_hpc.experts.expert_weights import ExpertWeights
from janus_hpc.experts.gate import Gate
from janus_hpc.models.attention_model import AttentionModel
from janus_hpc.models.registry import load_spec
from janus_hpc.models.spec import ModelSpec
from janus_hpc.placement.make import make_placement
from janus_hpc.placement.placement import Placement
from janus_hpc.weights.checkpoint import Checkpoint
from tests.jobs.models import save_model, variants

CPU = torch.device("cpu")
M = TypeVar("M")


class OneRank:
    """The node-shared memory of a rank that is alone in its group, or of one that only maps."""

    def allocate(self, num_bytes: int) -> torch.Tensor:
        return torch.zeros(num_bytes, dtype=torch.uint8)

    def fence(self) -> None:
        pass


def load(kind: type[M], spec: ModelSpec, checkpoint: Checkpoint, world_rank: int) -> M:
    """The first of two ranks that share memory fills it, the second maps it."""
    ops = TorchOps(CPU)
    options = {"dtype": torch.float32} if kind is AttentionModel else {}
    make: Callable[..., M] = partial(kind, spec, ops, **options)
    weights = NodeWeights(make, ops, torch.float32, OneRank(), [(0, 1)], world_rank)
    fills = weights.plan([0, 1])
    weights.open(fills)
    weights.fill(fills, checkpoint, None)
    weights.close(fills)
    return weights.build(CPU)


@pytest.fixture(params=["qwen", "deepseek", "deepseek-v3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    save_model(variants()[request.param], tmp_path)
    return tmp_path


def expert_names(spec: ModelSpec, placement: Placement, expert_rank: int) -> set[str]:
    return {
        name
        for index, layer in enumerate(spec.sparse_layers)
        for expert in placement.experts_of(index, expert_rank)
        for name in spec.expert_tensors(layer, expert)
    }


@pytest.mark.parametrize("expert_rank", [0, 1, 2])
def test_an_expert_rank_reads_its_own_experts_and_the_gates(folder: Path, expert_rank: int) -> None:
    spec = load_spec(folder)
    ops = TorchOps(CPU)
    placement = make_placement(
        "janus",
        num_layers=len(spec.sparse_layers),
        num_experts=spec.moe.num_experts,
        num_ranks=3,
        num_slots=-(-spec.moe.num_experts // 3) + 2,
    )
    with Checkpoint(folder) as checkpoint:
        load(Gate, spec, checkpoint, 0)
        weights = ExpertWeights(spec, ops, checkpoint, torch.float32, CPU)
        weights.load(placement, expert_rank)
        gates = set(spec.gate_tensors())
        assert set(checkpoint.names_read) == gates | expert_names(spec, placement, expert_rank)
        assert len(checkpoint.names_read) == len(set(checkpoint.names_read))


def test_an_attention_rank_reads_no_routed_expert(folder: Path) -> None:
    spec = load_spec(folder)
    with Checkpoint(folder) as checkpoint:
        load(AttentionModel, spec, checkpoint, 0)
        assert set(checkpoint.names_read) == set(spec.attention_tensors())


def test_ranks_beside_the_leader_read_nothing_shared(folder: Path) -> None:
    spec = load_spec(folder)
    with Checkpoint(folder) as checkpoint:
        load(AttentionModel, spec, checkpoint, 1)
        assert checkpoint.bytes_read == 0


def test_every_tensor_belongs_to_exactly_one_part(folder: Path) -> None:
    spec = load_spec(folder)
    parts = [set(spec.attention_tensors()), set(spec.gate_tensors())]
    parts += [
        {name for layer in spec.sparse_layers for name in spec.expert_tensors(layer, expert)}
        for expert in range(spec.moe.num_experts)
    ]
    with Checkpoint(folder) as checkpoint:
        assert sum(map(len, parts)) == len(checkpoint.names())
        assert set.union(*parts) == set(checkpoint.names())
