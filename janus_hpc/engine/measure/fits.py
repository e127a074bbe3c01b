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
        costs, fit = fit_layer(batch, context, seconds)
        fitted.add(f"attention.{num_sharing}.{kind}", at, seconds.tolist(), fit)
        layers.append(costs)
    head = _column(its.head_s for its in times)
    fit = fit_linear(np.stack([np.ones(len(batch)), batch], axis=1), head)
    fitted.add(f"attention.{num_sharing}.head", at, head.tolist(), fit)
    return AttentionCosts(
        num_sharing=num_sharing,
        sparse=layers[0],
        dense=layers[1],
        head_0=fit.coefs[0],
        head_1=fit.coefs[1],
    )


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
    times: Sequence[RoundTimes], costs: ExchangeCosts, fitted: Fitted
) -> ExchangeCoefs:
    """Inside a node from rounds, between nodes from messages; zeros on a rank alone."""
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
        seconds = _column(its.seconds for its in times)
        # Rounds of two ranks take so little that their relative errors do not matter.
        scale = np.maximum(seconds, seconds.mean())
        fit = fit_linear(np.array([[1.0, *its.values()] for its in at]), seconds, scale)
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


def _column(values: Iterable[float]) -> Floats:
    return np.fromiter(values, dtype=np.float64)
