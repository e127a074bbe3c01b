"""Penalties, bias, min_tokens and the kept sets of top_k, top_p, min_p against transformers."""

from typing import Any

import pytest
import torch

from janus_hpc.core import SamplingParams
from janus_hpc.sampling.adjust import adjust_, needs_adjusting
from janus_hpc.sampling.restrict import shortlists
from janus_hpc.sampling.sampler import choose
from janus_hpc.sampling.state import SampleState
from janus_hpc.sampling.weights import row_max, token_weights

process = pytest.importorskip("transformers.generation.logits_process")


def make_state(
    vocab_size: int, prompt: list[int], output: list[int], eos: list[int], **params: Any
) -> SampleState:
    return SampleState(
        params=SamplingParams(**params),
        seed=1,
        row_key=0,
        sample=0,
        prompt_token_ids=prompt,
        eos_token_ids=eos,
        vocab_size=vocab_size,
        output_token_ids=output,
    )


def random_logits(num_rows: int, vocab_size: int, spread: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(vocab_size)
    return torch.randn(num_rows, vocab_size, generator=generator) * spread


def adjusted(logits: torch.Tensor, state: SampleState) -> torch.Tensor:
    assert needs_adjusting(state)
    out = logits.clone()
    adjust_(out, [state])
    return out


@pytest.mark.parametrize("penalty", [0.7, 1.3])
def test_repetition_penalty(penalty: float) -> None:
    logits = random_logits(1, 300)
    state = make_state(300, [5, 5, 9], [9, 200, 7], [0], repetition_penalty=penalty)
    seen = torch.tensor([state.prompt_token_ids + state.output_token_ids])
    wanted = process.RepetitionPenaltyLogitsProcessor(penalty)(seen, logits)
    assert torch.equal(adjusted(logits, state), wanted)
    state.append(11)
    seen = torch.cat([seen, torch.tensor([[11]])], dim=1)
    wanted = process.RepetitionPenaltyLogitsProcessor(penalty)(seen, logits)
    assert torch.equal(adjusted(logits, state), wanted)


def test_frequency_and_presence_penalties_count_the_output_only() -> None:
    logits = random_logits(1, 20)
    params = {"frequency_penalty": 0.25, "presence_penalty": 0.5}
    state = make_state(20, [1, 2, 3], [7, 7, 4], [0], **params)
    wanted = logits.clone()
    wanted[0, 7] -= 2 * 0.25 + 0.5
    wanted[0, 4] -= 0.25 + 0.5
    torch.testing.assert_close(adjusted(logits, state), wanted)
    state.append(7)
    wanted[0, 7] -= 0.25
    torch.testing.assert_close(adjusted(logits, state), wanted)


def test_min_tokens_holds_back_every_way_to_stop() -> None:
    logits = torch.zeros(1, 10)
    state = make_state(10, [1], [], [2, 99], min_tokens=2, stop_token_ids=[5], temperature=0.0)
    held = adjusted(logits, state)
    assert held.isneginf().nonzero()[:, 1].tolist() == [2, 5]
    state.append(3)
    assert adjusted(logits, state).isneginf().sum() == 2
    state.append(3)
    assert not needs_adjusting(state)


def test_bias_cannot_undo_min_tokens_and_comes_before_penalties() -> None:
    logits = torch.zeros(1, 6)
    params: dict[str, Any] = {"logit_bias": {2: 50.0, 4: 6.0}, "repetition_penalty": 2.0}
    state = make_state(6, [4], [], [2], min_tokens=1, **params)
    assert adjusted(logits, state)[0].tolist() == [0, 0, float("-inf"), 0, 3.0, 0]


def test_adjusting_a_batch_leaves_other_rows_alone() -> None:
    logits = random_logits(3, 50)
    states = [
        make_state(50, [1], [2], [0]),
        make_state(50, [1], [2], [0], presence_penalty=1.0, logit_bias={3: 1.0}),
        make_state(50, [1], [2], [0]),
    ]
    out = logits.clone()
    adjust_(out, states)
    assert torch.equal(out[[0, 2]], logits[[0, 2]])
    assert (out[1] != logits[1]).nonzero().squeeze(1).tolist() == [2, 3]


def kept_sets(logits: torch.Tensor, states: list[SampleState]) -> list[set[int]]:
    kept: list[set[int]] = [set() for _ in states]
    for rows, shortlist in shortlists(logits, states):
        for place, r in enumerate(rows):
            assert not kept[r]
            kept[r] = set(shortlist.ids_RK[place][shortlist.weights_RK[place] > 0].tolist())
    return kept


@pytest.mark.parametrize("vocab_size", [6, 257, 5000])
@pytest.mark.parametrize("spread", [0.1, 3.0])
@pytest.mark.parametrize(
    "params",
    [
        {"top_k": 1},
        {"top_k": 5},
        {"top_p": 0.05},
        {"top_p": 0.6},
        {"top_p": 0.97, "temperature": 1.4},
        {"top_k": 4, "top_p": 0.7, "temperature": 0.8},
        {"top_k": 300, "top_p": 0.9},
        {"min_p": 0.02, "top_p": 0.9},
    ],
)
def test_kept_set_equals_transformers(
    params: dict[str, Any], spread: float, vocab_size: int
) -> None:
    logits = random_logits(8, vocab_size, spread)
    states = [make_state(vocab_size, [1], [], [0], **params) for _ in range(8)]
    wanted = process.TemperatureLogitsWarper(params.get("temperature", 1.0))(None, logits)
    if "min_p" in params:
        wanted = process.MinPLogitsWarper(params["min_p"])(None, wanted)
    if "top_k" in params:
        wanted = process.TopKLogitsWarper(params["top_k"])(None, wanted)
    if "top_p" in params:
        wanted = process.TopPLogitsWarper(params["top_p"])(None, wanted)
    sets = [set(row.isfinite().nonzero().squeeze(1).tolist()) for row in wanted]
    if params.get("top_k", 0) >= vocab_size and "top_p" not in params:
        return
    got = kept_sets(logits, states)
    # transformers adds the tail up in float32: where that lands on top_p a token more or less fits.
    for mine, theirs in zip(got, sets, strict=True):
        assert len(mine ^ theirs) <= (1 if len(theirs) > 500 else 0)


@pytest.mark.parametrize("min_p", [0.01, 0.3, 1.0])
def test_min_p_keeps_what_transformers_keeps(min_p: float) -> None:
    logits = random_logits(6, 900)
    states = [make_state(900, [1], [], [0], min_p=min_p, temperature=1.3) for _ in range(6)]
    best, _ = row_max(logits)
    weights = token_weights(logits, best.unsqueeze(1), states, 900)
    wanted = process.MinPLogitsWarper(min_p)(None, logits / 1.3)
    assert torch.equal(weights > 0, wanted.isfinite())


def test_mixed_rows_of_one_batch_keep_what_they_keep_alone() -> None:
    vocab_size = 9000
    logits = random_logits(6, vocab_size, 0.5)
    logits[4] = logits[4].round()
    choices: list[dict[str, Any]] = [
        {"top_k": 3},
        {"top_p": 0.2},
        {"top_p": 0.95},
        {"top_k": 700, "top_p": 0.5},
        {"top_k": 20},
        {"top_p": 0.0001},
    ]
    states = [make_state(vocab_size, [1], [], [0], **params) for params in choices]
    together = kept_sets(logits, states)
    assert together == [kept_sets(logits[r : r + 1], [states[r]])[0] for r in range(6)]
    assert [len(s) for s in together][0::4] == [3, 20] and len(together[5]) == 1


def test_equal_logits_at_the_edge_are_kept_by_id() -> None:
    logits = torch.zeros(1, 3000)
    logits[0, 2500] = 1.0
    state = make_state(3000, [1], [], [0], top_k=4)
    assert kept_sets(logits, [state]) == [{2500, 0, 1, 2}]
    half = make_state(3000, [1], [], [0], top_p=0.5)
    kept = kept_sets(torch.zeros(1, 3000), [half])[0]
    assert kept == set(range(1500))


def test_restricted_draws_stay_inside_the_kept_set() -> None:
    logits = random_logits(1, 2000)
    state = make_state(2000, [1], [], [0], top_k=6, top_p=0.9)
    kept = kept_sets(logits, [state])[0]
    for position in range(200):
        state.output_token_ids = [3] * position
        assert choose(logits, [state])[0].token_id in kept
