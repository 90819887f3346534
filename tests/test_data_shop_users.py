"""The shop's users: exact probabilities, drift, order that can be learnt, and sizes that need no users x items."""

from __future__ import annotations

import dataclasses
import tracemalloc
from itertools import islice

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given, settings

from hisam_jax.data.shop import ShopConfig, make_catalogue, oracle_probabilities, stream_users, user_events
from hisam_jax.data.shop.catalogue import NEVER
from hisam_jax.data.shop.draws import BEGIN

CONFIG = ShopConfig(users=1_500, items=1_000, events_per_user=25.0, seed=2)
TINY = ShopConfig(items=200, events_per_user=12.0, cold_items=0.3, horizon_days=300.0)
DAY = 86_400


@pytest.fixture(scope="module")
def users():
    return list(islice(stream_users(CONFIG), CONFIG.users))


@pytest.fixture(scope="module")
def recall(users):
    """Recall@10 of the last item, seen items masked: name of a simple score -> value."""
    leaf_I, I = make_catalogue(CONFIG).leaf_I, CONFIG.items  # noqa: E741
    bought_UI, after_LL, last_seen = np.zeros((len(users), I)), np.full((256, 256), 0.01), []
    for u, user in enumerate(users):
        history = user.item[:-1]
        bought_UI[u, history] = 1
        np.add.at(after_LL, (leaf_I[history[:-1]], leaf_I[history[1:]]), 1)
        last_seen.append(history[-1])
    popularity_I, norm_I = bought_UI.sum(0), np.sqrt(bought_UI.sum(0) + 1)
    similar_II = bought_UI.T @ bought_UI / (norm_I[:, None] * norm_I + 10)
    np.fill_diagonal(similar_II, 0)
    scores = {
        "popularity": np.broadcast_to(popularity_I, bought_UI.shape),
        "item_knn": bought_UI @ similar_II,
        "markov": (after_LL[leaf_I[last_seen]])[:, leaf_I] * (popularity_I + 0.1),
    }
    target = np.array([user.item[-1] for user in users])
    return {name: _recall(np.where(bought_UI > 0, -np.inf, score_UI), target) for name, score_UI in scores.items()}


def _recall(score_UI: np.ndarray, target_U: np.ndarray) -> float:
    own_U1 = score_UI[np.arange(len(target_U)), target_U][:, None]
    return float(((score_UI > own_U1).sum(1) < 10).mean())


def test_order_can_be_learnt(recall):
    assert recall["markov"] > 4 * recall["popularity"]
    assert recall["markov"] > 3 * recall["item_knn"]


def test_the_oracle_bounds_what_can_be_learnt(users, recall):
    best = np.mean([user.last_rank <= 10 for user in users])
    nll = np.concatenate([user.nll for user in users])
    assert best > 1.3 * recall["markov"]
    assert np.isfinite(nll).all() and (nll > 0).all()
    assert 1.0 < nll.mean() < np.log(CONFIG.items) - 1.5


