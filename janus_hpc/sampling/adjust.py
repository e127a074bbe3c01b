"""Changes to the logits before a token is chosen: min_tokens, logit_bias and the three penalties.

Every change is float32 arithmetic on single elements, so no row depends on its batch mates.
"""

# R rows, V vocabulary.

from collections.abc import Callable, Collection, Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from janus_hpc.sampling.state import SampleState


def needs_adjusting(state: SampleState) -> bool:
    """Whether `adjust_` would change this sample's next logits."""
    return bool(
        state.params.logit_bias
        or state.penalised
        or len(state.output_token_ids) < state.params.min_tokens
    )


def adjust_(logits_RV: torch.Tensor, states: Sequence[SampleState]) -> None:
    """Apply min_tokens, logit_bias and penalties, in that order, to float32 [R, V] in place."""
    _hold_back(logits_RV, states)
    _add_bias(logits_RV, states)
    _penalise_repetition(logits_RV, states)
    _penalise_counts(logits_RV, states)


def _flat(
    logits_RV: torch.Tensor,
    states: Sequence[SampleState],
    ids_of: Callable[[SampleState], Collection[int]],
) -> tuple[torch.Tensor, list[int]] | None:
    """Flat positions in logits_RV of each state's ids, and each state's number; None if empty."""
    vocab_size = logits_RV.shape[1]
    parts = []
    for r, state in enumerate(states):
        ids = ids_of(state)
        parts.append(np.fromiter(ids, dtype=np.int64, count=len(ids)) + r * vocab_size)
    sizes = [len(part) for part in parts]
    if not sum(sizes):
        return None
    return torch.from_numpy(np.concatenate(parts)).to(logits_RV.device), sizes


def _column(values: Iterable[float], sizes: list[int], device: torch.device) -> torch.Tensor:
    """One value a state, repeated for each of its positions; float32."""
    column: npt.NDArray[np.float32] = np.repeat(np.fromiter(values, dtype=np.float32), sizes)
    return torch.from_numpy(column).to(device)


def _hold_back(logits_RV: torch.Tensor, states: Sequence[SampleState]) -> None:
    found = _flat(logits_RV, states, SampleState.held_back_ids)
    if found is not None:
        logits_RV.view(-1)[found[0]] = float("-inf")


def _add_bias(logits_RV: torch.Tensor, states: Sequence[SampleState]) -> None:
    found = _flat(logits_RV, states, lambda state: state.params.logit_bias)
    if found is None:
        return
    bias = np.array([b for s in states for b in s.params.logit_bias.values()], dtype=np.float32)
    flat, where = logits_RV.view(-1), found[0]
    flat[where] = flat[where] + torch.from_numpy(bias).to(flat.device)


def _penalise_repetition(logits_RV: torch.Tensor, states: Sequence[SampleState]) -> None:
    found = _flat(
        logits_RV, states, lambda s: s.seen_ids() if s.params.repetition_penalty != 1.0 else ()
    )
    if found is None:
        return
    where, sizes = found
    flat = logits_RV.view(-1)
    penalty = _column((s.params.repetition_penalty for s in states), sizes, flat.device)
    old = flat[where]
    flat[where] = torch.where(old > 0, old / penalty, old * penalty)


def _penalise_counts(logits_RV: torch.Tensor, states: Sequence[SampleState]) -> None:
    def counts_of(state: SampleState) -> dict[int, int]:
        p = state.params
        return state.output_counts() if p.frequency_penalty or p.presence_penalty else {}

    found = _flat(logits_RV, states, counts_of)
    if found is None:
        return
    where, sizes = found
    flat = logits_RV.view(-1)
    counts = np.array([n for s in states for n in counts_of(s).values()], dtype=np.float32)
    frequency = _column((s.params.frequency_penalty for s in states), sizes, flat.device)
    presence = _column((s.params.presence_penalty for s in states), sizes, flat.device)
    drop = frequency * torch.from_numpy(counts).to(flat.device)
    flat[where] = flat[where] - drop - presence
