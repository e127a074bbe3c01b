"""The gate after its matrix product, in plain torch: softmax, group limit, top-k, weights in id order.

The twin of the Triton kernel in route_triton.py and of native/route.h. Knows no model.

Legend: N rows, E experts, G groups, K choices a row.
"""

import torch
from torch import Tensor


def route_softmax_topk(
    logits_NE: Tensor,
    top_k: int,
    renormalize: bool,
    scale: float,
    *,
    num_groups: int = 0,
    topk_groups: int = 0,
) -> tuple[Tensor, Tensor]:
    """ids_NK int32, ascending, and weights_NK float32; see `Ops.route_softmax_topk`."""
    scores_NE = logits_NE.float().softmax(dim=-1)
    if num_groups:
        groups_NG = scores_NE.unflatten(1, (num_groups, -1)).amax(dim=-1)
        kept_NG = torch.zeros_like(groups_NG, dtype=torch.bool)
        kept_NG.scatter_(1, _best(groups_NG, topk_groups), True)
        size = scores_NE.shape[1] // num_groups
        scores_NE = scores_NE.masked_fill(~kept_NG.repeat_interleave(size, dim=1), 0.0)
    ids_NK = _best(scores_NE, top_k).sort(dim=1).values
    weights_NK = scores_NE.gather(1, ids_NK)
    if renormalize:
        weights_NK = weights_NK / weights_NK.sum(dim=1, keepdim=True)
    return ids_NK.int(), (weights_NK * scale).contiguous()


def _best(scores: Tensor, count: int) -> Tensor:
    """Indices of the largest scores of each row; a stable sort gives ties to the lower index."""
    return scores.sort(dim=1, descending=True, stable=True).indices[:, :count]
