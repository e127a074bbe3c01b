"""What a run measured about itself, as the results file keeps it: plain data, filled by the
engine.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from janus_hpc.results.manifest import Launch
from janus_hpc.routing.trace import RoutingTrace

# Legend: L MoE layers, E experts, R expert ranks, C slots of a rank.


@dataclass(frozen=True, kw_only=True)
class BatchStats:
    """One batch: rows run under one split and one placement. NaN where nothing told the figure.

    `roles` has a letter a world rank (a, e, c, p); `decision` says what was decided at the border before
    the batch, and why: there `slots_moved` slots and `moved_bytes` of weights were filled in `move_s`.
    `began_s` counts from the start of the run, or of the shard that `shard` numbers from 0. `epoch` is the
    placement's among the run's; `placement` says its kind and why. `a_max_mean` is over layers and passes,
    `experts_s` the seconds that the busiest expert rank computed.

    Means of a decode step are over `num_decode_steps` steps without prefill, or over all where that is 0:
    `decode_tpot_s` = `attention_s` + `moe_s` + `comm_s`, and `mean_batch` sequences on all ranks with
    `mean_context` tokens each. The predicted ones are the planner's.
    """

    plan: str
    split: str
    exchange: str
    num_rows: int
    num_tokens: int
    seconds: float
    tpot_s: float
    roles: str = ""
    decision: str = ""
    began_s: float = 0.0
    tpot_predicted_s: float = math.nan
    num_decode_steps: int = 0
    decode_tpot_s: float = math.nan
    attention_s: float = math.nan
    moe_s: float = math.nan
    comm_s: float = math.nan
    attention_predicted_s: float = math.nan
    moe_predicted_s: float = math.nan
    comm_predicted_s: float = math.nan
    mean_batch: float = math.nan
    mean_context: float = math.nan
    microbatches: int = 0
    epoch: int = 0
    slots_moved: int = 0
    moved_bytes: int = 0
    move_s: float = 0.0
    move_predicted_s: float = math.nan
    gain_predicted_s: float = math.nan
    a_max_mean: float = math.nan
    experts_s: float = math.nan
    num_passes: int = 0
    placement: str = ""
    shard: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class PlacementStats:
    """One placement of the run: the expert in each slot, -1 in an empty one, and where it came from."""

    epoch: int
    slots_LRC: npt.NDArray[np.int32]
    kind: str
    why: str
    digest: str
    shard: int = 0


@dataclass(frozen=True, kw_only=True)
class LayerStats:
    """Routing of the L MoE layers over `num_steps` passes, one a microbatch of a step: tokens per
    expert, activated experts on the fullest rank, and activated replicas over all ranks (mean
    over passes; None or NaN where unknown).
    """

    expert_activations: npt.NDArray[np.int64]  # [L, E]
    a_max_mean: npt.NDArray[np.float64]  # [L]
    a_max_max: npt.NDArray[np.int64]  # [L]
    num_steps: int
    activated_mean: npt.NDArray[np.float64] | None = None  # [L]


@dataclass(frozen=True, kw_only=True)
class RunStats:
    """Everything of a run that is not a row."""

    batches: Sequence[BatchStats] = ()
    layers: LayerStats | None = None
    launches: Sequence[Launch] = ()
    placements: Sequence[PlacementStats] = ()
    routing: RoutingTrace | None = None


def ttft_s(token_times_s: Sequence[float]) -> float:
    """Time to the first token in seconds, NaN without tokens."""
    return token_times_s[0] if token_times_s else math.nan


def tpot_s(token_times_s: Sequence[float]) -> float:
    """Mean time per output token after the first in seconds, NaN for fewer than two tokens."""
    if len(token_times_s) < 2:
        return math.nan
    return (token_times_s[-1] - token_times_s[0]) / (len(token_times_s) - 1)
