"""What a run measured about itself, as the results file keeps it: plain data, filled by the
engine.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from janus_hpc.results.manifest import Launch


@dataclass(frozen=True, kw_only=True)
class BatchStats:
    """One batch: rows run under one split and one placement. Predicted TPOT is NaN where nothing
    predicted it.
    """

    plan: str
    split: str
    exchange: str
    num_rows: int
    num_tokens: int
    seconds: float
    tpot_s: float
    tpot_predicted_s: float = math.nan


@dataclass(frozen=True, kw_only=True)
class LayerStats:
    """Routing of the L MoE layers over `num_steps` passes, one a microbatch of a step: tokens per
    expert, activated experts on the fullest rank.
    """

    expert_activations: npt.NDArray[np.int64]  # [L, E]
    a_max_mean: npt.NDArray[np.float64]  # [L]
    a_max_max: npt.NDArray[np.int64]  # [L]
    num_steps: int


@dataclass(frozen=True, kw_only=True)
class RunStats:
    """Everything of a run that is not a row."""

    batches: Sequence[BatchStats] = ()
    layers: LayerStats | None = None
    launches: Sequence[Launch] = ()


def ttft_s(token_times_s: Sequence[float]) -> float:
    """Time to the first token in seconds, NaN without tokens."""
    return token_times_s[0] if token_times_s else math.nan


def tpot_s(token_times_s: Sequence[float]) -> float:
    """Mean time per output token after the first in seconds, NaN for fewer than two tokens."""
    if len(token_times_s) < 2:
        return math.nan
    return (token_times_s[-1] - token_times_s[0]) / (len(token_times_s) - 1)
