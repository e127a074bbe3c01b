"""From logits to whole-number weights, and from weights and a random number to a token.

Weights are whole numbers small enough that every sum of them is exact in float64. Sums, and with
them the token, then depend on no summation order: not on batch mates, threads or scan algorithms.
"""

# R rows, V vocabulary or candidates, B blocks.

from collections.abc import Sequence

import torch

from janus_hpc.sampling.rng import UNIFORM_BITS
from janus_hpc.sampling.state import SampleState

_BLOCK = 512
_MAX_TEMPERATURE = torch.finfo(torch.float32).max


def column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """[R, 1] of float32 on the device of `like`."""
    return torch.tensor(values, dtype=torch.float32).to(like.device).unsqueeze(1)


def token_weights(
    logits_RV: torch.Tensor, max_R1: torch.Tensor, states: Sequence[SampleState], vocab_size: int
) -> torch.Tensor:
    """Whole numbers in proportion to the probabilities after temperature and min_p: float32 [R, V].

    `max_R1` is each row's largest logit; `vocab_size` (not V) sets the scale, so that a logit has
    the same weight whether its row comes whole or as candidates. The best token has 2**bits;
    what is below 2**-bits of it becomes 0 (bits = 35 for 151936 tokens, 41 for 4096).
    """
    scale = 2.0 ** (UNIFORM_BITS - (vocab_size - 1).bit_length())
    weights_RV = logits_RV - max_R1
    # What float32 makes infinite would turn a token held back, whose logit is -inf, into NaN.
    temperatures = [min(s.params.temperature, _MAX_TEMPERATURE) for s in states]
    weights_RV.div_(column(temperatures, logits_RV)).exp_()
    min_p = [s.params.min_p for s in states]
    if any(min_p):
        weights_RV.masked_fill_(weights_RV < column(min_p, logits_RV), 0.0)
    return weights_RV.mul_(scale).floor_()


def row_max(x_RV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's largest value and the lowest index that has it: [R], [R]; a NaN in a row wins.

    Blockwise, which is four times as fast on the CPU over large vocabularies as torch.max.
    """
    width = x_RV.shape[1]
    num_blocks = width // _BLOCK
    if num_blocks < 2:
        value_R, index_R = x_RV.max(dim=1)
        return value_R, index_R
    best_RB = x_RV[:, : num_blocks * _BLOCK].reshape(-1, num_blocks, _BLOCK).amax(dim=2)
    if width % _BLOCK:
        tail_R1 = x_RV[:, num_blocks * _BLOCK :].amax(dim=1, keepdim=True)
        best_RB = torch.cat([best_RB, tail_R1], dim=1)
    value_R, block_R = best_RB.max(dim=1)
    window_RB = (block_R * _BLOCK).unsqueeze(1) + torch.arange(_BLOCK, device=x_RV.device)
    # The last block may be short: repeating the last index cannot win over its first place.
    in_window_R = x_RV.gather(1, window_RB.clamp_(max=width - 1)).argmax(dim=1)
    return value_R, block_R * _BLOCK + in_window_R


def draw(weights_RV: torch.Tensor, states: Sequence[SampleState]) -> torch.Tensor:
    """Indices [R]: the inverse of the cumulative weights, in index order, at the next uniforms."""
    padded_RBK = _blocks(weights_RV)
    total_RB = padded_RBK.sum(dim=2, dtype=torch.float64).cumsum(dim=1)
    targets = [
        (int(state.next_uniform() * 2.0**UNIFORM_BITS) * int(total)) >> UNIFORM_BITS
        for state, total in zip(states, total_RB[:, -1].tolist(), strict=True)
    ]
    target_R1 = torch.tensor(targets, dtype=torch.float64).to(weights_RV.device).unsqueeze(1)
    block_R1 = torch.searchsorted(total_RB, target_R1, right=True)
    before_R1 = total_RB.gather(1, (block_R1 - 1).clamp_(min=0)).masked_fill_(block_R1 == 0, 0.0)
    rows = torch.arange(len(states), device=weights_RV.device)
    inside_RK = padded_RBK[rows, block_R1.squeeze(1)].cumsum(dim=1, dtype=torch.float64)
    index_R1 = torch.searchsorted(inside_RK, target_R1 - before_R1, right=True)
    return (block_R1 * _BLOCK + index_R1).squeeze(1)


def _blocks(weights_RV: torch.Tensor) -> torch.Tensor:
    """[R, B, 512], filled up with zeros where V is not a multiple of 512."""
    missing = -weights_RV.shape[1] % _BLOCK
    if missing:
        weights_RV = torch.nn.functional.pad(weights_RV, (0, missing))
    return weights_RV.reshape(weights_RV.shape[0], -1, _BLOCK)
