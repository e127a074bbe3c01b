"""The attention-to-FFN ratio in closed form against the figures of arXiv 2601.21351."""

import math

import pytest

from janus_hpc.planner.closed_form import Line, attention_per_ffn, mean_tokens

# Ascend 910C with DeepSeek-V3, in microseconds.
ATTENTION, FFN, EXCHANGE = (
    Line(slope=0.00165, base=50),
    Line(slope=0.083, base=100),
    Line(slope=0.022, base=20),
)
# Its simulations run until so many requests have ended, from sequences that all begin at the same time.
NUM_REQUESTS = 10_000
PUBLISHED = [
    (128, 100, 500, 7.08),
    (256, 100, 500, 9.34),
    (512, 100, 500, 10.31),
    (256, 100, 100, 2.17),
    (256, 100, 500, 9.30),
    (256, 500, 500, 17.25),
]


def ratio(batch: int, tokens: float) -> float:
    return attention_per_ffn(ATTENTION, FFN, EXCHANGE.at(batch), tokens, batch)


@pytest.mark.parametrize(("batch", "mean_prompt", "mean_new", "published"), PUBLISHED)
def test_the_steady_ratio_is_within_a_twentieth(
    batch: int, mean_prompt: float, mean_new: float, published: float
) -> None:
    found = ratio(batch, mean_tokens(batch, mean_prompt, mean_new))
    assert found == pytest.approx(published, rel=0.05)


@pytest.mark.parametrize(("batch", "mean_prompt", "mean_new", "published"), PUBLISHED)
def test_with_the_start_of_its_runs_the_ratio_is_that_of_the_paper(
    batch: int, mean_prompt: float, mean_new: float, published: float
) -> None:
    """Answers begin empty: until the first have ended there are fewer tokens, by (mu_D - 1) exp(-t / mu_D)."""
    num_steps = NUM_REQUESTS * mean_new / batch
    missing = (mean_new - 1) * mean_new / num_steps * (1 - math.exp(-num_steps / mean_new))
    found = ratio(batch, mean_tokens(batch, mean_prompt, mean_new) - batch * missing)
    assert found == pytest.approx(published, rel=0.01)


def test_each_of_the_three_terms_can_be_the_largest() -> None:
    free = Line(slope=0.0, base=0.0)
    assert attention_per_ffn(free, FFN, 0.0, 0.0, 100) == pytest.approx(math.sqrt(100 / 8.3))
    assert attention_per_ffn(free, FFN, 1000.0, 0.0, 100) == pytest.approx(900 / 8.3)
    assert attention_per_ffn(Line(slope=1, base=0), FFN, 0.0, 1000, 100) == pytest.approx(900 / 8.3)
