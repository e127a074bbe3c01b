"""Choosing the next token of every sample of a step from its logits, each row by itself.

A row's token and log probabilities depend on its own logits and state alone, bit for bit.
"""

# S samples, R rows of a block, V vocabulary.

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from janus_hpc.core import TokenLogprobs
from janus_hpc.sampling.adjust import adjust_, needs_adjusting
from janus_hpc.sampling.logprobs import token_logprobs
from janus_hpc.sampling.restrict import is_restricted, shortlists
from janus_hpc.sampling.state import SampleState
from janus_hpc.sampling.weights import draw, row_max, token_weights

NO_TOKEN = -1

# Elements of logits worked on at once: a core's cache, and a bound on a GPU's extra memory.
_CPU_BLOCK = 2**18
_DEVICE_BLOCK = 2**23


class Choice(NamedTuple):
    """A sample's next token; NO_TOKEN where its logits hold NaN or +inf, or nothing but -inf."""

    token_id: int
    logprobs: TokenLogprobs | None


def choose(logits_SV: torch.Tensor, states: Sequence[SampleState]) -> list[Choice]:
    """The next token of each of S samples from float32 [S, V] on any device, left unchanged."""
    assert logits_SV.dtype == torch.float32 and logits_SV.ndim == 2, (
        logits_SV.dtype,
        logits_SV.shape,
    )
    assert logits_SV.shape[0] == len(states), (logits_SV.shape, len(states))
    token_ids = [NO_TOKEN] * len(states)
    adjusted = [needs_adjusting(state) for state in states]
    _choose_best(
        logits_SV, [s for s, a in enumerate(adjusted) if not a and states[s].greedy], token_ids
    )
    rest = [s for s, a in enumerate(adjusted) if a or not states[s].greedy]
    rest.sort(key=lambda s: is_restricted(states[s]) and not states[s].greedy)
    for rows in _blocks(rest, logits_SV):
        block_RV = logits_SV[rows]
        group = [states[s] for s in rows]
        if any(adjusted[s] for s in rows):
            adjust_(block_RV, group)
        for s, token_id in zip(rows, _choose_block(block_RV, group), strict=True):
            token_ids[s] = token_id
    logprobs = _logprobs(logits_SV, states, token_ids)
    return [Choice(token_id, logprobs.get(s)) for s, token_id in enumerate(token_ids)]


def _blocks(rows: list[int], logits_SV: torch.Tensor) -> Iterator[list[int]]:
    limit = _CPU_BLOCK if logits_SV.device.type == "cpu" else _DEVICE_BLOCK
    num_rows = max(1, limit // logits_SV.shape[1])
    for start in range(0, len(rows), num_rows):
        yield rows[start : start + num_rows]


def _choose_best(logits_SV: torch.Tensor, rows: list[int], token_ids: list[int]) -> None:
    if not rows:
        return
    part_RV = logits_SV if len(rows) == logits_SV.shape[0] else logits_SV[rows]
    best_R, ids_R = row_max(part_RV)
    for s, best, token_id in zip(rows, best_R.tolist(), ids_R.tolist(), strict=True):
        token_ids[s] = token_id if math.isfinite(best) else NO_TOKEN


def _choose_block(block_RV: torch.Tensor, states: list[SampleState]) -> list[int]:
    """Tokens for adjusted logits; greedy, free and restricted rows may be mixed."""
    best_R, ids_R = row_max(block_RV)
    token_ids = ids_R.tolist()
    free: list[int] = []
    restricted: list[int] = []
    for r, best in enumerate(best_R.tolist()):
        if not math.isfinite(best):
            token_ids[r] = NO_TOKEN
        elif not states[r].greedy:
            (restricted if is_restricted(states[r]) else free).append(r)
    if free:
        group = [states[r] for r in free]
        weights_RV = token_weights(
            _take(block_RV, free), best_R[free].unsqueeze(1), group, block_RV.shape[1]
        )
        _put(token_ids, free, draw(weights_RV, group))
    if restricted:
        group = [states[r] for r in restricted]
        for rows, shortlist in shortlists(_take(block_RV, restricted), group):
            places_R = draw(shortlist.weights_RK, [group[r] for r in rows])
            ids_R = shortlist.ids_RK.gather(1, places_R.unsqueeze(1)).squeeze(1)
            _put(token_ids, [restricted[r] for r in rows], ids_R)
    return token_ids


def _take(block_RV: torch.Tensor, rows: list[int]) -> torch.Tensor:
    return block_RV if len(rows) == block_RV.shape[0] else block_RV[rows]


def _put(token_ids: list[int], rows: list[int], ids_R: torch.Tensor) -> None:
    for r, token_id in zip(rows, ids_R.tolist(), strict=True):
        token_ids[r] = token_id


def _logprobs(
    logits_SV: torch.Tensor, states: Sequence[SampleState], token_ids: list[int]
) -> dict[int, TokenLogprobs]:
    """Log probabilities of the samples that ask for them, by sample."""
    asked = [
        s
        for s, t in enumerate(token_ids)
        if t != NO_TOKEN and states[s].params.logprobs is not None
    ]
    out: dict[int, TokenLogprobs] = {}
    for rows in _blocks(asked, logits_SV):
        num_top = [states[s].params.logprobs or 0 for s in rows]
        found = token_logprobs(logits_SV[rows], [token_ids[s] for s in rows], num_top)
        out.update(zip(rows, found, strict=True))
    return out
