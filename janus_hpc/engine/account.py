"""What every batch came to, put together on world rank 0 from the reports of all ranks.

Plain numbers for the results file; decides nothing.
"""

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import asdict, dataclass
from typing import Any

from janus_hpc.engine.batch_times import batch_times
from janus_hpc.engine.decision import Prediction
from janus_hpc.engine.parts import Part
from janus_hpc.engine.tallies import Tallies
from janus_hpc.experts.activity import ExpertActivity, over_ranks
from janus_hpc.placement.placement import Placement
from janus_hpc.results.stats import BatchStats, PlacementStats
from janus_hpc.routing.trace import RoutingTrace, merge_traces


@dataclass(frozen=True, kw_only=True)
class RankReport:
    """What one rank did in a batch; None where it has no part in it.

    `experts_s`: seconds it computed experts, NaN where it has none or the host cannot see them.
    """

    tallies: Tallies
    activity: ExpertActivity | None
    experts_s: float
    traces: Sequence[RoutingTrace]
    on_host: bool = True


class Reporter:
    """One rank's reports, batch after batch, whatever its role."""

    def __init__(self) -> None:
        self._before = Tallies()

    def report(self, part: Part, *, with_trace: bool) -> RankReport:
        """What came since the last report, in host memory; it is then counted anew.

        Putting a trace together takes time and messages; without it what was sampled waits in the part.
        """
        tallies = part.tallies.plus(self._before, -1)
        self._before = copy(part.tallies)
        experts, on_host = part.loaded.experts, _computes_on_host(part)
        activity, experts_s = None, math.nan
        if experts is not None:
            activity = experts.activity.to_cpu()
            experts_s = experts.busy_s if on_host else math.nan
            experts.activity.clear()
            experts.busy_s = 0.0
        return RankReport(
            tallies=tallies,
            activity=activity,
            experts_s=experts_s,
            traces=_traces(part) if with_trace else [],
            on_host=on_host,
        )


def _computes_on_host(part: Part) -> bool:
    """Whether the host's clock sees what this rank computes: not on a GPU."""
    experts, model = part.loaded.experts, part.loaded.model
    devices = [] if experts is None else [experts.device]
    devices += [] if model is None else [model.cos_Ph.device]
    return all(its.type == "cpu" for its in devices)


def _traces(part: Part) -> list[RoutingTrace]:
    """What this rank's samplers have seen; they begin anew."""
    found: list[RoutingTrace] = []
    for side in (part.loaded.experts, part.loaded.gate):
        sampler = None if side is None else side.sampler
        if sampler is not None and sampler.num_sampled_passes:
            found.append(sampler.trace())
            sampler.clear()
    return found


@dataclass(frozen=True, kw_only=True)
class BatchFacts:
    """What is known of a batch without measuring what it computes. `began_s`: since the run's start.

    `slots_moved` and `moved_bytes` in `move_s` before it began, by the `decision` at that border.
    """

    plan: str
    split: str
    exchange: str
    num_rows: int
    seconds: float
    placement: Placement
    slots_moved: int
    move_s: float
    roles: str = ""
    decision: str = ""
    began_s: float = 0.0
    moved_bytes: int = 0
    microbatches: int = 1
    prediction: Prediction | None = None


class Account:
    """The batches of this launch so far; `trace`, `activity` and `tallies` are of all of them together, the
    last one a world rank.

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

    def add(self, facts: BatchFacts, reports: Sequence[RankReport]) -> None:
        """Close a batch."""
        activity = over_ranks([its.activity for its in reports if its.activity is not None])
        self.batches.append(_batch_stats(facts, reports, activity))
        if not self.placements or self.placements[-1].epoch != facts.placement.epoch:
            self.placements.append(_placement_stats(facts.placement))
        if activity is not None:
            num_passes = sum(activity.num_passes_L)
            choices = float(activity.tokens_LE.sum())
            self.tokens_per_pass = choices / self._top_k / max(num_passes, 1)
            self._add_activity(activity)
        traces = [trace for its in reports for trace in its.traces]
        if traces:
            self.trace = merge_traces(traces if self.trace is None else [self.trace, *traces])
        before = self.tallies or [Tallies()] * len(reports)
        pairs = zip(before, reports, strict=True)
        self.tallies = [total.plus(its.tallies) for total, its in pairs]

    def _add_activity(self, activity: ExpertActivity) -> None:
        if self.activity is None:
            self.activity = activity
        else:
            self.activity.add(activity)


def _batch_stats(
    facts: BatchFacts, reports: Sequence[RankReport], activity: ExpertActivity | None
) -> BatchStats:
    tallies = [its.tallies for its in reports]
    decode_steps = sum(its.num_decode_steps for its in tallies)
    decode_s = sum(its.decode_s for its in tallies)
    times = batch_times(tallies, on_host=all(its.on_host for its in reports))
    experts_s = [its.experts_s for its in reports if not math.isnan(its.experts_s)]
    return BatchStats(
        plan=facts.plan,
        split=facts.split,
        exchange=facts.exchange,
        roles=facts.roles,
        decision=facts.decision,
        num_rows=facts.num_rows,
        num_tokens=sum(its.tokens_generated for its in tallies),
        began_s=facts.began_s,
        seconds=facts.seconds,
        tpot_s=decode_s / decode_steps if decode_steps else math.nan,
        epoch=facts.placement.epoch,
        slots_moved=facts.slots_moved,
        moved_bytes=facts.moved_bytes,
        move_s=facts.move_s,
        a_max_mean=_a_max_mean(activity),
        experts_s=max(experts_s, default=math.nan),
        num_passes=0 if activity is None else max(activity.num_passes_L, default=0),
        placement=f"{facts.placement.kind} ({facts.placement.why})",
        microbatches=facts.microbatches,
        **_predicted(facts.prediction or Prediction()),
        **asdict(times),
    )


def _predicted(prediction: Prediction) -> dict[str, Any]:
    return {
        "tpot_predicted_s": prediction.tpot_s,
        "attention_predicted_s": prediction.attention_s,
        "moe_predicted_s": prediction.moe_s,
        "comm_predicted_s": prediction.comm_s,
        "move_predicted_s": prediction.move_s,
        "gain_predicted_s": prediction.gain_s,
    }


def _a_max_mean(activity: ExpertActivity | None) -> float:
    """Over layers and passes; NaN where no rank saw all choices."""
    if activity is None or activity.partial or not sum(activity.num_passes_L):
        return math.nan
    return float(activity.a_max_sum_L.sum()) / sum(activity.num_passes_L)


def _placement_stats(placement: Placement) -> PlacementStats:
    return PlacementStats(
        epoch=placement.epoch,
        slots_LRC=placement.slots_LRC,
        kind=placement.kind,
        why=placement.why,
        digest=placement.digest,
    )
