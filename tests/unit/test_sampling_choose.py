"""choose(): the token depends on the row alone, greedy ties, distribution, log probabilities."""

import random
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]

from janus_hpc.core import SamplingParams
from janus_hpc.sampling.sampler import NO_TOKEN, Choice, choose
from janus_hpc.sampling.state import SampleState

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def make_state(
    vocab_size: int,
    row_key: int = 0,
    prompt: list[int] | None = None,
    output: list[int] | None = None,
    sample: int = 0,
    **params: Any,
) -> SampleState:
    return SampleState(
        params=SamplingParams(**params),
        seed=11,
        row_key=row_key,
        sample=sample,
        prompt_token_ids=prompt or [1, 2, 3],
        eos_token_ids=[0],
        vocab_size=vocab_size,
        output_token_ids=list(output or []),
    )


def mixed_params(rng: random.Random, vocab_size: int) -> dict[str, Any]:
    """Parameters of one row, every feature on or off."""

    def maybe(value: Any, otherwise: Any) -> Any:
        return value if rng.random() < 0.4 else otherwise

    return {
        "temperature": rng.choice([0.0, 0.3, 1.0, 1.7]),
        "top_k": maybe(rng.choice([1, 3, 40, vocab_size - 1, vocab_size + 9]), 0),
        "top_p": maybe(rng.choice([0.1, 0.5, 0.9, 0.999]), 1.0),
        "min_p": maybe(0.05, 0.0),
        "logprobs": maybe(rng.randrange(6), None),
        "logit_bias": maybe({rng.randrange(vocab_size): 3.0, rng.randrange(vocab_size): -9.0}, {}),
        "repetition_penalty": maybe(1.3, 1.0),
        "frequency_penalty": maybe(0.4, 0.0),
        "presence_penalty": maybe(-0.7, 0.0),
        "min_tokens": maybe(9, 0),
    }


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("vocab_size", [7, 1000, 1500, 40_001])
def test_row_alone_equals_row_in_any_batch(vocab_size: int, device: str) -> None:
    rng = random.Random(vocab_size)
    generator = torch.Generator().manual_seed(vocab_size)
    num_rows = 50
    logits = (torch.randn(num_rows, vocab_size, generator=generator) * 4).to(device)
    logits[::5] = logits[::5].round()
    states = [
        make_state(
            vocab_size,
            row_key=r,
            prompt=[rng.randrange(vocab_size) for _ in range(20)],
            output=[rng.randrange(vocab_size) for _ in range(r % 12)],
            sample=r % 3,
            **mixed_params(rng, vocab_size),
        )
        for r in range(num_rows)
    ]
    before = logits.clone()
    together = choose(logits, states)
    assert torch.equal(logits, before)
    alone = [choose(logits[r : r + 1], [states[r]])[0] for r in range(num_rows)]
    assert together == alone
    order = rng.sample(range(num_rows), num_rows)
    shuffled = choose(logits[order], [states[r] for r in order])
    assert shuffled == [together[r] for r in order]
    assert len({choice.token_id for choice in together}) > 5


def test_threads_do_not_change_the_result() -> None:
    vocab_size = 150_001
    logits = torch.randn(6, vocab_size, generator=torch.Generator().manual_seed(3))
    params: list[dict[str, Any]] = [
        {},
        {"top_p": 0.9},
        {"top_k": 50},
        {"logprobs": 3},
        {"min_p": 0.1},
    ]
    states = [make_state(vocab_size, row_key=r, **p) for r, p in enumerate([*params, {"seed": 4}])]
    num_threads = torch.get_num_threads()
    results: list[list[Choice]] = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(choose(logits, states))
    finally:
        torch.set_num_threads(num_threads)
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("vocab_size", [5, 511, 1024, 1700])
def test_greedy_takes_the_lowest_of_equal_ids(vocab_size: int, device: str) -> None:
    logits = torch.zeros(4, vocab_size, device=device)
    logits[1, vocab_size - 1] = 1.0
    logits[2, [3, vocab_size - 1]] = 2.0
    logits[3] = -1e9
    states = [make_state(vocab_size, temperature=0.0) for _ in range(4)]
    assert [c.token_id for c in choose(logits, states)] == [0, vocab_size - 1, 3, 0]
    # The same through the path of adjusted logits.
    for state in states:
        state.params = SamplingParams(temperature=0.0, logit_bias={1: -1.0})
    assert [c.token_id for c in choose(logits, states)] == [0, vocab_size - 1, 3, 0]


