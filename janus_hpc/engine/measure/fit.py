"""Fits coefficients that are never negative to measured times, by least squares on relative errors.

Pure numpy; knows nothing of how times were measured.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from janus_hpc.planner.profile_data import LayerCosts

# Legend: R measurements, C coefficients.

Floats = npt.NDArray[np.float64]
# As many points at least have the slope of a layer's costs.
LEAST_ABOVE = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """`coefs` >= 0, the times they give, and the mean relative error."""

    coefs: tuple[float, ...]
    fitted_s: tuple[float, ...]
    residual: float


def nnls(a_RC: Floats, b_R: Floats) -> Floats:
    """The x_C >= 0 with the least |a x - b|^2 (Lawson and Hanson, 1974, the active-set method)."""
    num = a_RC.shape[1]
    x_C, free_C = np.zeros(num), np.zeros(num, dtype=np.bool_)
    tolerance = 1e-12 * max(float(np.abs(a_RC.T @ b_R).max(initial=0.0)), 1e-300)
    # Each turn frees one coefficient; it ends sooner but for rounding.
    for _ in range(30 * num):
        slope_C = np.where(free_C, -np.inf, a_RC.T @ (b_R - a_RC @ x_C))
        if free_C.all() or slope_C.max() <= tolerance:
            break
        free_C[slope_C.argmax()] = True
        x_C = _inward(a_RC, b_R, x_C, free_C)
    return x_C


def _inward(a_RC: Floats, b_R: Floats, x_C: Floats, free_C: npt.NDArray[np.bool_]) -> Floats:
    """From x towards the best point over the free coefficients; those that reach 0 are bound again."""
    while free_C.any():
        best_C = np.zeros(len(x_C))
        best_C[free_C] = np.linalg.lstsq(a_RC[:, free_C], b_R, rcond=None)[0]
        negative = free_C & (best_C <= 0)
        if not negative.any():
            return best_C
        steps = x_C[negative] / np.maximum(x_C[negative] - best_C[negative], 1e-300)
        x_C = x_C + steps.min() * (best_C - x_C)
        free_C &= x_C > 1e-14 * max(float(x_C.max()), 1e-300)
        x_C = np.where(free_C, x_C, 0.0)
    return np.zeros(len(x_C))


def fit_linear(features_RC: Floats, seconds_R: Floats, scale_R: Floats | None = None) -> Fit:
    """seconds = features x coefs. Errors count in proportion to `scale_R`, by default the seconds."""
    scale_R = seconds_R if scale_R is None else scale_R
    weights_R = 1 / np.maximum(scale_R, 1e-9)
    # Columns of one size: batch sizes, and products of them with contexts, are orders apart.
    sizes_C = np.maximum(np.abs(features_RC * weights_R[:, None]).max(axis=0), 1e-300)
    scaled_RC = features_RC * weights_R[:, None] / sizes_C
    coefs_C = nnls(scaled_RC, seconds_R * weights_R) / sizes_C
    return _fit(coefs_C, features_RC @ coefs_C, seconds_R, scale_R)


def fit_layer(batch_R: Floats, context_R: Floats, seconds_R: Floats) -> tuple[LayerCosts, Fit]:
    """max(c_a, c_0 + alpha b + c_kv b S): the floor c_a is the mean of the k least times, for the best k."""
    features_RC = np.stack([np.ones(len(batch_R)), batch_R, batch_R * context_R], axis=1)
    best_c_a, best = 0.0, fit_linear(features_RC, seconds_R)
    order_R = seconds_R.argsort()
    for num_below in range(1, len(seconds_R) - LEAST_ABOVE + 1):
        c_a, above = float(seconds_R[order_R[:num_below]].mean()), order_R[num_below:]
        coefs_C = np.array(fit_linear(features_RC[above], seconds_R[above]).coefs)
        tried = _fit(coefs_C, np.maximum(c_a, features_RC @ coefs_C), seconds_R, seconds_R)
        # A floor has to earn its keep.
        if tried.residual < 0.9 * best.residual:
            best_c_a, best = c_a, tried
    c_0, alpha, c_kv = best.coefs
    return LayerCosts(c_a=best_c_a, c_0=c_0, alpha=alpha, c_kv=c_kv), best


def _fit(coefs_C: Floats, fitted_R: Floats, seconds_R: Floats, scale_R: Floats) -> Fit:
    errors_R = np.abs(fitted_R - seconds_R) / np.maximum(scale_R, 1e-9)
    return Fit(
        coefs=tuple(float(its) for its in coefs_C),
        fitted_s=tuple(float(its) for its in fitted_R),
        residual=float(errors_R.mean()) if len(errors_R) else 0.0,
    )
