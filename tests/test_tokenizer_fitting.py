"""Batches whose halves never mix, scales of features, what decays, and how levels are used."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hisam_jax.tokenizer import fitting, quantization


@given(st.integers(2, 61), st.integers(1, 40), st.integers(1, 3))
def test_halves_of_batches_come_from_halves_of_the_rows_that_never_mix(count, batch_size, seed):
    rows = np.random.default_rng(seed).choice(1000, count, replace=False)
    steps = 3 * fitting.STEPS_PER_CALL + 7
    calls = list(fitting.paired_chunks(rows, batch_size, steps, np.random.default_rng(seed)))
    assert [start for start, _ in calls] == [*range(0, steps, fitting.STEPS_PER_CALL)]
    batches_SB = np.concatenate([picks for _, picks in calls])
    half = batches_SB.shape[1] // 2
    assert batches_SB.shape == (steps, 2 * half) and 1 <= half <= max(1, batch_size // 2)
    first, second = set(batches_SB[:, :half].flat), set(batches_SB[:, half:].flat)
    assert not first & second and first | second <= set(rows)
    epoch = -(-count // 2) // half + 1
    if steps > 40 * epoch:  # every epoch drops another remainder, so that in the end every row was there
        assert first | second == set(rows) and abs(len(first) - len(second)) <= 1
    assert all(len(set(batch)) == len(batch) for batch in batches_SB), "no row twice in a batch"


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_handful_of_rows_makes_batches_too(count):
    rows = np.array([7, 9, 4])[:count]
    (_, first), (_, second) = fitting.paired_chunks(rows, 256, 40, np.random.default_rng(0))
    picks_SB = np.concatenate([first, second])
    assert picks_SB.shape == (40, 1 if count == 1 else 2) and set(picks_SB.flat) == set(rows)
    if count > 1:
        assert not set(picks_SB[:, 0]) & set(picks_SB[:, 1])


def test_chunks_go_through_every_row_before_any_comes_again():
    rows = np.arange(30)
    picks_SB = np.concatenate([p for _, p in fitting.chunks(rows, 10, 6, np.random.default_rng(0))])
    assert picks_SB.shape == (6, 10)
    for epoch in (picks_SB[:3], picks_SB[3:]):
        assert sorted(epoch.flat) == [*rows]
    assert not np.array_equal(picks_SB[:3], picks_SB[3:])


def test_standardised_columns_are_equals_or_keep_their_proportions():
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(400, 4)) * [1, 10, 100, 0] + [5, -50, 1000, 3]).astype(np.float32)
    rows = np.arange(400) % 4 > 0
    values[~rows] *= 9  # not fitted on
    for kind, expected in (("column", [1, 1, 1, 0]), ("modality", None)):
        x = fitting.standardiser(kind, values, rows)(values, rows)[rows]
        np.testing.assert_allclose(x.mean(0), 0, atol=1e-3)
        if expected:
            np.testing.assert_allclose(x.std(0), expected, atol=1e-3)
        else:
            np.testing.assert_allclose(x.var(0).mean(), 1, rtol=1e-3)
            np.testing.assert_allclose(
                x.std(0) / x[:, 2].std(), values[rows].std(0) / values[rows][:, 2].std(), atol=1e-4
            )


@pytest.mark.parametrize("kind", ["column", "modality"])
def test_constant_features_become_zero(kind):
    x = fitting.standardiser(kind, np.full((9, 3), 4.0, np.float32), np.ones(9, bool))(
        np.full((2, 3), 4.0), np.ones(2, bool)
    )
    assert np.array_equal(x, np.zeros((2, 3)))


def test_features_are_loaded_in_the_shape_of_the_picks_and_zero_where_absent():
    values, present = np.arange(20, dtype=np.float32).reshape(10, 2), np.arange(10) % 3 > 0
    scale = fitting.standardiser("column", values, present)
    picks = np.array([[0, 1, 2], [9, 8, 8]])
    x, has = fitting.load({"text": scale}, {"text": values}, {"text": present}, picks)
    for place in np.ndindex(2, 3):
        row = picks[place]
        expected = (values[row] - scale.mean_F) * scale.scale_F if present[row] else np.zeros(2)
        np.testing.assert_allclose(x["text"][place], expected, rtol=1e-6)
        assert has["text"][place] == present[row]


def test_only_networks_decay():
    parts = {"net": {"w": jnp.ones(3)}, "log_temperature": jnp.float32(-2.6), "codebooks": {"text": [jnp.ones((2, 2))]}}
    adamw = fitting.adamw(0.1, 10, 0.5)
    still = jax.tree.map(jnp.zeros_like, parts)
    updates, _ = adamw.update(still, adamw.init(parts), parts)
    after = optax.apply_updates(parts, updates)
    np.testing.assert_allclose(after["net"]["w"], 1 - 0.1 * 0.5, rtol=1e-6)
    assert after["log_temperature"] == parts["log_temperature"]
    assert np.array_equal(after["codebooks"]["text"][0], parts["codebooks"]["text"][0])


def test_the_rate_falls_to_a_twentieth():
    parts, adamw = {"net": jnp.zeros(())}, fitting.adamw(0.1, 5, 0.0)
    state, moves = adamw.init(parts), []
    for _ in range(6):
        updates, state = adamw.update({"net": jnp.ones(())}, state, parts)
        moves.append(-float(updates["net"]))
    np.testing.assert_allclose([moves[0], moves[-1]], [0.1, 0.005], rtol=1e-3)
    assert all(after < before for before, after in itertools.pairwise(moves))
    assert fitting.adamw(0.1, 0, 0.0).init(parts), "no steps at all are steps of length zero, not a division"


def test_spread_reads_only_rows_that_count():
    rng = np.random.default_rng(0)
    x_BD, weight_B = rng.normal(size=(12, 3)).astype(np.float32), np.repeat([1.0, 0.0], 6).astype(np.float32)
    np.testing.assert_allclose(fitting.spread(x_BD, weight_B), x_BD[:6].var(0).sum(), rtol=1e-5)
    assert float(fitting.spread(x_BD, 0 * weight_B)) == 0


def test_usage_tells_of_each_level_and_books_that_learn_by_gradient_keep_what_they_learnt():
    rng = np.random.default_rng(0)
    x_BD = jnp.asarray(rng.normal(size=(40, 3)), jnp.float32)
    vectors = [jnp.asarray(np.concatenate([x_BD[:3], np.full((1, 3), 90.0)]), jnp.float32), jnp.zeros((1, 3))]
    books = {"text": tuple(quantization.make_book(v, 40.0) for v in vectors)}
    quantized, weight = {"text": quantization.residual_quantize(x_BD, vectors)}, {"text": jnp.ones(40)}
    learned = {"text": [vectors[0] + 1, vectors[1] + 1]}
    update = jax.jit(functools.partial(fitting.update_books, decay=0.0, dead_threshold=0.03))
    for given_vectors in (None, learned):
        fresh, usage = update(jax.random.key(0), books, quantized, weight, learned=given_vectors)
        assert float(usage["used/text/0"]) == 0.75 and float(usage["used/text/1"]) == 1
        count = np.bincount(np.asarray(quantized["text"].codes_NL[:, 0]), minlength=4)[:3] / 40
        np.testing.assert_allclose(usage["perplexity/text/0"], np.exp(-np.sum(count * np.log(count))), rtol=1e-4)
        if given_vectors:
            assert np.array_equal(fresh["text"][0].vectors_KD[:3], learned["text"][0][:3])
        else:
            mean = np.asarray(x_BD)[np.asarray(quantized["text"].codes_NL[:, 0]) == 1].mean(0)
            np.testing.assert_allclose(fresh["text"][0].vectors_KD[1], mean, rtol=1e-4)
        assert np.abs(fresh["text"][0].vectors_KD[3]).max() < 10, "the dead code took a row"
