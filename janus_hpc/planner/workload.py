"""Lengths of prompts and answers, and what they say of the sequences that are in decode together. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from janus_hpc.planner.search import Workload
from janus_hpc.planner.system import Context


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Tokens of prompts and of answers, an entry a sequence: some of `num_sequences` that are alike.

    `how` says where they come from, in words.
    """

    prompts: Sequence[float]
    answers: Sequence[float]
    num_sequences: int
    how: str

    def workload(self) -> Workload:
        """Means over sequences."""
        return Workload(
            num_rows=self.num_sequences,
            mean_prompt=float(np.mean(self.prompts)),
            mean_new=float(np.mean(self.answers)),
        )

    def context(self) -> Context:
        """What is behind a sequence at a step drawn evenly from all their decode steps: long answers weigh more
        (2601.21351 v4: first and second moment over the lifetimes of decode slots).
        """
        p, d = np.asarray(self.prompts, np.float64), np.asarray(self.answers, np.float64)
        first = (d * p + d * (d - 1) / 2).sum() / d.sum()
        squares = d * p**2 + p * d * (d - 1) + d * (d - 1) * (2 * d - 1) / 6
        second = squares.sum() / d.sum()
        return Context(mean=float(first), std=math.sqrt(max(second - first**2, 0.0)))
