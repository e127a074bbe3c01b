"""The number of attention workers for one FFN worker in closed form (arXiv 2601.21351): a cheap second opinion.

Pure arithmetic on lines; knows no candidates.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Line:
    """T(x) = slope x + base, in any unit of time."""

    slope: float
    base: float

    def at(self, x: float) -> float:
        """T(x)."""
        return self.slope * x + self.base


def mean_tokens(batch: float, mean_prompt: float, mean_new: float) -> float:
    """KV tokens on an attention worker with so many sequences, whose lengths in decode are geometric with this
    mean: B (mu_P + (1 - p) / p) with p = 1 / mu_D.
    """
    return batch * (mean_prompt + mean_new - 1)


def attention_per_ffn(
    attention: Line, ffn: Line, exchange_time: float, tokens: float, batch: float
) -> float:
    """r*, attention workers of `batch` sequences each for one FFN worker, where throughput over all of them is
    highest: max{(t_A(T) - b_F) / (a_F B), (t_C - b_F) / (a_F B), sqrt(b_F / (a_F B))}.

    attention: over `tokens` KV tokens of a worker; ffn: over the sequences of all of them.
    """
    each = ffn.slope * batch
    keeps_up = (attention.at(tokens) - ffn.base) / each
    hides_exchange = (exchange_time - ffn.base) / each
    return max(keeps_up, hides_exchange, math.sqrt(ffn.base / each))
