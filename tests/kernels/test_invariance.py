"""A row's bits do not depend on its company: batch, order, threads, chunks of a prompt, ranks of experts."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from janus_hpc.kernels.native_ops import NativeOps
from janus_hpc.kernels.ops import RouteRule
from torch import Tensor

from tests.kernels.helpers import (
    DTYPES,
    ExpertWeights,
    PagedCache,
    normal,
    random_choices,
    same_bits,
    tied_logits,
)

NUM_ROWS = 130
RowsFn = Callable[[NativeOps, Tensor], Tensor]
Make = Callable[[NativeOps, torch.dtype], RowsFn]


@pytest.fixture(scope="module")
def threads(library: Path) -> list[NativeOps]:
    return [NativeOps(library, num_threads) for num_threads in (1, 2)]


def linear(packer: NativeOps, dtype: torch.dtype) -> RowsFn:
    x_TK, w_NK, bias_N = normal(NUM_ROWS, 301), normal(133, 301, seed=1, dtype=dtype), normal(133)
    packed = packer.pack_linear(w_NK)
    return lambda ops, rows: ops.linear(x_TK[rows], packed, bias_N)


def experts(packer: NativeOps, dtype: torch.dtype) -> RowsFn:
    weights = ExpertWeights.random(6, 70, 40, dtype)
    x_TD, slots_TJ = normal(NUM_ROWS, 70), random_choices(NUM_ROWS, 3, 6)
    slots_TJ[:100, 0] = 1  # one slot over more rows than a block holds
    slots_TJ[:100, 1:] += (slots_TJ[:100, 1:] == 1) * 4
    weights_TJ = normal(NUM_ROWS, 3, seed=2)
    packed = weights.pack(packer, list(range(6)))

    def run(ops: NativeOps, rows: Tensor) -> Tensor:
        out_TD = torch.zeros(len(rows), 70, dtype=torch.float64)
        ops.experts(x_TD[rows], slots_TJ[rows], weights_TJ[rows], packed, out_TD)
        return out_TD

    return run


def attention(_: NativeOps, dtype: torch.dtype) -> RowsFn:
    cache = PagedCache.random([100, 30], 16, 2, 24, 18, dtype)
    for sequence in range(2):
        cache.write(sequence, 0, len(cache.keys[sequence]))
    sequence_ids_T = (torch.arange(NUM_ROWS) >= 100).int()
    positions_T = (torch.arange(NUM_ROWS) - 100 * sequence_ids_T).int()
    q_THd = normal(NUM_ROWS, 6, 24, seed=3)
    return lambda ops, rows: ops.paged_attention(
        q_THd[rows],
        cache.k_cache,
        cache.v_cache,
        cache.tables,
        sequence_ids_T[rows],
        positions_T[rows],
        0.2,
    )


def rms_norm(_: NativeOps, __: torch.dtype) -> RowsFn:
    x, weight = normal(NUM_ROWS, 2101), normal(2101, seed=1)
    return lambda ops, rows: ops.rms_norm(x[rows], weight, 1e-6)


def rope(_: NativeOps, __: torch.dtype) -> RowsFn:
    x, angle = normal(NUM_ROWS, 16, 70), normal(NUM_ROWS, 35, seed=1)
    return lambda ops, rows: ops.rope(
        x[rows], angle[rows].cos(), angle[rows].sin(), interleaved=False
    )


def silu_mul(_: NativeOps, __: torch.dtype) -> RowsFn:
    gate, up = normal(NUM_ROWS, 301) * 4, normal(NUM_ROWS, 301, seed=1)
    return lambda ops, rows: ops.silu_mul(gate[rows], up[rows])


def route(_: NativeOps, __: torch.dtype) -> RowsFn:
    logits = torch.cat((tied_logits(65, 160), normal(65, 160)))

    def run(ops: NativeOps, rows: Tensor) -> Tensor:
        ids, weights = ops.route(logits[rows], RouteRule(6, True, 1.0))
        return torch.cat((ids.double(), weights.double()), dim=1)

    return run


def gate(packer: NativeOps, _: torch.dtype) -> RowsFn:
    x, router = normal(NUM_ROWS, 301), packer.pack_linear(normal(64, 301, seed=1))
    rule, bias = RouteRule(6, True, 2.5, 8, 3, "sigmoid"), normal(64, seed=2)

    def run(ops: NativeOps, rows: Tensor) -> Tensor:
        ids, weights = ops.gate(x[rows], router, rule, bias)
        return torch.cat((ids.double(), weights.double()), dim=1)

    return run


CASES: list[tuple[Make, torch.dtype]] = [
    *((make, dtype) for make in (linear, experts, attention) for dtype in DTYPES),
    *((make, torch.float32) for make in (rms_norm, rope, silu_mul, route, gate)),
]


@pytest.mark.parametrize(("make", "dtype"), CASES)
def test_a_row_alone_is_the_row_in_any_batch(
    threads: list[NativeOps], make: Make, dtype: torch.dtype
) -> None:
    run = make(threads[0], dtype)
    rows = torch.arange(NUM_ROWS)
    alone = torch.cat([run(threads[0], row[None]) for row in rows])
    shuffled = torch.randperm(NUM_ROWS, generator=torch.Generator().manual_seed(12))
    for size in range(2, NUM_ROWS + 1):
        some = shuffled[-size:]
        assert same_bits(run(threads[0], some), alone[some]), size
    for size in (7, 97, NUM_ROWS):
        assert same_bits(run(threads[1], rows[:size]), alone[:size]), size
        assert same_bits(run(threads[1], rows[-size:]), alone[-size:]), size


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk", [1, 5, 32, 33])
@pytest.mark.parametrize("shared", [False, True])
def test_a_prompt_in_chunks_is_the_whole_prompt(
    threads: list[NativeOps], shared: bool, chunk: int, dtype: torch.dtype
) -> None:
    """Chunks see a cache with nothing beyond them, in a call with a decoding neighbour."""
    length = 100
    q_THd = normal(length + 1, 6, 24, seed=3)

    def run(ops: NativeOps, cache: PagedCache, start: int, end: int) -> Tensor:
        """Positions of sequence 0, then the last of sequence 1."""
        rows = [*range(start, end), length]
        return ops.paged_attention(
            q_THd[rows],
            cache.k_cache,
            cache.v_cache,
            cache.tables,
            (torch.tensor(rows) == length).int(),
            torch.tensor([*range(start, end), 40]).int(),
            0.2,
        )

    def empty() -> PagedCache:
        cache = PagedCache.random([length, 41], 7, 2, 24, 18, dtype, shared=shared)
        cache.write(1, 0, 41)
        return cache

    whole_cache, cache = empty(), empty()
    whole_cache.write(0, 0, length)
    whole = run(threads[0], whole_cache, 0, length)
    for i, start in enumerate(range(0, length, chunk)):
        end = min(start + chunk, length)
        cache.write(0, start, end)
        got = run(threads[i % 5 == 0], cache, start, end)
        assert same_bits(got, torch.cat((whole[start:end], whole[-1:]))), (start, end)


def random_grouping(rng: random.Random, num_experts: int) -> list[list[int]]:
    """Experts dealt to 1..5 ranks, in random slot order; a rank may have none."""
    ranks: list[list[int]] = [[] for _ in range(rng.randint(1, 5))]
    for expert in rng.sample(range(num_experts), num_experts):
        rng.choice(ranks).append(expert)
    return ranks


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_do_not_depend_on_how_experts_are_grouped(
    threads: list[NativeOps], dtype: torch.dtype
) -> None:
    num_experts, num_tokens, hidden = 12, 20, 50
    weights = ExpertWeights.random(num_experts, hidden, 24, dtype)
    # Sizes of tokens far apart, a token of zeros among them.
    x_TD = normal(num_tokens, hidden) * torch.logspace(-3, 1, num_tokens)[:, None]
    x_TD[3] = 0
    ids_TJ, weights_TJ = random_choices(num_tokens, 6, num_experts), normal(num_tokens, 6, seed=2)

    def partial(ops: NativeOps, expert_ids: list[int]) -> Tensor:
        slot_of = torch.full((num_experts,), -1, dtype=torch.int32)
        slot_of[expert_ids] = torch.arange(len(expert_ids)).int()
        out_TD = torch.zeros(num_tokens, hidden, dtype=torch.float64)
        packed = weights.pack(ops, expert_ids)
        ops.experts(x_TD, slot_of[ids_TJ.long()], weights_TJ, packed, out_TD)
        return out_TD

    expected = partial(threads[0], list(range(num_experts)))
    assert bool(expected[torch.arange(num_tokens) != 3].abs().sum(dim=1).all())
    rng, plain_sums = random.Random(13), []
    terms_ETD = [partial(threads[0], [expert]).float() for expert in range(num_experts)]
    for _ in range(25):
        groups = random_grouping(rng, num_experts)
        total = torch.zeros_like(expected)
        for expert_ids in groups:
            total += partial(rng.choice(threads), expert_ids)
        assert same_bits(total, expected), groups
        plain = [sum((terms_ETD[e] for e in ids), torch.zeros(1)) for ids in groups]
        plain_sums.append(sum(plain, torch.zeros(1)))
    # The cases can tell: float32 partial sums of the same terms do differ between groupings.
    assert any(not torch.equal(total, plain_sums[0]) for total in plain_sums)
