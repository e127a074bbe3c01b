"""Log probabilities for the results: of the raw logits, before penalties and temperature.

Knows nothing of how a token was chosen."""

# R rows, V vocabulary.

import math
from collections.abc import Sequence

import torch

from janus_hpc.core import TokenLogprobs
from janus_hpc.sampling.rng import UNIFORM_BITS


def token_logprobs(
    logits_RV: torch.Tensor, chosen_ids: Sequence[int], num_top: Sequence[int]
) -> list[TokenLogprobs]:
    """Log softmax of float32 [R, V] at each row's chosen and best tokens, ties to the lower id.

    `num_top` of 0 gives the chosen token's alone, -1 the whole vocabulary. A masked token has -inf.
    """
    normaliser = _log_sum_exp(logits_RV)
    chosen_R1 = torch.tensor(chosen_ids).to(logits_RV.device).unsqueeze(1)
    chosen = logits_RV.gather(1, chosen_R1).squeeze(1).tolist()
    out = []
    for r, log_total in enumerate(normaliser):
        ids, values = _best(logits_RV[r], num_top[r])
        top = [value - log_total for value in values]
        out.append(TokenLogprobs(chosen=chosen[r] - log_total, top_ids=ids, top_logprobs=top))
    return out


def _log_sum_exp(logits_RV: torch.Tensor) -> list[float]:
    """Log of the sum of exponentials; the sum of whole-number terms is exact in any order."""
    bits = UNIFORM_BITS - (logits_RV.shape[1] - 1).bit_length()
    max_R1 = logits_RV.amax(dim=1, keepdim=True)
    terms_RV = (logits_RV - max_R1).exp_().mul_(2.0**bits).floor_()
    total_R = terms_RV.sum(dim=1, dtype=torch.float64).tolist()
    return [
        top + math.log(total) - bits * math.log(2.0)
        for top, total in zip(max_R1.squeeze(1).tolist(), total_R, strict=True)
    ]


def _best(logits_V: torch.Tensor, num_top: int) -> tuple[list[int], list[float]]:
    """Ids and logits of the best tokens, logit falling, then id rising."""
    count = logits_V.shape[0] if num_top < 0 else min(num_top, logits_V.shape[0])
    if count == 0:
        return [], []
    edge = logits_V.topk(count).values[-1]
    ids = (logits_V >= edge).nonzero().squeeze(1)
    values, order = logits_V[ids].sort(descending=True, stable=True)
    return ids[order[:count]].tolist(), values[:count].tolist()
