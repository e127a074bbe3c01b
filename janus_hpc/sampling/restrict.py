"""top_k and top_p: which tokens may be drawn, without sorting the vocabulary where possible.

The kept set is the first tokens in the order (logit falling, id rising): equal logits at the edge
are told apart by id.
"""

# R rows, V vocabulary, K candidates.

from collections.abc import Sequence
from typing import NamedTuple

import torch

from janus_hpc.sampling.state import SampleState
from janus_hpc.sampling.weights import token_weights

# Candidates looked at first for top_p alone, and the growth when they are too few.
_FIRST_CANDIDATES = 256
_GROWTH = 16


class Shortlist(NamedTuple):
    """Tokens in rising id order with whole-number weights, 0 for those that may not be drawn."""

    ids_RK: torch.Tensor
    weights_RK: torch.Tensor


def is_restricted(state: SampleState) -> bool:
    """Whether top_k or top_p excludes tokens (min_p does not need candidates)."""
    return 0 < state.params.top_k < state.vocab_size or state.params.top_p < 1.0


def shortlists(
    logits_RV: torch.Tensor, states: Sequence[SampleState]
) -> list[tuple[list[int], Shortlist]]:
    """The tokens each row may draw, as (rows, their shortlist); each row is in one group."""
    vocab_size = logits_RV.shape[1]
    groups: list[tuple[list[int], Shortlist]] = []
    rows = list(range(len(states)))
    num_candidates = 1 + max(_limit(s, vocab_size, _FIRST_CANDIDATES) for s in states)
    while rows:
        num_candidates = min(num_candidates, vocab_size)
        part_RV = logits_RV if len(rows) == len(states) else logits_RV[rows]
        group = [states[r] for r in rows]
        shortlist, settled = _shortlist(part_RV, group, num_candidates)
        done = [i for i, is_settled in enumerate(settled) if is_settled]
        if len(done) == len(rows):
            groups.append((rows, shortlist))
        elif done:
            taken = Shortlist(shortlist.ids_RK[done], shortlist.weights_RK[done])
            groups.append(([rows[i] for i in done], taken))
        rows = [r for r, is_settled in zip(rows, settled, strict=True) if not is_settled]
        num_candidates *= _GROWTH
    return groups


def _limit(state: SampleState, vocab_size: int, otherwise: int) -> int:
    top_k = state.params.top_k
    return top_k if 0 < top_k < vocab_size else otherwise


def _shortlist(
    logits_RV: torch.Tensor, states: Sequence[SampleState], num_candidates: int
) -> tuple[Shortlist, list[bool]]:
    """Shortlist from the best candidates, and for each row whether they were enough."""
    vocab_size = logits_RV.shape[1]
    best_RK, ids_RK = _best(logits_RV, num_candidates)
    weights_RK = token_weights(best_RK, best_RK[:, :1], states, vocab_size)
    num_kept = _num_kept(logits_RV, states, best_RK[:, :1], weights_RK)
    kept_R1 = torch.tensor(num_kept).to(logits_RV.device).unsqueeze(1)
    if num_candidates == vocab_size:
        settled = [True] * len(states)
    else:
        # One candidate beyond the kept ones must be known and be worse.
        edge_R1 = (kept_R1 - 1).clamp(max=num_candidates - 2)
        falls_R1 = best_RK.gather(1, edge_R1) > best_RK.gather(1, edge_R1 + 1)
        enough = [n < num_candidates for n in num_kept]
        settled = [a and b for a, b in zip(enough, falls_R1.squeeze(1).tolist(), strict=True)]
    place_K = torch.arange(num_candidates, device=logits_RV.device)
    weights_RK.masked_fill_(place_K >= kept_R1, 0.0)
    ids_RK, order_RK = ids_RK.sort(dim=1)
    return Shortlist(ids_RK, weights_RK.gather(1, order_RK)), settled


def _best(logits_RV: torch.Tensor, num_candidates: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The best logits in falling order and their ids; if all of them, ties in rising id order."""
    if num_candidates < logits_RV.shape[1]:
        best_RK, ids_RK = logits_RV.topk(num_candidates, dim=1)
    else:
        best_RK, ids_RK = logits_RV.sort(dim=1, descending=True, stable=True)
    return best_RK, ids_RK


def _num_kept(
    logits_RV: torch.Tensor,
    states: Sequence[SampleState],
    max_R1: torch.Tensor,
    weights_RK: torch.Tensor,
) -> list[int]:
    """How many of the best tokens each row keeps; beyond the candidates where these are too few."""
    vocab_size = logits_RV.shape[1]
    limits = [_limit(s, vocab_size, vocab_size) for s in states]
    if all(s.params.top_p >= 1.0 for s in states):
        return limits
    mass_RK = weights_RK.cumsum(dim=1, dtype=torch.float64)
    totals = _totals(logits_RV, states, max_R1, mass_RK, limits)
    needs = [-1.0] * len(states)
    for r, state in enumerate(states):
        if state.params.top_p < 1.0:
            numerator, denominator = state.params.top_p.as_integer_ratio()
            needs[r] = float(max(1, -(-numerator * int(totals[r]) // denominator)))
    need_R1 = torch.tensor(needs, dtype=torch.float64).to(mass_RK.device).unsqueeze(1)
    short_R = (mass_RK < need_R1).sum(dim=1).tolist()
    return [short_R[r] + 1 if needs[r] > 0 else limits[r] for r in range(len(states))]


def _totals(
    logits_RV: torch.Tensor,
    states: Sequence[SampleState],
    max_R1: torch.Tensor,
    mass_RK: torch.Tensor,
    limits: list[int],
) -> dict[int, float]:
    """The weight of all tokens that top_k leaves; only rows with top_p below 1 need it right."""
    vocab_size, num_candidates = logits_RV.shape[1], mass_RK.shape[1]
    limit_R1 = torch.tensor([min(n, num_candidates) - 1 for n in limits]).unsqueeze(1)
    totals = dict(enumerate(mass_RK.gather(1, limit_R1.to(mass_RK.device)).squeeze(1).tolist()))
    whole = [r for r, s in enumerate(states) if s.params.top_p < 1.0 and limits[r] > num_candidates]
    if whole:
        all_RV = token_weights(
            logits_RV[whole], max_R1[whole], [states[r] for r in whole], vocab_size
        )
        totals.update(zip(whole, all_RV.sum(dim=1, dtype=torch.float64).tolist(), strict=True))
    return totals
