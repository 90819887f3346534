"""Alignment losses against plain numpy, their masks, and the traps of volumes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from hisam_jax.tokenizer import alignment

LOSSES = ("infonce", "volume", "rbf_volume")


def unit(rng: np.random.Generator, rows: int, width: int = 5) -> np.ndarray:
    x = rng.normal(size=(rows, width))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def views_of(seed: int, rows: int, names: str = "ab") -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    rng = np.random.default_rng(seed)
    return {m: jnp.asarray(unit(rng, rows)) for m in names}, {m: jnp.ones(rows, bool) for m in names}


@functools.partial(jax.jit, static_argnums=0)  # op by op, hundreds of tiny compilations take minutes
def loss(name: str, views, present):
    return alignment.alignment_loss(name, views, present, temperature=0.2, smoothing=0.1, width=1.0)


def reference_cross_entropy(logits: np.ndarray, valid: np.ndarray, smoothing: float) -> float:
    rows, total = np.flatnonzero(valid), 0.0
    for way in (logits, logits.T):
        for i in rows:
            log_p = way[i, rows] - np.log(np.exp(way[i, rows]).sum())
            target = np.full(len(rows), smoothing / len(rows))
            target[list(rows).index(i)] += 1 - smoothing
            total -= (target * log_p).sum() / len(rows) / 2
    return total


def reference_volume(views: list[np.ndarray], i: int, j: int, rbf: bool) -> float:
    vectors = [views[0][i], *(v[j] for v in views[1:])]
    gram = np.array([[a @ b for b in vectors] for a in vectors], np.float64)
    if rbf:
        gram = np.array([[np.exp(-np.sum((a - b) ** 2) / 2) for b in vectors] for a in vectors])
    return np.sqrt(max(np.linalg.det(gram), 0) + 1e-6)


@pytest.mark.parametrize("names", ["ab", "abc"])
@pytest.mark.parametrize("kind", ["volume", "rbf_volume"])
def test_volume_losses_equal_the_reference_with_items_lacking_a_view(kind, names):
    views, present = views_of(0, 6, names)
    present["b"] = present["b"].at[2].set(False)
    plain = [np.asarray(v, np.float64) for v in views.values()]
    volumes = [[reference_volume(plain, i, j, kind == "rbf_volume") for j in range(6)] for i in range(6)]
    expected = reference_cross_entropy(-np.array(volumes) / 0.2, np.asarray(present["b"]), 0.1)
    np.testing.assert_allclose(loss(kind, views, present), expected, rtol=2e-4)


def test_infonce_averages_pairs_each_over_the_items_that_have_both():
    views, present = views_of(1, 5, "abc")
    present["c"] = jnp.array([True, True, False, True, False])
    expected = np.mean(
        [
            reference_cross_entropy(
                np.asarray(views[x] @ views[y].T, np.float64) / 0.2, np.asarray(present[x] & present[y]), 0.0
            )
            for x, y in ("ab", "ac", "bc")
        ]
    )
    np.testing.assert_allclose(loss("infonce", views, present), expected, rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name):
    views, present = views_of(2, 4, "abc")
    check_grads(lambda v: loss(name, v, present), (views,), order=1, modes=["rev"], atol=2e-2, rtol=2e-2, eps=1e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_absent_views_have_neither_effect_nor_gradient(name):
    views, present = views_of(3, 6)
    present["b"] = present["b"].at[4].set(False)
    value, gradients = jax.value_and_grad(lambda v: loss(name, v, present))(views)
    assert np.all(np.asarray(gradients["b"][4]) == 0) and np.all(np.asarray(gradients["a"][4]) == 0)
    changed = {**views, "b": views["b"].at[4].set(-views["b"][0])}
    np.testing.assert_allclose(loss(name, changed, present), value, rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("having", [0, 1])
def test_too_few_items_with_both_views_give_zero_and_finite_gradients(name, having):
    views, present = views_of(4, 5)
    present["b"] = jnp.arange(5) < having
    value, gradients = jax.value_and_grad(lambda v: loss(name, v, present))(views)
    assert value == 0 and all(np.all(np.isfinite(g)) for g in gradients.values())


@pytest.mark.parametrize("name", ("none", *LOSSES))
def test_one_modality_is_no_alignment(name):
    views, present = views_of(5, 4, "a")
    assert loss(name, views, present) == 0


def test_linear_volume_cannot_tell_opposite_from_equal_but_the_kernel_can():
    """The first trap of volumes: det [[1, c], [c, 1]] = 1 - c^2 is the same for c = 1 and c = -1."""
    z = jnp.asarray(unit(np.random.default_rng(0), 1))
    same, opposite = {"a": z, "b": z}, {"a": z, "b": -z}
    linear = [alignment.tuple_volumes(v, "linear")[0, 0] for v in (same, opposite)]
    radial = [alignment.tuple_volumes(v, "rbf")[0, 0] for v in (same, opposite)]
    np.testing.assert_allclose(linear[0], linear[1], atol=1e-5)
    assert radial[1] > radial[0] + 0.9


@pytest.mark.parametrize("names", ["ab", "abc"])
@pytest.mark.parametrize("kind", ["linear", "rbf"])
def test_gradient_of_the_root_is_finite_at_volume_zero(kind, names):
    """The second trap: d sqrt(x) / dx at 0; eps under the root bounds it."""
    z = jnp.asarray(unit(np.random.default_rng(1), 3))
    gradients = jax.grad(lambda v: alignment.tuple_volumes(v, kind).sum())({m: z for m in names})
    assert all(np.all(np.isfinite(g)) for g in gradients.values())


def test_consensus_is_the_normalised_mean_of_present_views_and_zero_without_any():
    views, present = views_of(6, 3)
    present = {"a": jnp.array([True, True, False]), "b": jnp.array([True, False, False])}
    h = np.asarray(alignment.consensus(views, present))
    mean = np.asarray(views["a"][0] + views["b"][0])
    np.testing.assert_allclose(h[0], mean / np.linalg.norm(mean), rtol=1e-5)
    np.testing.assert_allclose(h[1], views["a"][1], rtol=1e-5)
    assert np.all(h[2] == 0)
    gradients = jax.grad(lambda v: alignment.consensus(v, present).sum())(views)
    assert all(np.all(np.isfinite(g)) for g in gradients.values())


def test_uniformity_equals_the_reference_and_ignores_invalid_rows():
    x = unit(np.random.default_rng(7), 5)
    valid = np.array([True, True, False, True, True])
    rows = x[valid].astype(np.float64)
    terms = [np.exp(-2 * np.sum((a - b) ** 2)) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
    np.testing.assert_allclose(
        alignment.uniformity(jnp.asarray(x), jnp.asarray(valid)), np.log(np.mean(terms)), rtol=1e-4
    )
    assert alignment.uniformity(jnp.asarray(x), jnp.zeros(5, bool)) == 0
