"""vCLUB against numpy and closed forms; the independent estimate against what is planted."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hisam_jax.tokenizer import mutual_information as mi


def reference_bound(params, x, y, rows) -> float:
    mean, log_variance = (np.asarray(v, np.float64) for v in mi.conditional(params, x, 1.0))
    y = np.asarray(y, np.float64)

    def log_q(i, j):
        return -0.5 * np.sum((y[j] - mean[i]) ** 2 / np.exp(log_variance[i]) + log_variance[i])

    return np.mean([log_q(i, i) for i in rows]) - np.mean([log_q(i, j) for i in rows for j in rows])


def test_bound_equals_the_sum_over_all_pairs():
    params = mi.init_conditional(np.random.default_rng(0), 3, 2, 8)
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(6, width)), jnp.float32) for width in (3, 2))
    weight = jnp.array([1.0, 1, 0, 1, 1, 0])
    np.testing.assert_allclose(mi.vclub(params, x, y, weight), reference_bound(params, x, y, [0, 1, 3, 4]), rtol=1e-4)


@pytest.mark.parametrize("live", [0, 1])
def test_too_few_rows_tell_nothing(live):
    params = mi.init_conditional(np.random.default_rng(0), 3, 2, 8)
    x, y, weight = jnp.ones((4, 3)), jnp.arange(8.0).reshape(4, 2), (jnp.arange(4) < live).astype(jnp.float32)
    value, gradient = jax.value_and_grad(lambda y: mi.vclub(params, x, y, weight))(y)
    np.testing.assert_allclose(value, 0, atol=1e-5)
    assert np.all(np.isfinite(gradient)) and np.all(np.asarray(gradient[live:]) == 0)


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_a_fitted_bound_has_its_closed_form_for_gaussians(correlation):
    """With the true conditional the bound is r^2 / (1 - r^2), above the information -log(1 - r^2) / 2."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2000, 1))
    y = correlation * x + np.sqrt(1 - correlation**2) * rng.normal(size=(2000, 1))
    x, y, weight = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), jnp.ones(2000)
    params, adam = mi.init_conditional(np.random.default_rng(0), 1, 1, 16), optax.adam(1e-2)

    def climb(carry, _):
        params, state = carry
        gradients = jax.grad(lambda p: -mi.log_likelihood(p, x, y, weight))(params)
        updates, state = adam.update(gradients, state)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(climb, (params, adam.init(params)), length=300)
    bound, closed = float(mi.vclub(params, x, y, weight)), correlation**2 / (1 - correlation**2)
    np.testing.assert_allclose(bound, closed, rtol=0.1, atol=0.02)
    assert bound > -0.5 * np.log(1 - correlation**2) - 0.02


def test_the_independent_estimate_is_near_zero_for_independent_codes_and_near_the_truth_for_equal_ones():
    """Plug-in information of independent 256-way codes on 12,101 items is far from 0: the trap that it avoids."""
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 256, (2, 12101))
    assert mi.plug_in_information(a, b) > 1.5
    assert abs(mi.excess_information(a, b, rng)) < 0.05
    c = rng.integers(0, 4, 5000)
    np.testing.assert_allclose(mi.excess_information(c, 3 - c, rng), np.log(4), rtol=0.01)
    assert mi.excess_information(c[:1], c[:1], rng) == 0