def test_top_k_of_one_is_greedy_also_for_ties() -> None:
    logits = torch.randn(40, 700, generator=torch.Generator().manual_seed(1)).round()
    drawn = [make_state(700, row_key=r, top_k=1, temperature=50.0) for r in range(40)]
    best = [make_state(700, row_key=r, temperature=0.0) for r in range(40)]
    assert choose(logits, drawn) == choose(logits, best)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 5},
        {"top_p": 0.8, "temperature": 1.5},
        {"min_p": 0.1},
        {"min_p": 0.05, "top_k": 7, "top_p": 0.9},
    ],
)
def test_draws_follow_the_distribution(params: dict[str, Any]) -> None:
    """Chi-square of 20 000 draws against probabilities computed apart with numpy."""
    vocab_size, num_draws = 12, 20_000
    logits = np.random.default_rng(5).normal(size=vocab_size) * 1.5
    expected = _probabilities(logits, **params)
    state = make_state(vocab_size, **params)
    batch = torch.tensor(logits, dtype=torch.float32).expand(1000, -1)
    counts = np.zeros(vocab_size)
    for start in range(0, num_draws, 1000):
        states = [make_state(vocab_size, row_key=start + r, **params) for r in range(1000)]
        np.add.at(counts, [c.token_id for c in choose(batch, states)], 1)
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    result = stats.chisquare(counts[kept], expected[kept] * num_draws)
    assert result.pvalue > 1e-3, (result, state.params)


def _probabilities(
    logits: npt.NDArray[np.float64],
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
) -> npt.NDArray[np.float64]:
    p: npt.NDArray[np.float64] = np.exp(logits / temperature)
    p /= p.sum()
    p[p < min_p * p.max()] = 0
    order = np.argsort(-p, kind="stable")
    if top_k:
        p[order[top_k:]] = 0
    p /= p.sum()
    before = np.cumsum(p[order]) - p[order]
    p[order[before >= top_p]] = 0
    p /= p.sum()
    return p


def test_sample_and_position_change_the_draw() -> None:
    logits = torch.zeros(1, 1000)
    tokens = {
        choose(logits, [make_state(1000, sample=s, output=[5] * n)])[0].token_id
        for s in range(4)
        for n in range(4)
    }
    assert len(tokens) == 16


def test_unusable_logits_give_no_token_and_spare_the_others() -> None:
    logits = torch.randn(6, 600, generator=torch.Generator().manual_seed(2))
    clean = logits.clone()
    logits[0, 17] = float("nan")
    logits[1] = float("-inf")
    logits[2, 5] = float("inf")
    for params in ({"temperature": 0.0}, {}, {"top_k": 4, "logprobs": 2}):
        states = [make_state(600, row_key=r, **params) for r in range(6)]
        got = choose(logits, states)
        assert got[:3] == [Choice(NO_TOKEN, None)] * 3
        assert got[3:] == choose(clean, states)[3:]


def test_empty_batch() -> None:
    assert choose(torch.empty(0, 50), []) == []


@pytest.mark.parametrize("device", DEVICES)
def test_logprobs_are_of_the_raw_logits(device: str) -> None:
    vocab_size = 3001
    logits = torch.randn(3, vocab_size, generator=torch.Generator().manual_seed(9)) * 5
    wanted = torch.log_softmax(logits.double(), dim=1)
    params: dict[str, Any] = {"temperature": 0.4, "logit_bias": {7: 30.0}, "top_k": 2}
    counts = [0, 4, -1]
    states = [make_state(vocab_size, row_key=r, logprobs=n, **params) for r, n in enumerate(counts)]
    for r, choice in enumerate(choose(logits.to(device), states)):
        assert choice.token_id == 7
        found = choice.logprobs
        assert found is not None
        assert found.chosen == pytest.approx(wanted[r, 7].item(), abs=2e-6)
        num_top = counts[r] if counts[r] >= 0 else vocab_size
        values, ids = wanted[r].topk(num_top)
        assert found.top_ids == ids.tolist()
        np.testing.assert_allclose(found.top_logprobs, values.numpy(), atol=2e-6)


def test_logprobs_ties_go_to_the_lower_id() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0, 2.0, 1.0]])
    found = choose(logits, [make_state(6, temperature=0.0, logprobs=4)])[0].logprobs
    assert found is not None and found.top_ids == [1, 2, 4, 0]


@pytest.mark.parametrize("temperature", [1e38, 1e39, 1e300])
@pytest.mark.parametrize("device", DEVICES)
def test_a_temperature_beyond_float32_draws_evenly_of_what_is_allowed(
    device: str, temperature: float
) -> None:
    """The end token, held back by min_tokens, has a logit of -inf, which no temperature may turn into NaN."""
    states = [make_state(8, row_key=k, temperature=temperature, min_tokens=4) for k in range(4000)]
    logits = torch.arange(8.0, device=device).repeat(len(states), 1)
    counts = np.bincount([c.token_id for c in choose(logits, states)], minlength=8)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:]).pvalue > 1e-6
