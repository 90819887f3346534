"""AUC, GAUC and log loss against scikit-learn and against counting pairs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from hisam_jax.evaluation import ranking

events = st.integers(2, 60).flatmap(
    lambda n: st.tuples(
        st.lists(st.booleans(), min_size=n, max_size=n).map(np.array),
        st.lists(st.integers(-4, 4), min_size=n, max_size=n).map(lambda x: np.array(x, float)),
        st.lists(st.integers(0, 4), min_size=n, max_size=n).map(np.array),
    )
)


def pair_count(labels, scores):
    """Share of (positive, negative) pairs in the right order, ties half, by looking at each."""
    difference = scores[labels][:, None] - scores[~labels][None, :]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean()) if difference.size else float("nan")


@given(events)
def test_auc_is_the_share_of_pairs_in_order(case):
    labels, scores, _ = case
    np.testing.assert_allclose(ranking.auc(labels, scores), pair_count(labels, scores), rtol=1e-12)


def test_auc_equals_scikit_learn_weighted_and_not():
    rng = np.random.default_rng(0)
    labels, scores, weights = rng.random(5000) < 0.3, rng.normal(size=5000).round(1), rng.random(5000)
    assert ranking.auc(labels, scores) == pytest.approx(metrics.roc_auc_score(labels, scores), abs=1e-12)
    expected = metrics.roc_auc_score(labels, scores, sample_weight=weights)
    assert ranking.auc(labels, scores, weights) == pytest.approx(expected, abs=1e-12)


@given(events)
def test_auc_keeps_under_monotone_maps_and_flips_under_negation(case):
    labels, scores, _ = case
    area = ranking.auc(labels, scores)
    np.testing.assert_allclose(ranking.auc(labels, np.exp(scores) * 3 - 1), area)
    np.testing.assert_allclose(ranking.auc(labels, -scores), 1 - area)
    np.testing.assert_allclose(ranking.auc(labels, np.zeros(len(labels))), area * 0 + 0.5)


@given(events)
@settings(max_examples=200)
def test_gauc_is_the_impression_weighted_mean_of_each_users_auc(case):
    labels, scores, users = case
    areas, weights = [], []
    for user in np.unique(users):
        own = users == user
        if 0 < labels[own].sum() < own.sum():
            areas.append(pair_count(labels[own], scores[own]))
            weights.append(own.sum())
    expected = np.average(areas, weights=weights) if areas else np.nan
    np.testing.assert_allclose(ranking.gauc(labels, scores, users), expected, rtol=1e-12)


def test_gauc_ignores_user_bias_that_auc_rewards():
    labels = np.array([1, 1, 1, 0, 0, 0, 0, 1])
    scores = np.array([9, 9, 9, 9, 1, 1, 1, 1.0])
    users = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    assert ranking.gauc(labels, scores, users) == 0.5
    assert ranking.auc(labels, scores) == 0.75


def test_log_loss_equals_scikit_learn_and_stays_finite_far_out():
    rng = np.random.default_rng(1)
    labels, logits = rng.random(300) < 0.4, rng.normal(size=300) * 3
    expected = metrics.log_loss(labels, 1 / (1 + np.exp(-logits)))
    assert ranking.log_loss(labels, logits) == pytest.approx(expected, abs=1e-10)
    assert ranking.log_loss(np.array([1, 0]), np.array([-1e4, 1e4])) == pytest.approx(1e4)


def test_one_class_or_nothing_is_undefined_not_a_number_made_up():
    ones = np.ones(3, int)
    assert np.isnan(ranking.auc(ones, np.arange(3.0)))
    assert np.isnan(ranking.gauc(ones, np.arange(3.0), np.zeros(3, int)))
    empty = np.zeros(0)
    assert np.isnan(ranking.auc(empty, empty)) and np.isnan(ranking.log_loss(empty, empty))
    assert np.isnan(ranking.gauc(empty, empty, empty.astype(int)))


@pytest.mark.parametrize(
    ("labels", "scores", "word"),
    [([0, 1], [0.0, np.nan], "not finite"), ([0, 2], [0.0, 1.0], "0 or 1"), ([0, 1, 1], [0.0, 1.0], "one length")],
)
def test_nonsense_is_refused(labels, scores, word):
    with pytest.raises(ValueError, match=word):
        ranking.auc(np.array(labels), np.array(scores))
