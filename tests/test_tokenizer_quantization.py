"""Residual quantisation, moving averages, dead codes and k-means against plain numpy and scikit-learn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from hisam_jax.tokenizer import quantization


def make(seed: int, rows: int, width: int, sizes: tuple[int, ...]) -> tuple[np.ndarray, list[np.ndarray]]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, width)).astype(np.float32), [
        rng.normal(size=(size, width)).astype(np.float32) for size in sizes
    ]


@given(
    seed=st.integers(0, 999),
    rows=st.integers(1, 9),
    width=st.integers(1, 4),
    sizes=st.lists(st.integers(1, 7), min_size=0, max_size=3),
)
def test_codes_are_nearest_and_the_sum_is_of_what_was_chosen(seed, rows, width, sizes):
    x, books = make(seed, rows, width, tuple(sizes))
    quantized = quantization.residual_quantize(jnp.asarray(x), books)
    rest, total = x.astype(np.float64), np.zeros_like(x, np.float64)
    for depth, book in enumerate(books):
        code = np.asarray(quantized.codes_NL[:, depth])
        distance = ((rest[:, None] - book[None]) ** 2).sum(-1)
        assert np.all(distance[np.arange(rows), code] <= distance.min(1) + 1e-4)
        rest, total = rest - book[code], total + book[code]
    np.testing.assert_allclose(quantized.sum_ND, total, atol=1e-4)
    assert quantized.codes_NL.shape == (rows, len(sizes)) and quantized.codes_NL.dtype == jnp.int32


def test_quantising_a_code_gives_that_code():
    _, (book,) = make(0, 1, 6, (16,))
    assert np.array_equal(quantization.nearest(jnp.asarray(book), jnp.asarray(book)), np.arange(16))


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other():
    x, q = jnp.array([[1.0, 2.0]]), jnp.array([[5.0, 7.0]])
    value, gradient = jax.value_and_grad(
        lambda x: jnp.sum(quantization.straight_through(x, q) * jnp.array([2.0, 3.0]))
    )(x)
    assert value == 2 * 5 + 3 * 7 and np.array_equal(gradient, [[2.0, 3.0]])


def test_commitment_is_the_squared_norm_and_moves_only_the_input():
    x, books = make(1, 4, 3, (5, 5))
    weight = jnp.array([1.0, 1.0, 0.0, 1.0])

    def both(x, books):
        return quantization.commitment_losses(quantization.residual_quantize(x, books), weight)

    left, expected = x, 0.0
    for book in books:
        left = left - book[np.asarray(quantization.nearest(jnp.asarray(left), jnp.asarray(book)))]
        expected += (left**2).sum(1)[[0, 1, 3]].mean()
    for value in both(x, books):
        np.testing.assert_allclose(value, expected, rtol=1e-5)
    of_x, of_books = jax.grad(lambda x, b: both(x, b)[0], argnums=(0, 1))(x, books)
    assert np.all(np.asarray(of_x[2]) == 0) and np.any(np.asarray(of_x) != 0)
    assert all(np.all(np.asarray(g) == 0) for g in of_books)
    of_x, of_books = jax.grad(lambda x, b: both(x, b)[1], argnums=(0, 1))(x, books)
    assert np.all(np.asarray(of_x) == 0) and all(np.any(np.asarray(g) != 0) for g in of_books)


def test_moving_average_equals_the_reference_and_leaves_unused_codes_where_they_are():
    x, (vectors,) = make(2, 6, 3, (4,))
    code, weight = np.array([0, 0, 1, 1, 2, 2]), np.array([1, 1, 1, 0, 1, 1], np.float32)
    book = quantization.make_book(jnp.asarray(vectors), 6.0)
    after = quantization.ema_update(book, jnp.asarray(x), jnp.asarray(code), jnp.asarray(weight), 0.9)
    for k in range(4):
        rows = (code == k) & (weight > 0)
        count = 0.9 * 1.5 + 0.1 * rows.sum()
        total = 0.9 * 1.5 * vectors[k] + 0.1 * x[rows].sum(0)
        np.testing.assert_allclose(after.count_K[k], count, rtol=1e-5)
        np.testing.assert_allclose(after.vectors_KD[k], total / count, rtol=1e-4)
    np.testing.assert_allclose(after.vectors_KD[3], vectors[3], rtol=1e-5)


def test_dead_codes_move_to_live_rows_that_are_badly_served():
    x, (vectors,) = make(3, 8, 2, (4,))
    book = quantization.Book(jnp.asarray(vectors), jnp.array([3.0, 0.0, 3.0, 0.01]), jnp.asarray(vectors))
    error, weight = jnp.array([0.0, 0, 0, 5, 0, 7, 9, 0]), jnp.array([1.0, 1, 1, 1, 1, 1, 0, 1])
    after, dead = quantization.reseed_dead(jax.random.key(0), book, jnp.asarray(x), error, weight, 0.1)
    assert dead == 2
    for k in (1, 3):
        assert any(np.array_equal(after.vectors_KD[k], x[row]) for row in (3, 5)), "row 6 is not live, others need none"
        assert after.count_K[k] == weight.sum() / 4
    np.testing.assert_array_equal(after.vectors_KD[jnp.array([0, 2])], vectors[[0, 2]])


def test_nothing_is_reseeded_from_an_empty_batch():
    x, (vectors,) = make(4, 3, 2, (4,))
    book = quantization.Book(jnp.asarray(vectors), jnp.zeros(4), jnp.zeros((4, 2)))
    after, dead = quantization.reseed_dead(jax.random.key(0), book, jnp.asarray(x), jnp.zeros(3), jnp.zeros(3), 0.1)
    assert dead == 0 and np.array_equal(after.vectors_KD, vectors)


def test_kmeans_is_about_as_good_as_scikit_learn():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(20, 8))[rng.integers(0, 20, 1500)] + 0.3 * rng.normal(size=(1500, 8))).astype(np.float32)
    theirs = KMeans(20, n_init=5, max_iter=30, random_state=0).fit(x).inertia_
    fit = jax.jit(quantization.kmeans, static_argnums=(3, 4))
    ours = []
    for seed in range(5):
        centres = fit(jax.random.key(seed), jnp.asarray(x), jnp.ones(1500), 20, 30)
        ours.append(float(quantization.squared_distances(jnp.asarray(x), centres).min(1).sum()))
    assert min(ours) < 1.02 * theirs


def test_kmeans_takes_no_row_of_weight_zero():
    x = np.concatenate([np.zeros((50, 2)), np.full((50, 2), 100.0)]).astype(np.float32) + np.arange(100)[:, None] / 1000
    weight = (np.arange(100) < 50).astype(np.float32)
    centres = quantization.kmeans(jax.random.key(1), jnp.asarray(x), jnp.asarray(weight), 4, 5)
    assert float(jnp.max(centres)) < 1


@pytest.mark.parametrize("distinct", [1, 3])
def test_fewer_distinct_rows_than_centres_are_no_division_by_zero(distinct):
    x = np.random.default_rng(0).normal(size=(distinct, 3)).astype(np.float32)[np.arange(12) % distinct]
    books = quantization.residual_kmeans(jax.random.key(0), jnp.asarray(x), jnp.ones(12), (8, 8), 3)
    left = quantization.residual_quantize(jnp.asarray(x), books)
    assert all(np.all(np.isfinite(b)) for b in books)
    np.testing.assert_allclose(left.sum_ND, x, atol=1e-5)


def test_more_levels_leave_less():
    x, _ = make(6, 400, 6, ())
    books = quantization.residual_kmeans(jax.random.key(0), jnp.asarray(x), jnp.ones(400), (8, 8, 8), 8)
    errors = [
        float(jnp.mean((x - quantization.residual_quantize(jnp.asarray(x), books[:depth]).sum_ND) ** 2))
        for depth in range(4)
    ]
    assert errors == sorted(errors, reverse=True) and errors[3] < 0.5 * errors[0]
