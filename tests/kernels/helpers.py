"""Inputs and plain float64 formulas for the tests of the operations."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from janus_hpc.kernels.ops import Ops, PackedExperts, RouteRule
from scipy.special import expit, softmax  # type: ignore[import-untyped]
from torch import Tensor

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
FLOAT32_EPS = 2.0**-24
# Relative errors of results that pass through values rounded to the weights' dtype.
ROUNDED_TOL = {torch.float32: 3e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit, signs of zeros and NaN included."""
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def assert_close(actual: Tensor, expected: Tensor, tol: float) -> None:
    """Within tol of the largest expected value."""
    assert actual.shape == expected.shape
    assert actual.isfinite().all()
    if actual.numel():
        error = (actual.double() - expected.double()).abs().max().item()
        assert error <= tol * expected.double().abs().max().item() + 1e-30, error


@dataclass
class ExpertWeights:
    """Experts on their own: [E, I, D], [E, I, D], [E, D, I]."""

    gate: Tensor
    up: Tensor
    down: Tensor

    @classmethod
    def random(cls, num: int, hidden: int, inter: int, dtype: torch.dtype) -> "ExpertWeights":
        return cls(
            (normal(num, inter, hidden, seed=1) / hidden**0.5).to(dtype),
            (normal(num, inter, hidden, seed=2) / hidden**0.5).to(dtype),
            (normal(num, hidden, inter, seed=3) / inter**0.5).to(dtype),
        )

    def pack(self, ops: Ops, expert_ids: list[int]) -> PackedExperts:
        """The named experts in slots 0, 1, ..."""
        hidden, inter = self.down.shape[1:]
        packed = ops.alloc_experts(len(expert_ids), hidden, inter, self.down.dtype)
        for slot, expert in enumerate(expert_ids):
            ops.pack_expert(packed, slot, self.gate[expert], self.up[expert], self.down[expert])
        return packed

    def plain(self, x_TD: Tensor, slots_TJ: Tensor, weights_TJ: Tensor) -> Tensor:
        """The sum of each token's choices in float64, one choice at a time."""
        out_TD = torch.zeros(x_TD.shape, dtype=torch.float64)
        for token, choice in (slots_TJ >= 0).nonzero().tolist():
            expert = slots_TJ[token, choice]
            x_D = x_TD[token].double()
            gate_I = self.gate[expert].double() @ x_D
            inner_I = gate_I / (1 + torch.exp(-gate_I)) * (self.up[expert].double() @ x_D)
            o_D = self.down[expert].double() @ inner_I
            out_TD[token] += weights_TJ[token, choice].double() * o_D
        return out_TD


