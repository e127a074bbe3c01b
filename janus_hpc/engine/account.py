"""What every batch came to, put together on world rank 0 from the reports of all ranks.

Plain numbers for the results file; decides nothing.
"""

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from janus_hpc.engine.parts import Part
from janus_hpc.engine.tallies import Tallies
from janus_hpc.experts.activity import ExpertActivity, over_ranks
from janus_hpc.placement.placement import Placement
from janus_hpc.results.stats import BatchStats, PlacementStats
from janus_hpc.routing.trace import RoutingTrace, merge_traces


@dataclass(frozen=True, kw_only=True)
class RankReport:
    """One rank's totals since its start; None and NaN where it has no part in it."""

    tallies: Tallies
    activity: ExpertActivity | None
    experts_s: float
    traces: Sequence[RoutingTrace]


def report_of(part: Part, *, with_trace: bool) -> RankReport:
    """This rank's report, in host memory; putting a trace together takes time and messages."""
    experts, gate = part.loaded.experts, part.loaded.gate
    samplers = [its.sampler for its in (experts, gate) if its is not None]
    # A host does not see what a GPU computes meanwhile.
    on_host = experts is not None and experts.device.type == "cpu"
    return RankReport(
        tallies=copy(part.tallies),
        activity=None if experts is None else experts.activity.to_cpu(),
        experts_s=experts.busy_s if experts is not None and on_host else math.nan,
        traces=[
            its.trace()
            for its in samplers
            if with_trace and its is not None and its.num_sampled_passes
        ],
    )


@dataclass(frozen=True, kw_only=True)
class BatchFacts:
    """What is known of a batch without measuring. `slots_moved` in `move_s` before it began."""

    plan: str
    split: str
    exchange: str
    num_rows: int
    seconds: float
    placement: Placement
    slots_moved: int
    move_s: float


class Account:
    """The batches of this launch so far; `trace`, `activity` and `tallies` are of all of them together.

    `tokens_per_pass`: mean tokens that a pass of the last batch had in a layer.
    """

    def __init__(self, top_k: int) -> None:
        self.batches: list[BatchStats] = []
        self.placements: list[PlacementStats] = []
        self.trace: RoutingTrace | None = None
        self.activity: ExpertActivity | None = None
        self.tallies: list[Tallies] = []
        self.tokens_per_pass = math.nan
        self._top_k = top_k
        self._before = _Totals()

    def add(self, facts: BatchFacts, reports: Sequence[RankReport]) -> None:
        """Close a batch."""
        self.tallies = [its.tallies for its in reports]
        self.activity = over_ranks([its.activity for its in reports if its.activity is not None])
        traces = [trace for its in reports for trace in its.traces]
        self.trace = merge_traces(traces) if traces else None
        totals = _totals(reports, self.tallies, self.activity)
        spent, self._before = totals.since(self._before), totals
        self.tokens_per_pass = spent.choices / self._top_k / max(spent.layer_passes, 1)
        self.batches.append(_batch_stats(facts, spent))
        if not self.placements or self.placements[-1].epoch != facts.placement.epoch:
            self.placements.append(_placement_stats(facts.placement))


@dataclass(frozen=True, kw_only=True)
class _Totals:
    """Sums since the start. `layer_passes`: passes of all layers; a_max_sum and choices are over these;
    experts_s: of each rank.
    """

    tokens: float = 0.0
    decode_steps: float = 0.0
    decode_s: float = 0.0
    passes: float = 0.0
    layer_passes: float = 0.0
    a_max_sum: float = 0.0
    choices: float = 0.0
    experts_s: npt.NDArray[np.float64] | float = 0.0

    def since(self, before: "_Totals") -> "_Totals":
        """What came after `before`."""
        names = [its.name for its in fields(self)]
        return _Totals(**{name: getattr(self, name) - getattr(before, name) for name in names})


def _totals(
    reports: Sequence[RankReport], tallies: Sequence[Tallies], activity: ExpertActivity | None
) -> _Totals:
    if activity is None:
        return _Totals()
    unknown = math.nan if activity.partial else 0.0
    return _Totals(
        tokens=sum(its.tokens_generated for its in tallies),
        decode_steps=sum(its.num_decode_steps for its in tallies),
        decode_s=sum(its.decode_s for its in tallies),
        passes=max(activity.num_passes_L, default=0),
        layer_passes=sum(activity.num_passes_L),
        a_max_sum=float(activity.a_max_sum_L.sum()) + unknown,
        choices=float(activity.tokens_LE.sum()),
        experts_s=np.array([its.experts_s for its in reports]),
    )


def _batch_stats(facts: BatchFacts, spent: _Totals) -> BatchStats:
    busy_s = np.atleast_1d(spent.experts_s)
    busy_s = busy_s[~np.isnan(busy_s)]
    return BatchStats(
        plan=facts.plan,
        split=facts.split,
        exchange=facts.exchange,
        num_rows=facts.num_rows,
        num_tokens=int(spent.tokens),
        seconds=facts.seconds,
        tpot_s=spent.decode_s / spent.decode_steps if spent.decode_steps else math.nan,
        epoch=facts.placement.epoch,
        slots_moved=facts.slots_moved,
        move_s=facts.move_s,
        a_max_mean=spent.a_max_sum / spent.layer_passes if spent.layer_passes else math.nan,
        experts_s=float(busy_s.max()) if len(busy_s) else math.nan,
        num_passes=int(spent.passes),
        placement=f"{facts.placement.kind} ({facts.placement.why})",
    )


def _placement_stats(placement: Placement) -> PlacementStats:
    return PlacementStats(
        epoch=placement.epoch,
        slots_LRC=placement.slots_LRC,
        kind=placement.kind,
        why=placement.why,
        digest=placement.digest,
    )
