"""Targets, baselines and cold-start groups against plain loops, and that nothing reads the future."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from fixtures import tiny_dataset
from scipy import sparse

from hisam_jax.data.records import HISTORY, TEST, TRAIN, VALIDATION, UserSequence
from hisam_jax.evaluation import baselines, cold_start, targets
from hisam_jax.evaluation import ranking as metrics
from hisam_jax.evaluation.intervals import Bootstrap
from hisam_jax.evaluation.item_knn import ItemKNNConfig, item_knn_scorer, item_similarities, tune_item_knn
from hisam_jax.inference.transitions import TransitionConfig

USERS, ITEMS = 30, 25


def make_sequences(seed=0, ratings=True):
    """Random per-user-time sequences, positives and negatives in every split."""
    rng, result = np.random.default_rng(seed), []
    for user in range(USERS):
        n = int(rng.integers(4, 25))
        rating = rng.integers(1, 11, n).astype(np.float32) / 2 if ratings else np.full(n, np.nan, np.float32)
        positive = (rating > 3) if ratings else np.ones(n, bool)
        split = np.full(n, TRAIN, np.uint8)
        split[-4:-2], split[-2:] = VALIDATION, TEST
        if user % 5 == 0:
            split[-3] = HISTORY
        item = rng.integers(0, ITEMS - 2, n).astype(np.int32)
        result.append(UserSequence(user, item, np.arange(n), rating, positive.astype(np.uint8), split))
    return result


@pytest.fixture(scope="module")
def sequences():
    return make_sequences()


@pytest.fixture(scope="module")
def events(sequences):
    return targets.events_from_sequences(sequences, USERS, ITEMS)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_retrieval_targets_are_each_users_first_positive_of_the_split(sequences, events, split):
    found, expected, code = targets.retrieval_targets(events, split), [], targets.SPLITS[split]
    for s in sequences:
        places = [n for n in range(len(s)) if s.split[n] == code and s.positive[n]]
        if places:
            expected.append((s.user, int(s.item[places[0]]), places[0], sorted(set(s.item[: places[0]].tolist()))))
    assert len(expected) > 5
    seen = [found.seen.items[a:b].tolist() for a, b in zip(found.seen.indptr[:-1], found.seen.indptr[1:], strict=True)]
    assert list(zip(found.user_T, found.item_T, found.position_T, seen, strict=True)) == expected


def test_ranking_targets_are_all_rated_events_of_the_split(sequences, events):
    found = targets.ranking_targets(events, "test")
    expected = [
        (s.user, n, int(s.item[n]), bool(s.positive[n])) for s in sequences for n in range(len(s)) if s.split[n] == TEST
    ]
    assert list(zip(found.user_E, found.position_E, found.item_E, found.label_E, strict=True)) == expected
    without = targets.events_from_sequences(make_sequences(ratings=False), USERS, ITEMS)
    assert len(targets.ranking_targets(without, "test").user_E) == 0


def test_cold_marks_count_history_and_training_events(sequences, events):
    found = targets.ranking_targets(events, "test")
    train = np.bincount(np.concatenate([s.item[s.split == TRAIN] for s in sequences]), minlength=ITEMS)
    groups = cold_start.groups(found.cold)
    np.testing.assert_array_equal(groups["cold_user"], found.position_E < 10)
    np.testing.assert_array_equal(groups["zero_item"], train[found.item_E] == 0)
    np.testing.assert_array_equal(groups["cold_item"], (train[found.item_E] > 0) & (train[found.item_E] < 10))
    assert (groups["cold_user"].astype(int) + groups["warm_user"] == 1).all()
    assert (groups["cold_item"].astype(int) + groups["zero_item"] + groups["warm_item"] == 1).all()
    assert all(groups[name].any() for name in ("cold_user", "warm_user", "cold_item", "warm_item"))


def test_popularity_and_item_mean_by_hand(sequences, events):
    train = [(int(i), int(p)) for s in sequences for i, p, c in zip(s.item, s.positive, s.split, strict=True) if c == 0]
    share = sum(p for _, p in train) / len(train)
    mean = baselines.item_mean(events, smoothing=3.0)
    for item in range(ITEMS):
        labels = [p for i, p in train if i == item]
        assert baselines.popularity(events)[item] == sum(labels)
        assert mean[item] == pytest.approx((sum(labels) + 3 * share) / (len(labels) + 3))


@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_user_bias_by_hand(sequences, events, decay):
    mean = baselines.item_mean(events)
    bias = baselines.causal_user_bias(events, mean, smoothing=2.0, decay=decay)
    expected = []
    for s in sequences:
        for n in range(len(s)):
            weight = decay ** np.arange(n - 1, -1, -1.0)
            excess = s.positive[:n] - mean[s.item[:n]]
            expected.append((weight * excess).sum() / (weight.sum() + 2.0))
    np.testing.assert_allclose(bias, expected, atol=1e-12)


@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_user_bias_never_reads_the_scored_event_or_a_later_one(events, decay):
    mean = baselines.item_mean(events)
    before = baselines.causal_user_bias(events, mean, decay=decay)
    for event in range(0, len(before), 7):
        changed = events.positive_E.copy()
        later = (events.user_E == events.user_E[event]) & (events.position_E >= events.position_E[event])
        changed[later] = ~changed[later]
        after = baselines.causal_user_bias(dataclasses.replace(events, positive_E=changed), mean, decay=decay)
        unmoved = (events.user_E != events.user_E[event]) | (events.position_E <= events.position_E[event])
        np.testing.assert_allclose(after[unmoved], before[unmoved], atol=1e-12)
        if later.sum() > 1:
            assert np.abs(after - before).max() > 1e-3


def test_nothing_fitted_reads_beyond_training(events):
    outside = events.split_E != TRAIN
    changed = dataclasses.replace(
        events,
        positive_E=np.where(outside, ~events.positive_E, events.positive_E),
        item_E=np.where(outside, (events.item_E + 1) % ITEMS, events.item_E),
    )
    for fit in (baselines.popularity, baselines.item_mean):
        np.testing.assert_array_equal(fit(events), fit(changed))
    one, other = (item_similarities(given, ItemKNNConfig()).toarray() for given in (events, changed))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("config", [ItemKNNConfig(100, 0.0, 1.0), ItemKNNConfig(4, 7.0, 0.5)])
def test_item_knn_by_hand(sequences, events, config):
    liked = np.zeros((USERS, ITEMS))
    for s in sequences:
        liked[s.user, s.item[(s.split == TRAIN) & (s.positive == 1)]] = 1
    count = liked.T @ liked
    with np.errstate(invalid="ignore"):
        similarity = np.nan_to_num(count / (np.sqrt(np.outer(count.diagonal(), count.diagonal())) + config.shrinkage))
    np.fill_diagonal(similarity, 0)
    found = item_similarities(events, config).toarray()
    for item in range(ITEMS):  # equal similarities at the cut may fall either way
        kept = np.sort(found[item])[::-1][: config.neighbours]
        np.testing.assert_allclose(kept, np.sort(similarity[item])[::-1][: config.neighbours], atol=1e-6)
        np.testing.assert_allclose(found[item][found[item] > 0], similarity[item][found[item] > 0], atol=1e-6)
    test = targets.retrieval_targets(events, "test")
    scores = item_knn_scorer(events, test, config)(np.arange(len(test.user_T)))
    for row, (user, position) in enumerate(zip(test.user_T, test.position_T, strict=True)):
        s, expected = sequences[user], np.zeros(ITEMS)
        history = s.item[:position][s.positive[:position] == 1]
        for age, item in enumerate(history[::-1]):
            expected += config.recency**age * found[item]
        np.testing.assert_allclose(scores[row], expected, atol=1e-5)


def test_transitions_alone_are_what_followed_the_history_in_training(sequences, events):
    test = targets.retrieval_targets(events, "test")
    scores = baselines.transitions_scorer(events, test)(np.arange(len(test.user_T)))
    config = TransitionConfig()
    follows, count = np.zeros((ITEMS, ITEMS)), np.zeros(ITEMS)
    for s in sequences:
        liked = s.item[(s.split == TRAIN) & (s.positive == 1)]
        np.add.at(count, liked, 1)
        for at, item in enumerate(liked):
            for lag, other in enumerate(liked[at + 1 : at + 1 + config.lags]):
                follows[item, other] += config.decay**lag
    follows *= np.outer(count + config.shrinkage, count + config.shrinkage) ** -0.5
    for row, (user, position) in enumerate(zip(test.user_T, test.position_T, strict=True)):
        history = sequences[user].item[:position][sequences[user].positive[:position] == 1]
        expected = sum((config.recency**age * follows[item] for age, item in enumerate(history[::-1])), np.zeros(ITEMS))
        np.testing.assert_allclose(scores[row], expected, rtol=1e-4, atol=1e-6)
    assert np.abs(follows - follows.T).max() > 0.05  # directed


def test_similarities_do_not_depend_on_the_block(events, monkeypatch):
    whole = item_similarities(events, ItemKNNConfig(neighbours=ITEMS))
    monkeypatch.setattr("hisam_jax.evaluation.item_knn.BLOCK_ELEMENTS", 3 * ITEMS)
    assert sparse.linalg.norm(whole - item_similarities(events, ItemKNNConfig(neighbours=ITEMS))) == 0


def test_tuning_reads_no_test_event_and_repeats(events):
    validation = targets.retrieval_targets(events, "validation")
    chosen = tune_item_knn(events, validation, seed=1)
    assert chosen == tune_item_knn(events, validation, seed=1)
    scrambled = dataclasses.replace(events, item_E=np.where(events.split_E == TEST, 0, events.item_E))
    assert chosen == tune_item_knn(scrambled, targets.retrieval_targets(scrambled, "validation"), seed=1)


def test_tables_of_a_dataset_with_ratings_and_of_one_without(tmp_path):
    for ratings in (True, False):
        dataset = tiny_dataset(tmp_path / str(ratings), users=80, ratings=ratings, focus=1.0)
        events = targets.load_events(dataset)
        ranking, retrieval = targets.ranking_targets(events, "test"), targets.retrieval_targets(events, "test")
        assert (retrieval.position_T > 0).all() and len(retrieval.user_T) > 40
        given = baselines.score_baselines(events, ranking, retrieval)
        tables = baselines.baseline_tables(given, ranking, retrieval, Bootstrap(50))
        knn, popular = (tables[name]["retrieval"]["recall@10"]["value"] for name in ("item_knn", "popularity"))
        assert knn > popular + 0.2  # planted groups
        assert tables["transitions"]["retrieval"]["recall@10"]["value"] > popular + 0.2
        assert ("item_mean" in tables) == ratings and ("item_mean_user_bias" in tables) == ratings
        assert tables["item_knn"]["cold"]["retrieval"]["warm_user"]["targets"] >= 0
        if ratings:
            assert "auc" not in tables["item_mean"]["ranking"]  # leave-one-out tests positives only
            assert np.isfinite(tables["item_mean"]["ranking"]["logloss"]["value"])


def test_in_one_request_a_users_bias_changes_no_order_within_the_user(events):
    ranking, retrieval = targets.ranking_targets(events, "test"), targets.retrieval_targets(events, "test")
    given = baselines.score_baselines(events, ranking, retrieval)
    np.testing.assert_array_equal(given.requests["item_mean"], given.scores["item_mean"])
    bias = given.requests["item_mean_user_bias"] - given.requests["item_mean"]
    first = np.unique(ranking.user_E, return_index=True)[1]
    for user, row in zip(ranking.user_E[first], first, strict=True):
        of_user = ranking.user_E == user
        np.testing.assert_allclose(bias[of_user], bias[row])
        np.testing.assert_allclose(
            given.scores["item_mean_user_bias"][row], given.requests["item_mean_user_bias"][row], atol=1e-12
        )
    tables = baselines.baseline_tables(given, ranking, retrieval, Bootstrap(50))
    assert tables["item_mean"]["request"]["gauc"] == tables["item_mean_user_bias"]["request"]["gauc"]


def test_a_users_running_mean_falls_below_chance_within_the_user_though_it_tells_users_apart():
    """Why one request is judged beside: labels that are independent given the user, scored by the mean before each."""
    rng = np.random.default_rng(0)
    users, before, held_out = 3000, 10, 8
    taste_U = rng.beta(2, 2, users)
    label_UN = rng.random((users, before + held_out)) < taste_U[:, None]
    running_UN = (np.cumsum(label_UN, axis=1) - label_UN) / np.maximum(np.arange(before + held_out), 1)
    labels, users_E = label_UN[:, before:].ravel(), np.repeat(np.arange(users), held_out)
    running, frozen = running_UN[:, before:].ravel(), np.repeat(running_UN[:, before], held_out)
    assert metrics.auc(labels, running) > metrics.auc(labels, frozen) > 0.6
    assert metrics.gauc(labels, running, users_E) < 0.47
    assert metrics.gauc(labels, frozen, users_E) == pytest.approx(0.5)


def test_sequences_out_of_user_order_are_refused(sequences):
    with pytest.raises(ValueError, match="ascending"):
        targets.events_from_sequences(sequences[::-1], USERS, ITEMS)


def test_users_without_events_take_no_room(sequences):
    events = targets.events_from_sequences([sequences[3], sequences[8]], USERS, ITEMS)
    assert set(events.user_E) == {3, 8} and events.start_U1[-1] == len(sequences[3]) + len(sequences[8])
