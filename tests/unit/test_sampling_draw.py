"""Whole-number weights and the inverse of their cumulative sum: exact, so in no order of summation."""

import pytest
import torch

from janus_hpc.core import SamplingParams
from janus_hpc.sampling.state import SampleState
from janus_hpc.sampling.weights import draw, row_max, token_weights


def make_states(num_rows: int, vocab_size: int, temperature: float = 1.0) -> list[SampleState]:
    return [
        SampleState(
            params=SamplingParams(temperature=temperature),
            seed=3,
            row_key=r,
            sample=0,
            prompt_token_ids=[1],
            eos_token_ids=[],
            vocab_size=vocab_size,
        )
        for r in range(num_rows)
    ]


@pytest.mark.parametrize("padding", [0, 509, 512, 1300])
def test_draw_is_exact_to_the_last_unit(padding: int) -> None:
    """Weights built so that the drawn token has weight 1 in a total of 2**40."""
    total = 2**40
    states = make_states(300, padding + 5)
    rows = []
    for state in states:
        target = (int(state.next_uniform() * 2**53) * total) >> 53
        rest = total - target - 1
        low, rest_low = target % 2**20, rest % 2**20
        rows.append([target - low, *[0] * padding, low, 1, rest - rest_low, rest_low])
    weights = torch.tensor(rows, dtype=torch.float32)
    assert draw(weights, states).tolist() == [padding + 2] * len(states)


@pytest.mark.parametrize("vocab_size", [1, 2, 1000, 70_000, 151_936])
@pytest.mark.parametrize("temperature", [0.01, 1.0, 100.0])
def test_weights_are_whole_and_sum_exactly(vocab_size: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, vocab_size, generator=generator) * 3
    best, _ = row_max(logits)
    weights = token_weights(
        logits, best.unsqueeze(1), make_states(2, vocab_size, temperature), vocab_size
    )
    assert torch.equal(weights, weights.round())
    assert vocab_size * int(weights.max()) <= 2**53
    for row in weights:
        exact = sum(int(w) for w in row.tolist())
        assert int(row.sum(dtype=torch.float64)) == exact
    wanted = torch.softmax(logits.double() / temperature, dim=1)
    got = weights.double() / weights.double().sum(dim=1, keepdim=True)
    assert (got - wanted).abs().max() < 1e-6


def test_weights_of_candidates_equal_those_of_the_whole_row() -> None:
    """Elements get the same bits wherever they stand in a tensor."""
    vocab_size = 30_011
    logits = torch.randn(3, vocab_size, generator=torch.Generator().manual_seed(2)) * 4
    states = make_states(3, vocab_size, 0.7)
    best, _ = row_max(logits)
    whole = token_weights(logits, best.unsqueeze(1), states, vocab_size)
    for num in (1, 2, 7, 64, 333, 4097):
        values, ids = logits.topk(num, dim=1)
        part = token_weights(values, best.unsqueeze(1), states, vocab_size)
        assert torch.equal(part, whole.gather(1, ids))
