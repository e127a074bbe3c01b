"""The fits behind a profile: the same as scipy's, and known coefficients come back out of noisy times."""

import numpy as np
import pytest
from scipy.optimize import nnls as scipy_nnls

from janus_hpc.engine.measure.attention import AttentionTimes
from janus_hpc.engine.measure.fit import fit_layer, fit_linear, nnls
from janus_hpc.engine.measure.fits import Fitted, fit_attention


@pytest.mark.parametrize("seed", range(30))
def test_equals_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_rows, num = int(rng.integers(3, 40)), int(rng.integers(1, 6))
    a_RC = rng.normal(size=(num_rows, num)) * 10.0 ** rng.integers(-2, 3, num)
    b_R = rng.normal(size=num_rows)
    wanted, norm = scipy_nnls(a_RC, b_R)
    found = nnls(a_RC, b_R)
    assert (found >= 0).all()
    assert np.linalg.norm(a_RC @ found - b_R) == pytest.approx(norm, rel=1e-9)
    if num_rows >= num:
        assert found == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_columns_may_depend_on_each_other_or_be_zero() -> None:
    a_RC = np.array([[1.0, 2.0, 0.0], [2.0, 4.0, 0.0], [3.0, 6.0, 0.0]])
    found = nnls(a_RC, np.array([2.0, 4.0, 6.0]))
    assert a_RC @ found == pytest.approx([2.0, 4.0, 6.0])
    assert (nnls(a_RC, -np.ones(3)) == 0).all()


def test_known_coefficients_come_back() -> None:
    rng = np.random.default_rng(1)
    wanted = np.array([3e-4, 1e-4, 5e-6, 0.0])
    features = np.stack([np.ones(80), *rng.integers(1, 300, (3, 80))], axis=1)
    seconds = features @ wanted * rng.normal(1, 0.03, 80)
    fit = fit_linear(features, seconds)
    assert np.array(fit.coefs) == pytest.approx(wanted, rel=0.1, abs=1e-6)
    assert fit.residual < 0.04
    assert fit.fitted_s == pytest.approx(features @ np.array(fit.coefs))


@pytest.mark.parametrize("c_a", [0.0, 1e-3])
def test_a_layer_with_and_without_a_floor(c_a: float) -> None:
    rng = np.random.default_rng(2)
    grid = [(b, s) for b in (1, 4, 16, 64, 128) for s in (64, 256, 1024)]
    b, context = np.array(grid, dtype=float).T
    line = 1e-4 + 2e-5 * b + 1e-7 * b * context
    seconds = np.maximum(c_a, line) * rng.normal(1, 0.02, len(grid))
    costs, fit = fit_layer(b, context, seconds)
    assert fit.residual < 0.05
    assert costs.c_kv == pytest.approx(1e-7, rel=0.2)
    assert costs.alpha == pytest.approx(2e-5, rel=0.4)
    if c_a:
        assert costs.c_a == pytest.approx(c_a, rel=0.1)
    else:
        assert costs.c_0 == pytest.approx(1e-4, rel=0.3)


def test_few_points_do_not_break_it() -> None:
    costs, fit = fit_layer(np.array([1.0]), np.array([64.0]), np.array([2e-3]))
    assert fit.fitted_s == pytest.approx([2e-3])
    assert costs.c_0 + costs.alpha + costs.c_kv > 0


def test_one_time_that_came_out_as_nothing_does_not_erase_the_rest() -> None:
    """Times outside the layers are differences of noisy ones, and may come out as 0."""
    times = [
        AttentionTimes(
            batch=b, context=64, sparse_s=1e-3, dense_s=0.0, head_s=head_s, steps_s=(1e-3,)
        )
        for b, head_s in (
            (1, 1.0e-3),
            (8, 1.1e-3),
            (64, 1.6e-3),
            (1, 0.0),
            (8, 1.1e-3),
            (64, 1.6e-3),
        )
    ]
    costs = fit_attention(1, times, Fitted())
    assert costs.head_0 + 64 * costs.head_1 == pytest.approx(1.6e-3, rel=0.5)
    assert costs.head_0 > 2e-4
