"""The gate after its matrix product, in plain torch: scores, group limit, top-k, weights in id order.

The twin of the Triton kernel in route_triton.py and of native/route.h. Knows no model.

Legend: N rows, E experts, G groups, K choices a row.
"""

import torch
from janus_hpc.kernels.ops import RouteRule
from torch import Tensor

# What experts are chosen by: their score, at least LEAST, which also stands for NaN; OUTSIDE the groups
# kept. Both leave room for the sum of two and for -inf below.
LEAST, OUTSIDE = -1e38, -2e38
# Added to a sum of sigmoid scores before dividing by it, as in DeepSeek-V3's reference implementation.
SIGMOID_SUM_EPS = 1e-20


def route(
    logits_NE: Tensor, rule: RouteRule, bias_E: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """ids_NK int32, ascending, and weights_NK float32; see `Ops.route`."""
    rule.check(logits_NE.shape[1])
    softmax = rule.scoring == "softmax"
    logits_NE = logits_NE.float()
    scores_NE = logits_NE.softmax(dim=-1) if softmax else logits_NE.sigmoid()
    keys_NE = scores_NE if bias_E is None else scores_NE + bias_E
    keys_NE = torch.where(keys_NE >= LEAST, keys_NE, LEAST)
    if rule.num_groups:
        outside_NE = _outside_groups(keys_NE, rule)
        scores_NE = scores_NE.masked_fill(outside_NE, 0.0)
        keys_NE = keys_NE.masked_fill(outside_NE, OUTSIDE)
    ids_NK = _best(keys_NE, rule.top_k).sort(dim=1).values
    weights_NK = scores_NE.gather(1, ids_NK)
    if rule.renormalize:
        total_N1 = weights_NK.sum(dim=1, keepdim=True)
        weights_NK = weights_NK / (total_N1 if softmax else total_N1 + SIGMOID_SUM_EPS)
    return ids_NK.int(), (weights_NK * rule.scale).contiguous()


def _outside_groups(keys_NE: Tensor, rule: RouteRule) -> Tensor:
    """Marks the experts of groups that are not kept."""
    best_count = 1 if rule.scoring == "softmax" else 2
    groups_NG = keys_NE.unflatten(1, (rule.num_groups, -1)).topk(best_count, dim=2).values.sum(2)
    outside_NG = torch.ones_like(groups_NG, dtype=torch.bool)
    outside_NG.scatter_(1, _best(groups_NG, rule.topk_groups), False)
    return outside_NG.repeat_interleave(keys_NE.shape[1] // rule.num_groups, dim=1)


def _best(scores: Tensor, count: int) -> Tensor:
    """Indices of the largest scores of each row; a stable sort gives ties to the lower index."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :count]
