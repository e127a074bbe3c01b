"""Every operation: C and torch against a plain formula in float64, at awkward sizes."""

import pytest
import torch
from janus_hpc.kernels.native_ops import NativeOps
from janus_hpc.kernels.torch_ops import TorchOps
from torch import Tensor

from tests.kernels.helpers import (
    DTYPES,
    FLOAT32_EPS,
    ROUNDED_TOL,
    ExpertWeights,
    PagedCache,
    assert_close,
    normal,
    random_choices,
    same_bits,
)

Both = tuple[NativeOps, TorchOps]


@pytest.fixture(scope="module")
def both(native: NativeOps, twin: TorchOps) -> Both:
    return native, twin


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_in", [1, 7, 37, 45, 1030])
@pytest.mark.parametrize("num_out", [1, 15, 16, 17, 50])
def test_linear(both: Both, num_in: int, num_out: int, dtype: torch.dtype) -> None:
    w_NK = normal(num_out, num_in, seed=1, dtype=dtype)
    bias_N = normal(num_out, seed=2)
    for num_rows in (0, 1, 3, 4, 13, 100):
        x_TK = normal(num_rows, num_in + 3)[:, :num_in]
        expected = x_TK.double() @ w_NK.double().T
        bound = num_in * FLOAT32_EPS * (x_TK.double().abs() @ w_NK.double().abs().T)
        for ops in both:
            packed = ops.pack_linear(w_NK)
            y_TN = ops.linear(x_TK, packed)
            assert y_TN.dtype == torch.float32
            assert bool(((y_TN.double() - expected).abs() <= bound).all())
            torch.testing.assert_close(ops.linear(x_TK, packed, bias_N), y_TN + bias_N)


@pytest.mark.parametrize("dtype", DTYPES)
def test_packing_into_given_memory_converts_and_is_undone_by_rows(
    both: Both, dtype: torch.dtype
) -> None:
    w_NK = normal(37, 11).T.contiguous().T
    ids_T = torch.tensor([36, 0, 15, 16, 16])
    for ops in both:
        room = torch.full((ops.packed_numel(37, 11) + 8,), 7.0, dtype=dtype)
        packed = ops.pack_linear(w_NK, out=room[4:-4])
        assert same_bits(
            ops.unpack_rows(packed, ids_T).contiguous().view(-1, 11).float(),
            w_NK[ids_T].to(dtype).float(),
        )
        assert bool((room[:4] == 7).all() and (room[-4:] == 7).all())
        assert ops.unpack_rows(packed, ids_T[:0]).shape == (0, 11)


def expert_case(num_tokens: int, top_k: int, num_slots: int) -> tuple[Tensor, Tensor]:
    """Slots, a third of them -1, and weights."""
    slots_TJ = random_choices(num_tokens, top_k, num_slots)
    slots_TJ[normal(num_tokens, top_k, seed=8) > 0.43] = -1
    return slots_TJ, torch.rand(num_tokens, top_k, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("hidden", "inter", "num_slots", "top_k", "num_tokens"),
    [(1, 1, 1, 1, 3), (37, 24, 5, 3, 20), (50, 17, 8, 8, 9), (16, 33, 2, 1, 230), (45, 7, 4, 2, 0)],
)
def test_experts(
    both: Both,
    hidden: int,
    inter: int,
    num_slots: int,
    top_k: int,
    num_tokens: int,
    dtype: torch.dtype,
) -> None:
    experts = ExpertWeights.random(num_slots, hidden, inter, dtype)
    slots_TJ, weights_TJ = expert_case(num_tokens, top_k, num_slots)
    x_TD = normal(num_tokens, hidden + 2, seed=10)[:, :hidden]
    start_TD = torch.ones(num_tokens, hidden, dtype=torch.float64)
    expected = start_TD + experts.plain(x_TD, slots_TJ, weights_TJ)
    for ops in both:
        out_TD = start_TD.clone()
        packed = experts.pack(ops, list(range(num_slots)))
        ops.experts(x_TD, slots_TJ, weights_TJ, packed, out_TD)
        assert_close(out_TD, expected, ROUNDED_TOL[dtype])
        if num_tokens:
            bound_T1 = torch.frexp(x_TD.abs().amax(dim=1, keepdim=True)).exponent
            quanta_TD = torch.ldexp(out_TD - start_TD, 38 - bound_T1.double())
            assert bool((quanta_TD == quanta_TD.round()).all())


def test_experts_one_slot_with_more_rows_than_a_block_holds(both: Both) -> None:
    experts = ExpertWeights.random(3, 20, 18, torch.float32)
    slots_TJ = torch.zeros(131, 2, dtype=torch.int32)
    slots_TJ[:, 1] = torch.arange(131) % 3 - 1
    slots_TJ[slots_TJ[:, 1] == 0, 1] = 2
    x_TD, weights_TJ = normal(131, 20), normal(131, 2, seed=1)
    for ops in both:
        out_TD = torch.zeros(131, 20, dtype=torch.float64)
        ops.experts(x_TD, slots_TJ, weights_TJ, experts.pack(ops, [0, 1, 2]), out_TD)
        assert_close(out_TD, experts.plain(x_TD, slots_TJ, weights_TJ), ROUNDED_TOL[torch.float32])


def test_experts_none_activated_leaves_the_sums_alone(both: Both) -> None:
    experts = ExpertWeights.random(3, 20, 18, torch.bfloat16)
    for ops in both:
        out_TD = normal(4, 20, dtype=torch.float64)
        before = out_TD.clone()
        slots_TJ = torch.full((4, 2), -1, dtype=torch.int32)
        ops.experts(normal(4, 20), slots_TJ, torch.ones(4, 2), experts.pack(ops, [0, 1, 2]), out_TD)
        assert same_bits(out_TD, before)


