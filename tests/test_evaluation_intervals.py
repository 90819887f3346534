"""The bootstrap: coverage, determinism, pairing, speed, and where a metric is undefined."""

from __future__ import annotations

import time

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from hisam_jax.evaluation import intervals, ranking, summary
from hisam_jax.evaluation.intervals import Bootstrap
from hisam_jax.evaluation.retrieval import Ranks


def events(rng, users, each=8, signal=1.0):
    """User-clustered events with a known signal."""
    user = np.repeat(np.arange(users), each)
    labels = rng.random(len(user)) < 0.4
    scores = signal * labels + rng.normal(size=len(user)) + np.repeat(rng.normal(size=users), each)
    return labels, scores, user


def test_a_mean_interval_is_the_textbook_one():
    values = np.random.default_rng(0).normal(2.0, 3.0, size=4000)
    result = intervals.means({"m": values}, np.arange(4000), Bootstrap(2000, 1))["m"]
    half = 1.96 * values.std() / np.sqrt(4000)
    assert result["value"] == pytest.approx(values.mean())
    np.testing.assert_allclose(result["ci95"], [values.mean() - half, values.mean() + half], atol=0.1 * half)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        per_user = rng.exponential(1.0, size=60)
        low, high = intervals.means({"m": per_user}, np.arange(60), Bootstrap(300, seed))["m"]["ci95"]
        covered += low <= 1.0 <= high
    assert 0.87 <= covered / 200 <= 0.985  # percentile intervals of a skewed mean of 60 run a little short


def test_users_are_resampled_not_events():
    """Twenty equal events of a user carry the information of one."""
    values = np.random.default_rng(2).normal(size=100)
    once = intervals.means({"m": values}, np.arange(100), Bootstrap(500, 0))["m"]
    copied = intervals.means({"m": np.repeat(values, 20)}, np.repeat(np.arange(100), 20), Bootstrap(500, 0))["m"]
    np.testing.assert_allclose(copied["ci95"], once["ci95"])


def test_auc_interval_is_the_slow_bootstrap_on_the_same_draws():
    labels, scores, users = events(np.random.default_rng(3), 40)
    bootstrap = Bootstrap(60, 9)
    slow = []
    for row in np.concatenate(list(bootstrap.counts(40))).astype(int):
        index = np.concatenate([np.repeat(np.flatnonzero(users == u)[None], n, 0).ravel() for u, n in enumerate(row)])
        slow.append(roc_auc_score(labels[index], scores[index]))
    fast = intervals.auc(labels, scores, users, bootstrap)
    np.testing.assert_allclose(fast["ci95"], np.quantile(slow, (0.025, 0.975)), rtol=1e-10)
    assert fast["value"] == pytest.approx(roc_auc_score(labels, scores))


def test_gauc_and_log_loss_carry_the_point_values():
    labels, scores, users = events(np.random.default_rng(4), 50)
    for name in ("gauc", "log_loss"):
        extra = (users,) if name == "gauc" else ()
        result = getattr(intervals, name)(labels, scores, users, Bootstrap(200, 0))
        assert result["value"] == pytest.approx(getattr(ranking, name)(labels, scores, *extra))
        assert result["ci95"][0] < result["value"] < result["ci95"][1]


def test_pairing_makes_a_difference_narrower_than_either():
    rng = np.random.default_rng(5)
    labels, scores, users = events(rng, 200)
    other = scores + 0.1 * rng.normal(size=len(scores)) - 0.05 * labels
    for name in ("auc", "gauc"):
        metric = getattr(intervals, name)
        alone, paired = metric(labels, scores, users, Bootstrap()), metric(labels, scores, users, Bootstrap(), other)
        assert paired["value"] == pytest.approx(alone["value"] - metric(labels, other, users, Bootstrap(1))["value"])
        assert np.ptp(paired["ci95"]) < 0.5 * np.ptp(alone["ci95"])
        assert metric(labels, scores, users, Bootstrap(), scores) == {"value": 0.0, "ci95": [0.0, 0.0]}


def test_same_seed_same_interval_and_another_seed_another():
    labels, scores, users = events(np.random.default_rng(6), 30)
    first, again, other = (intervals.auc(labels, scores, users, Bootstrap(100, seed)) for seed in (1, 1, 2))
    assert first == again and first != other


def test_undefined_metrics_are_none_and_leave_the_table():
    ones, users = np.ones(4, int), np.arange(4)
    assert intervals.auc(ones, np.arange(4.0), users, Bootstrap(10)) is None
    assert intervals.gauc(ones, np.arange(4.0), users, Bootstrap(10)) is None
    table = summary.ranking_summary(ones, np.arange(4.0), users, Bootstrap(10), np.arange(4.0))
    assert sorted(table) == ["events", "logloss", "users"]
    none = np.zeros(0, int)
    assert summary.ranking_summary(none, none, none, Bootstrap(10), none) == {"events": 0, "users": 0}
    assert summary.retrieval_summary(Ranks(none, none), none, Bootstrap(10)) == {"targets": 0}


def test_a_lone_positive_still_gives_a_finite_interval():
    labels = np.arange(30) == 7
    result = intervals.auc(labels, np.arange(30.0), np.arange(30), Bootstrap(200))
    assert np.isfinite(result["ci95"]).all()


def test_tables_of_lists_and_their_difference():
    rng = np.random.default_rng(8)
    better, worse = rng.integers(1, 20, size=300), rng.integers(1, 60, size=300)
    ours, theirs = Ranks(better, better + 1), Ranks(worse, worse + 1)
    table = summary.retrieval_summary(ours, np.arange(300), Bootstrap())
    assert table["recall@10"]["value"] == pytest.approx((better <= 10).mean())
    assert table["recall@10/unmasked"]["value"] == pytest.approx((better <= 9).mean())
    values = summary.retrieval_values(ours), summary.retrieval_values(theirs)
    gain = intervals.difference_of_means(*values, np.arange(300), Bootstrap())["recall@10"]
    assert gain["value"] == pytest.approx((better <= 10).mean() - (worse <= 10).mean()) and gain["ci95"][0] > 0


def test_ten_thousand_users_are_quick():
    labels, scores, users = events(np.random.default_rng(7), 10_000)
    start = time.perf_counter()
    result = intervals.auc(labels, scores, users, Bootstrap(1000))
    assert time.perf_counter() - start < 20
    assert 0 < np.ptp(result["ci95"]) < 0.02


def test_draws_are_kept_for_the_next_metric_and_are_the_same_where_they_are_not(monkeypatch):
    monkeypatch.setattr(intervals, "_KEPT", {})
    sizes, bootstrap = range(40, 60), Bootstrap(30, seed=3)
    first = {users: np.concatenate(list(bootstrap.counts(users))) for users in sizes}
    assert all((counts.sum(1) == users).all() for users, counts in first.items())
    with monkeypatch.context() as patched:
        patched.setattr(np.random, "default_rng", None)  # a table's next row draws nothing
        assert all(np.array_equal(np.concatenate(list(bootstrap.counts(users))), first[users]) for users in sizes)
    monkeypatch.setattr(intervals, "KEPT_BYTES", 30 * 100)
    monkeypatch.setattr(intervals, "_KEPT", {})
    for users in sizes:
        assert np.array_equal(np.concatenate(list(bootstrap.counts(users))), first[users])
        assert sum(block.nbytes for blocks in intervals._KEPT.values() for block in blocks) <= 30 * 100
    next(bootstrap.counts(101))
    assert all(users <= 100 for _, _, users in intervals._KEPT)
