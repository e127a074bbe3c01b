"""From measured times to a profile's coefficients, with every point and how well it is met."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from janus_hpc.comm.costs import ExchangeCosts
from janus_hpc.engine.measure.attention import AttentionTimes
from janus_hpc.engine.measure.experts import ExpertTimes
from janus_hpc.engine.measure.fit import Fit, Floats, fit_layer, fit_linear
from janus_hpc.engine.measure.rounds import RoundTimes
from janus_hpc.planner.profile_data import (
    AttentionCosts,
    ExchangeCoefs,
    ExpertCosts,
    LayerCosts,
    Point,
)

# Of the median of such times.
_LEAST_SHARE = 0.2
NO_LAYER = LayerCosts(c_a=0.0, c_0=0.0, alpha=0.0, c_kv=0.0)


@dataclass
class Fitted:
    """What comes beside the coefficients."""

    residuals: dict[str, float] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)

    def add(
        self, what: str, at: Sequence[dict[str, float]], seconds: Sequence[float], fit: Fit
    ) -> None:
        """A fit's points and residual."""
        self.residuals[what] = fit.residual
        for where, measured, fitted in zip(at, seconds, fit.fitted_s, strict=True):
            self.points.append(Point(what=what, at=where, seconds=measured, fitted_s=fitted))


def fit_attention(
    num_sharing: int, times: Sequence[AttentionTimes], fitted: Fitted
) -> AttentionCosts:
    """Of so many ranks of a node that compute at once."""
    batch, context = _column(its.batch for its in times), _column(its.context for its in times)
    at = [{"b": float(its.batch), "S": float(its.context)} for its in times]
    layers = []
    for kind in ("sparse", "dense"):
        seconds = _column(getattr(its, f"{kind}_s") for its in times)
        if not seconds.any():
            layers.append(NO_LAYER)
            continue
        costs, fit = fit_layer(batch, context, _sound(seconds))
        fitted.add(f"attention.{num_sharing}.{kind}", at, seconds.tolist(), fit)
        layers.append(costs)
    head = _sound(_column(its.head_s for its in times))
    fit = fit_linear(np.stack([np.ones(len(batch)), batch], axis=1), head)
    fitted.add(f"attention.{num_sharing}.head", at, head.tolist(), fit)
    return AttentionCosts(
        num_sharing=num_sharing,
        sparse=layers[0],
        dense=layers[1],
        head_0=fit.coefs[0],
        head_1=fit.coefs[1],
    )


def _sound(seconds: Floats) -> Floats:
    """Differences of noisy times: what came out as next to nothing would count above all else in a fit of relative
    errors.
    """
    found: Floats = np.maximum(seconds, _LEAST_SHARE * np.median(seconds))
    return found


def fit_experts(num_sharing: int, times: Sequence[ExpertTimes], fitted: Fitted) -> ExpertCosts:
    """Of so many ranks of a node that compute at once."""
    at = [
        {"a": float(its.activated), "r": float(its.rows), "N": float(its.tokens)} for its in times
    ]
    features = np.array([[1.0, *its.values()] for its in at])
    seconds = _column(its.seconds for its in times)
    fit = fit_linear(features, seconds)
    fitted.add(f"experts.{num_sharing}", at, seconds.tolist(), fit)
    c_e, beta, gamma, delta = fit.coefs
    return ExpertCosts(num_sharing=num_sharing, c_e=c_e, beta=beta, gamma=gamma, delta=delta)


def fit_exchange(
    times: Sequence[RoundTimes],
    attention: Sequence[AttentionCosts],
    experts: Sequence[ExpertCosts],
    costs: ExchangeCosts,
    fitted: Fitted,
) -> ExchangeCoefs:
    """Inside a node what whole layers take beyond their stages, between nodes from messages; zeros on a rank
    alone.
    """
    at = [
        {
            "ranks": float(its.num_attention + (0 if its.colocated else its.num_expert)),
            "N": float(its.num_attention * its.rows),
            "parts": float(its.rows * its.num_expert),
        }
        for its in times
    ]
    coefs = (0.0, 0.0, 0.0, 0.0)
    if at:
        whole = _column(its.seconds for its in times)
        stages = _column(_stages_s(its, attention, experts) for its in times)
        seconds = np.maximum(whole - stages, 0.0)
        # What counts is the error of the whole.
        fit = fit_linear(np.array([[1.0, *its.values()] for its in at]), seconds, whole)
        fitted.add("exchange", at, seconds.tolist(), fit)
        coefs = fit.coefs[0], fit.coefs[1], fit.coefs[2], fit.coefs[3]
    across = [link for link in costs.links.values() if link.across]
    fixed_s, per_rank_s, per_row_s, per_part_s = coefs
    return ExchangeCoefs(
        fixed_s=fixed_s,
        per_rank_s=per_rank_s,
        per_row_s=per_row_s,
        per_part_s=per_part_s,
        message_s=min((its.across_busy_s for its in across), default=0.0),
        node_rate=max((its.node_rate for its in across), default=0.0),
    )


def _stages_s(
    its: RoundTimes, attention: Sequence[AttentionCosts], experts: Sequence[ExpertCosts]
) -> float:
    """Both stages of a layer by their fits, between measured numbers of ranks on a line."""
    attention_s = [
        max(c.sparse.c_a, c.sparse.c_0 + its.rows * (c.sparse.alpha + c.sparse.c_kv * its.context))
        for c in attention
    ]
    tokens = its.num_attention * its.rows
    experts_s = [
        c.c_e + c.beta * its.activated + c.gamma * its.own_rows + c.delta * tokens for c in experts
    ]
    sharing = [c.num_sharing for c in attention]
    return float(
        np.interp(its.num_attention, sharing, attention_s)
        + np.interp(its.num_expert, sharing, experts_s)
    )


def _column(values: Iterable[float]) -> Floats:
    return np.fromiter(values, dtype=np.float64)
