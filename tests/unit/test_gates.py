"""Routed experts with the gate on either side: the same bits, and activity that is right or absent."""

import pytest
import torch
from janus_hpc.kernels.balance import balance
from janus_hpc.kernels.make import make_ops
from janus_hpc.kernels.ops import Ops
from janus_hpc.kernels.slot_lists import SlotLists
from janus_hpc.kernels.slot_map import Balanced, SlotMap

from janus_hpc.comm.exchange import RoutedRows, Routing
from janus_hpc.experts import expert_model
from janus_hpc.experts.activity import ExpertActivity, over_ranks
from janus_hpc.experts.balancer import Balancer
from janus_hpc.experts.expert_model import ExpertModel
from janus_hpc.experts.expert_weights import ExpertWeights
from janus_hpc.experts.gate import Gate
from janus_hpc.experts.route_sampler import RouteSampler
from janus_hpc.experts.routed_gate import RoutedGate
from janus_hpc.layers.source import SizingSource, SlabSource
from janus_hpc.models.spec import GqaSpec, ModelSpec, MoeSpec, RopeSpec
from janus_hpc.placement.make import make_placement
from janus_hpc.weights.random import RandomWeights

# Legend: N tokens, D hidden, K choices, E experts, P ways to come to the sums.

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
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ops(tmp_path_factory: pytest.TempPathFactory) -> Ops:
    made = make_ops(CPU, 1, tmp_path_factory.mktemp("cache"))
    if made.why:
        pytest.skip(f"bits are promised by the compiled kernels alone: {made.why}")
    return made


def gate_of(ops: Ops, reader: RandomWeights) -> Gate:
    sizing = SizingSource(ops, torch.float32)
    Gate(SPEC, ops, sizing)
    slab_bytes = torch.zeros(sizing.num_bytes, dtype=torch.uint8)
    return Gate(SPEC, ops, SlabSource(ops, torch.float32, slab_bytes, reader))


def rank_models(ops: Ops, num_ranks: int, num_slots: int, dtype: torch.dtype) -> list[ExpertModel]:
    gate = gate_of(ops, RandomWeights(3, torch.float32))
    placement = make_placement(
        "janus",
        num_layers=len(SPEC.sparse_layers),
        num_experts=SPEC.moe.num_experts,
        num_ranks=num_ranks,
        num_slots=num_slots,
    )
    models = []
    for expert_rank in range(num_ranks):
        weights = ExpertWeights(SPEC, ops, RandomWeights(3, dtype), dtype, CPU)
        weights.load(placement, expert_rank)
        balancer = Balancer(ops, placement, SPEC.sparse_layers, "aebs", 0, CPU)
        models.append(ExpertModel(SPEC, ops, gate, balancer, expert_rank, weights))
    return models


def routed_to(expert_rank: int, routing: Routing, x_ND: torch.Tensor, order: int) -> RoutedRows:
    """What an attention side that holds the gate would send to one rank, in a shuffled order."""
    assert routing.owners_TK is not None
    rows, choices = torch.where(routing.owners_TK == expert_rank)
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
@pytest.mark.parametrize(("num_ranks", "num_slots"), [(1, 13), (3, 5), (3, 8), (13, 1), (5, 13)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_gates_give_the_same_bits_on_any_ranks(
    ops: Ops,
    num_tokens: int,
    num_ranks: int,
    num_slots: int,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(expert_model, "ROWS_AT_ONCE", 11)  # several portions
    generator = torch.Generator().manual_seed(num_tokens)
    x_ND = torch.randn((num_tokens, SPEC.hidden), generator=generator).to(dtype)
    models = rank_models(ops, num_ranks, num_slots, dtype)
    # The attention side's gate is built by itself.
    placement = models[0].balancer.placement
    gate = RoutedGate(
        gate_of(ops, RandomWeights(3, torch.float32)),
        Balancer(ops, placement, SPEC.sparse_layers, "aebs", 0, CPU),
        RouteSampler(SPEC.sparse_layers, SPEC.moe.num_experts, SPEC.moe.top_k),
    )
    routing = gate.route(LAYER, x_ND)
    sums_PND = torch.zeros((3, num_tokens, SPEC.hidden), dtype=torch.float64)
    rank_models(ops, 1, 13, dtype)[0].compute(LAYER, x_ND, sums_PND[0])
    for expert_rank, model in enumerate(models):
        part_PND = torch.zeros((2, num_tokens, SPEC.hidden), dtype=torch.float64)
        model.compute(LAYER, x_ND, part_PND[0])
        model.compute_routed(LAYER, routed_to(expert_rank, routing, x_ND, num_ranks), part_PND[1])
        assert torch.equal(part_PND[0].view(torch.int64), part_PND[1].view(torch.int64))
        sums_PND[1:] += part_PND
    for its_ND in sums_PND[1:]:
        assert torch.equal(its_ND, sums_PND[0])
    if num_tokens > 1:
        assert sums_PND.any()


def balanced(ids_NK: list[list[int]]) -> Balanced:
    """Experts 0 to 2 on one rank, 3 to 5 on another."""
    lists = SlotLists([[0, 1, 2], [3, 4, 5]], 6)
    return balance(torch.tensor(ids_NK), SlotMap.make(lists, CPU), "first", 0)


def test_activity_of_ranks_that_see_their_own_rows_alone() -> None:
    ids_NK = [[[0, 1], [1, 5]], [[3, 5]], [[0, 2]]]
    whole = ExpertActivity((4,), 6)
    ranks = [ExpertActivity((4,), 6) for _ in range(2)]
    for choices_NK in ids_NK:
        whole.record(4, balanced(choices_NK))
        for first, activity in zip((0, 3), ranks, strict=True):
            flat = torch.tensor(choices_NK).flatten()
            activity.record_own(4, flat[(flat >= first) & (flat < first + 3)])
    found = over_ranks(ranks)
    assert found is not None
    assert whole.tokens_LE.tolist() == [[2, 2, 1, 1, 0, 2]]
    assert torch.equal(found.tokens_LE, whole.tokens_LE)
    assert found.a_max_max_L.tolist() == whole.a_max_max_L.tolist() == [2]
    assert found.num_passes_L == whole.num_passes_L == [3]
    assert whole.a_max_mean().tolist() == [2.0]
    assert whole.activated_mean().tolist() == pytest.approx([7 / 3])
    assert found.a_max_mean().isnan().all(), "it cannot be known from ranks apart"


def test_activity_of_ranks_that_see_all_is_that_of_one() -> None:
    ranks = [ExpertActivity((4,), 6) for _ in range(2)]
    for activity in ranks:
        activity.record(4, balanced([[0, 5]]))
    found = over_ranks([its.to_cpu() for its in ranks])
    assert found is not None and found.tokens_LE.sum() == 2
    assert over_ranks([]) is None
    found.clear()
    assert not found.tokens_LE.any() and not any(found.num_passes_L)
    assert ranks[0].num_passes_L == [1], "a copy is its own"
