"""Routed experts with the gate on either side: the same bits, and activity that is right or absent."""

import numpy as np
import pytest
import torch
from janus_hpc.kernels.make import make_ops
from janus_hpc.kernels.ops import Ops

from janus_hpc.comm.exchange import RoutedRows
from janus_hpc.experts import expert_model
from janus_hpc.experts.activity import ExpertActivity, over_ranks
from janus_hpc.experts.expert_model import ExpertModel
from janus_hpc.experts.gate import Gate
from janus_hpc.layers.source import SizingSource, SlabSource
from janus_hpc.models.spec import GqaSpec, ModelSpec, MoeSpec, RopeSpec
from janus_hpc.topology import contiguous_experts
from janus_hpc.weights.random import RandomWeights

# Legend: N tokens, D hidden, K choices, E experts.

SPEC = ModelSpec(
    architecture="",
    hidden=44,
    num_layers=3,
    vocab=8,
    rms_eps=1e-6,
    max_context=16,
    tie_embeddings=True,
    stored_dtype="float32",
    attention=GqaSpec(num_heads=1, num_kv_heads=1, head_dim=4, qk_norm=True, bias=False),
    rope=RopeSpec(theta=1e4, dim=4, interleaved=False),
    dense_width=8,
    moe=MoeSpec(num_experts=13, top_k=4, width=24, renormalize=True),
    sparse_layers=(0, 2),
)
LAYER = 2


@pytest.fixture(scope="module")
def ops(tmp_path_factory: pytest.TempPathFactory) -> Ops:
    made = make_ops(torch.device("cpu"), 1, tmp_path_factory.mktemp("cache"))
    if made.why:
        pytest.skip(f"bits are promised by the compiled kernels alone: {made.why}")
    return made


def gate_of(ops: Ops, reader: RandomWeights) -> Gate:
    sizing = SizingSource(ops, torch.float32)
    Gate(SPEC, ops, sizing)
    slab_bytes = torch.zeros(sizing.num_bytes, dtype=torch.uint8)
    return Gate(SPEC, ops, SlabSource(ops, torch.float32, slab_bytes, reader))


def rank_models(ops: Ops, num_ranks: int, dtype: torch.dtype) -> list[ExpertModel]:
    reader = RandomWeights(3, dtype)
    gate = gate_of(ops, RandomWeights(3, torch.float32))
    placement = contiguous_experts(SPEC.moe.num_experts, num_ranks)
    models = []
    for ids in placement:
        activity = ExpertActivity(SPEC.sparse_layers, SPEC.moe.num_experts, placement)
        models.append(ExpertModel(SPEC, ops, gate, ids, activity))
        models[-1].load(reader, dtype, torch.device("cpu"))
    return models


def routed_to(model: ExpertModel, gate: Gate, x_ND: torch.Tensor, order: int) -> RoutedRows:
    """What an attention side that holds the gate would send to one rank, in a shuffled order."""
    routing = gate.route(LAYER, x_ND)
    rows, choices = torch.where(torch.isin(routing.ids_TK, torch.tensor(model.expert_ids)))
    generator = torch.Generator().manual_seed(order)
    shuffled = torch.randperm(len(rows), generator=generator)
    rows, choices = rows[shuffled], choices[shuffled]
    return RoutedRows(
        x_RD=x_ND[rows],
        expert_ids_R=routing.ids_TK[rows, choices].long(),
        weights_R=routing.weights_TK[rows, choices],
        token_ids_R=rows,
    )


@pytest.mark.parametrize("num_tokens", [0, 1, 7, 40])
@pytest.mark.parametrize("num_ranks", [1, 3, 13])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_gates_give_the_same_bits(
    ops: Ops, num_tokens: int, num_ranks: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expert_model, "ROWS_AT_ONCE", 11)  # several portions
    generator = torch.Generator().manual_seed(num_tokens)
    x_ND = torch.randn((num_tokens, SPEC.hidden), generator=generator).to(dtype)
    models = rank_models(ops, num_ranks, dtype)
    # The attention side's gate is built by itself.
    gate = gate_of(ops, RandomWeights(3, torch.float32))
    for model in models:
        on_expert_side_ND, on_attention_side_ND = torch.zeros(
            (2, num_tokens, SPEC.hidden), dtype=torch.float64
        )
        model.compute(LAYER, x_ND, on_expert_side_ND)
        model.compute_routed(LAYER, routed_to(model, gate, x_ND, num_ranks), on_attention_side_ND)
        assert torch.equal(
            on_expert_side_ND.view(torch.int64), on_attention_side_ND.view(torch.int64)
        )
    if num_tokens > 1:
        assert on_expert_side_ND.any()


def test_activity_of_ranks_that_see_their_own_rows_alone() -> None:
    placement = contiguous_experts(6, 2)
    ids_NK = [torch.tensor([[0, 1], [1, 5]]), torch.tensor([[3, 5]]), torch.tensor([[0, 2]])]
    whole = ExpertActivity((4,), 6, placement)
    ranks = [ExpertActivity((4,), 6, placement) for _ in placement]
    for choices_NK in ids_NK:
        whole.record(4, choices_NK)
        for activity, experts in zip(ranks, placement, strict=True):
            flat = choices_NK.flatten()
            activity.record_own(4, flat[(flat >= experts.start) & (flat < experts.stop)])
    found = over_ranks(ranks)
    assert found is not None
    assert whole.tokens_LE.tolist() == [[2, 2, 1, 1, 0, 2]]
    assert np.array_equal(found.tokens_LE, whole.tokens_LE)
    assert found.a_max_max_L.tolist() == whole.a_max_max_L.tolist() == [2]
    assert found.num_passes_L.tolist() == whole.num_passes_L.tolist() == [3]
    assert whole.a_max_mean().tolist() == [2.0]
    assert np.isnan(found.a_max_mean()).all(), "it cannot be known from ranks apart"


def test_activity_of_ranks_that_see_all_is_that_of_one() -> None:
    placement = contiguous_experts(6, 2)
    ranks = [ExpertActivity((4,), 6, placement) for _ in placement]
    for activity in ranks:
        activity.record(4, torch.tensor([[0, 5]]))
    found = over_ranks(ranks)
    assert found is not None and found.tokens_LE.sum() == 2
    assert over_ranks([]) is None
    found.clear()
    assert not found.tokens_LE.any() and not found.num_passes_L.any()