@settings(max_examples=10)
@given(st.integers(0, 5_000), st.integers(0, 3))
@example(3, 0)
def test_the_recorded_likelihood_is_that_of_the_whole_distribution(user, seed):
    config = dataclasses.replace(TINY, seed=seed)
    events, p_NI = user_events(config, user), oracle_probabilities(config, user)
    own_N = p_NI[np.arange(len(events.item)), events.item]
    assert np.allclose(p_NI.sum(1), 1)
    assert np.allclose(-np.log(own_N), events.nll, atol=1e-4)
    assert events.last_rank == 1 + (p_NI[-1] > own_N[-1] * (1 + 1e-9)).sum()
    release_I = make_catalogue(config).release_day_I
    for n, p_I in enumerate(p_NI):
        assert (p_I[events.item[:n]] == 0).all()
        assert (p_I[release_I > (events.timestamp[n] - BEGIN) // DAY] == 0).all()


def test_draws_follow_the_recorded_probabilities():
    """The mean of -log p over draws is the entropy, within five standard errors."""
    gaps, spread = [], []
    for user in range(12):
        p_NI, nll_N = oracle_probabilities(TINY, user), user_events(TINY, user).nll
        log_NI = np.log(np.maximum(p_NI, 1e-300))
        entropy_N = -(p_NI * log_NI).sum(1)
        gaps += list(nll_N - entropy_N)
        spread += list((p_NI * log_NI**2).sum(1) - entropy_N**2)
    assert abs(np.sum(gaps)) < 5 * np.sqrt(np.sum(spread))


@settings(max_examples=10)
@given(st.lists(st.integers(0, 2_000), min_size=1, max_size=3), st.integers(1, 10_000))
def test_a_user_is_the_same_by_stream_by_index_and_in_a_shop_of_any_size(wanted, total):
    for user in wanted:
        one, streamed = user_events(TINY, user), next(stream_users(dataclasses.replace(TINY, users=total), user))
        assert one.user == streamed.user == user
        for field in ("item", "timestamp", "rating", "nll", "favourite_kind"):
            assert (getattr(one, field) == getattr(streamed, field)).all()


def test_the_stream_goes_on_over_blocks_and_past_the_configured_users():
    config = dataclasses.replace(TINY, users=5)
    some = list(islice(stream_users(config, 500), 30))
    assert [user.user for user in some] == list(range(500, 530))
    assert all((a.item[:3] != b.item[:3]).any() for a, b in zip(some, some[1:], strict=False))


def test_events_are_ordered_and_never_repeat(users):
    for user in users:
        assert (np.diff(user.timestamp) > 0).all()
        assert len(np.unique(user.item)) == len(user.item)
        assert np.isin(user.rating * 2, np.arange(2, 11)).all()
    times = np.concatenate([user.timestamp for user in users])
    assert BEGIN <= times.min() and times.max() < BEGIN + CONFIG.horizon_days * DAY
    assert (np.histogram(times, 10)[0] > 0.04 * len(times)).all()


def test_sizes_and_cold_shares(users):
    events = np.array([len(user.item) for user in users])
    assert events.min() >= 3 and events.mean() == pytest.approx(CONFIG.events_per_user, rel=0.06)
    assert (events < 10).mean() == pytest.approx(CONFIG.cold_users, abs=0.025)
    catalogue = make_catalogue(CONFIG)
    sold_I = np.bincount(np.concatenate([user.item for user in users]), minlength=CONFIG.items)
    late_I = (catalogue.release_day_I > 0) & (catalogue.release_day_I < NEVER)
    assert (sold_I[catalogue.release_day_I == NEVER] == 0).all()
    assert 0 < sold_I[late_I].mean() < 0.3 * sold_I.mean()


def test_tastes_drift(users):
    """The favourite kind changes with time, and slowly: neighbours in time agree far more often than year's ends."""
    near, far = [], []
    for user in users:
        days = user.timestamp / DAY
        pairs = (days[1:] - days[:-1] < 3, user.favourite_kind[1:] == user.favourite_kind[:-1])
        near += list(pairs[1][pairs[0]])
        far += [user.favourite_kind[-1] == user.favourite_kind[0]] if days[-1] - days[0] > 180 else []
    assert len(far) > 50 and np.mean(near) > 0.9 and np.mean(far) < 0.3


def test_ratings_depend_on_the_user_and_the_item_and_leave_both_classes(users):
    positive = np.concatenate([user.rating > 3 for user in users])
    assert 0.6 < positive.mean() < 0.85
    means = np.array([user.rating.mean() for user in users if len(user.rating) >= 10])
    bias = np.array([user.bias for user in users if len(user.rating) >= 10])
    assert np.corrcoef(means, bias)[0, 1] > 0.6
    item, rating = np.concatenate([u.item for u in users]), np.concatenate([u.rating - u.bias for u in users])
    assert np.corrcoef(make_catalogue(CONFIG).quality_I[item], rating)[0, 1] > 0.2


def test_a_large_catalogue_needs_no_users_times_items():
    config = ShopConfig(items=200_000, events_per_user=10.0)
    make_catalogue(config)
    tracemalloc.start()
    some = list(islice(stream_users(config), 512))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 512 * config.items  # not one byte for each user and item
    assert np.isfinite(np.concatenate([user.nll for user in some])).all()


@settings(max_examples=12)
@given(st.integers(64, 400), st.floats(0, 0.5), st.floats(10, 60), st.integers(0, 99))
def test_any_small_shop_works(items, cold_items, events, seed):
    config = ShopConfig(items=items, cold_items=cold_items, events_per_user=events, seed=seed, cold_users=0.5)
    some = list(islice(stream_users(config), 4))
    assert all(np.isfinite(user.nll).all() and len(set(user.item.tolist())) == len(user.item) for user in some)
