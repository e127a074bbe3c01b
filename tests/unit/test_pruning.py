"""A rank reads the tensors of its role and slots and no other; files are named when shapes are wrong."""

from pathlib import Path

import pytest
import torch
from janus_hpc.kernels.torch_ops import TorchOps

from janus_hpc.engine.build import build_attention, build_gate
from janus_hpc.experts.balancer import Balancer
from janus_hpc.experts.expert_model import ExpertModel
from janus_hpc.models.registry import load_spec
from janus_hpc.models.spec import ModelSpec, gate_name
from janus_hpc.placement.make import make_placement
from janus_hpc.placement.placement import Placement
from janus_hpc.weights.checkpoint import Checkpoint
from tests.jobs.models import deepseek_config, qwen_config, save_model

CPU = torch.device("cpu")


class OneRank:
    """The node-shared memory of a rank that is alone in its group, or of one that only maps."""

    def __init__(self, is_leader: bool) -> None:
        self.is_leader = is_leader

    def allocate(self, num_bytes: int) -> torch.Tensor:
        return torch.zeros(num_bytes, dtype=torch.uint8)

    def fence(self) -> None:
        pass


@pytest.fixture(params=["qwen", "deepseek"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    save_model({"qwen": qwen_config, "deepseek": deepseek_config}[request.param](), tmp_path)
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
    balancer = Balancer(ops, placement, spec.sparse_layers, "aebs", 0, CPU)
    with Checkpoint(folder) as checkpoint:
        gate = build_gate(spec, ops, checkpoint, OneRank(True), CPU)
        ExpertModel(
            spec,
            ops,
            gate,
            balancer,
            expert_rank,
            reader=checkpoint,
            dtype=torch.float32,
            device=CPU,
        )
        gates = {gate_name(layer) for layer in spec.sparse_layers}
        assert set(checkpoint.names_read) == gates | expert_names(spec, placement, expert_rank)
        assert len(checkpoint.names_read) == len(set(checkpoint.names_read))


def test_an_attention_rank_reads_no_routed_expert(folder: Path) -> None:
    spec = load_spec(folder)
    with Checkpoint(folder) as checkpoint:
        build_attention(spec, TorchOps(CPU), checkpoint, OneRank(True), torch.float32, CPU, 64)
        assert set(checkpoint.names_read) == set(spec.attention_tensors())


def test_ranks_beside_the_leader_read_nothing_shared(folder: Path) -> None:
    spec = load_spec(folder)
    with Checkpoint(folder) as checkpoint:
        build_attention(spec, TorchOps(CPU), checkpoint, OneRank(False), torch.float32, CPU, 64)
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