def random_choices(num_tokens: int, top_k: int, num_slots: int, seed: int = 4) -> Tensor:
    """[T, J] int32 distinct slots a token."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(num_tokens, num_slots, generator=generator).argsort(dim=1)
    return order[:, :top_k].int().contiguous()


@dataclass
class PagedCache:
    """A cache full of NaN with shuffled blocks; `write` puts positions of a sequence into it."""

    k_cache: Tensor
    v_cache: Tensor
    tables: Tensor
    keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def random(
        cls,
        lengths: list[int],
        block_size: int,
        kv_heads: int,
        head_dim: int,
        v_dim: int,
        dtype: torch.dtype,
        *,
        shared: bool = False,
    ) -> "PagedCache":
        """With `shared` values are the first v_dim columns of the keys, as in MLA."""
        width = -(-max(lengths) // block_size)
        generator = torch.Generator().manual_seed(5)
        blocks = torch.randperm(len(lengths) * width + 1, generator=generator)
        k_cache = torch.full((len(blocks), block_size, kv_heads, head_dim), float("nan"))
        v_cache = torch.full((len(blocks), block_size, kv_heads, v_dim), float("nan"))
        k_cache, v_cache = k_cache.to(dtype), v_cache.to(dtype)
        keys = [normal(n, kv_heads, head_dim, seed=6 + i) for i, n in enumerate(lengths)]
        values = [normal(n, kv_heads, v_dim, seed=60 + i) for i, n in enumerate(lengths)]
        if shared:
            v_cache = k_cache[..., :v_dim]
            values = [key[..., :v_dim] for key in keys]
        tables = blocks[1:].reshape(len(lengths), width).int().contiguous()
        return cls(
            k_cache, v_cache, tables, [k.to(dtype) for k in keys], [v.to(dtype) for v in values]
        )

    def write(self, sequence: int, start: int, end: int) -> None:
        block_size = self.k_cache.shape[1]
        for position in range(start, end):
            block = int(self.tables[sequence, position // block_size])
            self.k_cache[block, position % block_size] = self.keys[sequence][position]
            self.v_cache[block, position % block_size] = self.values[sequence][position]

    def plain(self, q_Hd: Tensor, sequence: int, position: int, scale: float) -> Tensor:
        """[H, v] of one token in float64."""
        key_LGd = self.keys[sequence][: position + 1].double()
        value_LGv = self.values[sequence][: position + 1].double()
        group = q_Hd.shape[0] // key_LGd.shape[1]
        key_LHd = key_LGd.repeat_interleave(group, dim=1)
        value_LHv = value_LGv.repeat_interleave(group, dim=1)
        scores_HL = torch.einsum("hd,lhd->hl", q_Hd.double(), key_LHd) * scale
        return torch.einsum("hl,lhv->hv", scores_HL.softmax(dim=1), value_LHv)


def tied_logits(num_tokens: int, num_experts: int, seed: int = 7) -> Tensor:
    """Multiples of 1/2: many exact ties, and no others that rounding could make."""
    return (normal(num_tokens, num_experts, seed=seed) * 4).round() / 2


def plain_route(
    logits_TE: Tensor, rule: RouteRule, bias_E: Tensor | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Ids and float64 weights of one row after the other, by sorting."""
    rows = [_plain_row(row, rule, bias_E) for row in logits_TE.double().numpy()]
    shape = (len(rows), rule.top_k)
    ids, weights = np.zeros(shape, dtype=np.int64), np.zeros(shape)
    for at, row in enumerate(rows):
        ids[at], weights[at] = row
    return ids, weights


def _plain_row(
    logits: npt.NDArray[np.float64], rule: RouteRule, bias_E: Tensor | None
) -> tuple[list[int], npt.NDArray[np.float64]]:
    sigmoid, all_ids = rule.scoring == "sigmoid", range(len(logits))
    scores = expit(logits) if sigmoid else softmax(logits)
    # Where nothing is added, logits order as their scores do and make no ties by rounding.
    keys = logits if bias_E is None and not rule.num_groups else scores
    if bias_E is not None:
        keys = scores + bias_E.double().numpy()
    size = len(logits) // max(rule.num_groups, 1)
    best = [sum(sorted(keys[g * size :][:size])[-1 - sigmoid :]) for g in range(rule.num_groups)]
    kept = sorted(range(rule.num_groups), key=lambda g: -best[g])[: rule.topk_groups]
    outside = [bool(rule.num_groups) and expert // size not in kept for expert in all_ids]
    order = sorted(all_ids, key=lambda e: (outside[e], 0.0 if outside[e] else -keys[e]))
    ids = sorted(order[: rule.top_k])
    weights = np.array([0.0 if outside[e] else scores[e] for e in ids])
    if rule.renormalize:
        weights = weights / weights.sum()
    return ids, weights * rule.scale


def assert_route(
    got: tuple[Tensor, Tensor], logits_TE: Tensor, rule: RouteRule, bias_E: Tensor | None = None
) -> None:
    """ids equal and weights within rounding of the plain formula."""
    ids_TJ, weights_TJ = got
    ids, weights = plain_route(logits_TE, rule, bias_E)
    assert ids_TJ.dtype == torch.int32
    assert weights_TJ.dtype == torch.float32
    np.testing.assert_array_equal(ids_TJ.numpy(), ids, err_msg=str(rule))
    np.testing.assert_allclose(weights_TJ.numpy(), weights, rtol=2e-6, atol=1e-37)