# Sequence, first and last position of each run of tokens: chunks, whole prompts, decoding, in one call.
RUNS = [(0, 5, 44), (1, 63, 63), (2, 0, 0), (3, 0, 69), (1, 62, 62), (4, 31, 32)]


def attention_rows() -> tuple[Tensor, Tensor]:
    sequences = [s for s, first, last in RUNS for _ in range(first, last + 1)]
    positions = [p for _, first, last in RUNS for p in range(first, last + 1)]
    return torch.tensor(sequences).int(), torch.tensor(positions).int()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_size", [7, 16])
@pytest.mark.parametrize(
    ("num_heads", "kv_heads", "head_dim", "v_dim", "shared"),
    [
        (2, 2, 10, 10, False),
        (6, 2, 24, 24, False),
        (5, 1, 64, 24, False),
        (20, 1, 40, 24, True),
        (3, 3, 7, 5, True),
    ],
)
def test_paged_attention(
    both: Both,
    num_heads: int,
    kv_heads: int,
    head_dim: int,
    v_dim: int,
    shared: bool,
    block_size: int,
    dtype: torch.dtype,
) -> None:
    lengths = [45, 64, 1, 70, 33]
    cache = PagedCache.random(lengths, block_size, kv_heads, head_dim, v_dim, dtype, shared=shared)
    for sequence, length in enumerate(lengths):
        cache.write(sequence, 0, length)
    sequence_ids_T, positions_T = attention_rows()
    q_THd = normal(len(positions_T), num_heads, head_dim, seed=11)
    scale = head_dim**-0.5
    expected = torch.stack(
        [
            cache.plain(q_Hd, s, p, scale)
            for q_Hd, s, p in zip(q_THd, sequence_ids_T.tolist(), positions_T.tolist(), strict=True)
        ]
    )
    for ops in both:
        out_THv = ops.paged_attention(
            q_THd, cache.k_cache, cache.v_cache, cache.tables, sequence_ids_T, positions_T, scale
        )
        assert out_THv.dtype == torch.float32
        assert_close(out_THv, expected, 3e-6)
        nothing = ops.paged_attention(
            q_THd[:0],
            cache.k_cache,
            cache.v_cache,
            cache.tables,
            sequence_ids_T[:0],
            positions_T[:0],
            scale,
        )
        assert nothing.shape == (0, num_heads, v_dim)


def test_paged_attention_with_scores_far_apart(both: Both) -> None:
    cache = PagedCache.random([40], 16, 1, 24, 24, torch.float32)
    cache.keys[0][:3] *= 100
    cache.write(0, 0, 40)
    q_THd = normal(40, 2, 24, seed=12) * 10
    positions_T = torch.arange(40).int()
    expected = torch.stack([cache.plain(q_THd[p], 0, p, 1.0) for p in range(40)])
    for ops in both:
        out_THv = ops.paged_attention(
            q_THd,
            cache.k_cache,
            cache.v_cache,
            cache.tables,
            torch.zeros_like(positions_T),
            positions_T,
            1.0,
        )
        assert_close(out_THv, expected, 1e-3)


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (3, 7), (5, 16), (2, 3, 100), (0, 4, 10)])
def test_rms_norm(both: Both, shape: tuple[int, ...]) -> None:
    x, weight = normal(*shape) * 3, normal(shape[-1], seed=1)
    wide = x.double()
    expected = weight.double() * wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    for ops in both:
        assert_close(ops.rms_norm(x, weight, 1e-6), expected, 1e-6)
    if x.numel():
        for ops in both:
            assert bool((ops.rms_norm(torch.zeros_like(x), weight, 1e-6) == 0).all())


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("shape", [(0, 2, 8), (1, 1, 2), (5, 3, 10), (4, 2, 64)])
def test_rope_turns_pairs_as_complex_numbers(
    both: Both, shape: tuple[int, int, int], interleaved: bool
) -> None:
    half = shape[2] // 2
    x, angle_Th = normal(*shape), normal(shape[0], half, seed=1) * 10
    wide = x.double()
    a, b = (wide[..., 0::2], wide[..., 1::2]) if interleaved else wide.split(half, dim=2)
    turned = torch.complex(a, b) * torch.exp(1j * angle_Th.double()).unsqueeze(1)
    axis = 3 if interleaved else 2
    expected = torch.stack((turned.real, turned.imag), dim=axis).reshape(shape)
    for ops in both:
        got = ops.rope(x.clone(), angle_Th.cos(), angle_Th.sin(), interleaved=interleaved)
        assert_close(got, expected, 1e-6)


@pytest.mark.parametrize(("num_rows", "dim"), [(0, 5), (1, 1), (3, 7), (2, 16), (5, 50)])
def test_silu_mul(both: Both, num_rows: int, dim: int) -> None:
    gate_up = normal(num_rows, 2 * dim) * 4
    gate, up = gate_up.chunk(2, dim=1)
    expected = gate.double() / (1 + torch.exp(-gate.double())) * up.double()
    for ops in both:
        assert_close(ops.silu_mul(gate, up), expected, 1e-6)


def test_silu_mul_at_the_ends(both: Both) -> None:
    gate = torch.tensor([[-1e30, -200.0, -88.0, -0.0, 0.0, 1e-40, 88.0, 200.0, 1e30]])
    expected = gate.double() * torch.sigmoid(gate.double())
    for ops in both:
        got = ops.silu_mul(gate, torch.ones_like(gate))
        torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-35)
