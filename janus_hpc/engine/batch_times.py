"""Where the time of a batch's decode steps went, from what every rank summed up.

Pure arithmetic over the ranks' reports.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from janus_hpc.engine.tallies import StepSums, Tallies


@dataclass(frozen=True, kw_only=True)
class BatchTimes:
    """Means a decode step, in seconds; NaN where unknown. `num_decode_steps`: steps without prefill, which
    the means are over; where that is 0 they are over all steps.

    `attention_s` and `moe_s`: what the slowest attention and the busiest expert rank compute, `comm_s` the
    rest: exchange and waiting, less what overlaps. `mean_batch`: sequences over all ranks; `mean_context`:
    tokens cached of each.
    """

    num_decode_steps: int = 0
    decode_tpot_s: float = math.nan
    attention_s: float = math.nan
    moe_s: float = math.nan
    comm_s: float = math.nan
    mean_batch: float = math.nan
    mean_context: float = math.nan


def batch_times(tallies: Sequence[Tallies], *, on_host: bool) -> BatchTimes:
    """The ranks' tallies of one batch as means. `on_host`: the host's clock sees what ranks compute."""
    num_decode_steps = max(its.decoding.num_steps for its in tallies)
    sums = [its.decoding if num_decode_steps else its.mixed for its in tallies]
    sums = [its for its in sums if its.num_steps]
    if not sums:
        return BatchTimes()
    num_steps = max(its.num_steps for its in sums)
    num_sequences = sum(its.num_sequences for its in sums)
    tpot_s = _slowest([its for its in sums if its.seconds], "seconds")
    attention_s = _slowest(sums, "attention_s") if on_host else math.nan
    moe_s = _slowest(sums, "experts_s") if on_host else math.nan
    return BatchTimes(
        num_decode_steps=num_decode_steps,
        decode_tpot_s=tpot_s,
        attention_s=attention_s,
        moe_s=moe_s,
        comm_s=tpot_s - attention_s - moe_s,
        mean_batch=num_sequences / num_steps,
        mean_context=sum(its.num_context for its in sums) / max(num_sequences, 1),
    )


def _slowest(sums: Sequence[StepSums], name: str) -> float:
    return max((float(getattr(its, name)) / its.num_steps for its in sums), default=math.nan)
