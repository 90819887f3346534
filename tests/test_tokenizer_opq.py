"""Product quantisation: the rotation is one, it helps, and parts are coded apart."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from tokenizer_fixtures import planted

from hisam_jax.errors import UserError
from hisam_jax.tokenizer import opq
from hisam_jax.tokenizer.opq import OPQConfig, fit_opq

LEVELS = (8, 8, 8)


def correlated(rows: int = 600, width: int = 11, seed: int = 0) -> np.ndarray:
    """Few directions carry most of the variance, and none lies along a column; 11 is no multiple of 3."""
    rng = np.random.default_rng(seed)
    mixing = np.linalg.qr(rng.normal(size=(width, width)))[0] * 0.7 ** np.arange(width)
    return (rng.normal(size=(rows, width)) @ mixing.T).astype(np.float32)


def fitted(rotate: bool, x: np.ndarray) -> opq.OPQ:
    everyone = np.ones(len(x), bool)
    return fit_opq(OPQConfig(LEVELS, rotate, iterations=8, rotations=8), {"text": x}, {"text": everyone}, everyone, 0)


def test_the_rotation_keeps_lengths_and_lowers_the_error_which_never_rises():
    x = correlated()
    plain, rotated = (fitted(rotate, x) for rotate in (False, True))
    for model in (plain, rotated):
        assert model.rotation_FP.shape == (11, 12)
        np.testing.assert_allclose(model.rotation_FP @ model.rotation_FP.T, np.eye(11), atol=1e-5)
    assert np.array_equal(plain.rotation_FP, np.eye(11, 12))
    errors = [row["reconstruction"] for row in rotated.history]
    assert len(errors) == 9 and all(b <= a * (1 + 1e-5) for a, b in zip(errors, errors[1:], strict=False))
    assert errors[0] <= plain.history[-1]["reconstruction"] and errors[-1] < 0.9 * plain.history[-1]["reconstruction"]


def test_procrustes_finds_the_rotation_that_was_applied():
    x = correlated(200, 5)
    turned = np.linalg.qr(np.random.default_rng(1).normal(size=(7, 7)))[0][:5].astype(np.float32)
    np.testing.assert_allclose(opq.procrustes(x, x @ turned), turned, atol=1e-4)


def test_both_starts_are_rotations_and_the_second_balances_the_levels():
    x = correlated(width=12)
    for start in opq.starts(x, 3):
        np.testing.assert_allclose(start @ start.T, np.eye(12), atol=1e-5)
    dealt, sorted_ = (np.log(np.var(x @ r, axis=0)).reshape(3, 4).sum(1) for r in (opq.starts(x, 3)[1], axes(x)))
    assert np.ptp(dealt) < 0.5 * np.ptp(sorted_)


def axes(x: np.ndarray) -> np.ndarray:
    """Principal axes by falling variance: the first level would get all of the greatest."""
    return np.linalg.svd(x - x.mean(0), full_matrices=False)[2].T


def test_plain_levels_are_the_nearest_in_their_own_columns():
    x = correlated(width=12)
    model = fitted(False, x)
    everyone = np.ones(len(x), bool)
    codes = model.assign({"text": x}, {"text": everyone})
    scaled = model.joined.at({"text": x}, {"text": everyone}, slice(None))
    for level, part in enumerate(np.split(scaled, 3, axis=1)):
        distance = ((part[:, None] - model.books[level][None]) ** 2).sum(-1)
        assert np.array_equal(distance.argmin(1), codes[:, level])


def test_planted_factors_of_separate_views_are_found():
    features, present, truth = planted(600, categories=6, styles=1, colours=1, width=8, missing=0.0)
    everyone = np.ones(600, bool)
    model = fit_opq(OPQConfig((6, 6), False, iterations=10), features, present, everyone, 0)
    codes = model.assign(features, present)
    for level in range(2):
        pairs = len(
            {(int(code), int(category)) for code, category in zip(codes[:, level], truth["category"], strict=True)}
        )
        assert pairs <= 9, "a code a category, but for a centre or two that fell badly"


def test_no_level_is_refused():
    x = correlated(20)
    with pytest.raises(UserError, match="opq.sizes"):
        fit_opq(OPQConfig(()), {"text": x}, {"text": np.ones(20, bool)}, np.ones(20, bool), 0)


def test_books_of_equal_rows_are_finite():
    books, error = opq.fit_books(jax.random.key(0), np.ones((30, 4), np.float32), (4, 4), 3)
    assert error < 1e-10 and all(np.isfinite(book).all() for book in books)
