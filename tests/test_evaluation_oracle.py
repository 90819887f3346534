"""What the shop knows of its ratings, held against the ratings and against what preparation made of them."""

import copy
import dataclasses
import itertools

import numpy as np
import pytest

from hisam_jax.comparison.predictions import is_frame, load_frame, save_frame
from hisam_jax.data.dataset import Dataset
from hisam_jax.data.prepare import prepare
from hisam_jax.data.shop import ShopConfig, stream_users
from hisam_jax.data.shop.choices import NOISE
from hisam_jax.evaluation import ranking
from hisam_jax.evaluation.baselines import item_mean
from hisam_jax.evaluation.oracle import oracle_scores
from hisam_jax.evaluation.targets import RankingTargets, load_events, ranking_targets

OPTIONS = {"users": 120, "items": 100, "events_per_user": 12.0}


def prepared(folder, **settings) -> Dataset:
    options = {"protocol": "per_user_time", "image_encoder": "none", "reader_options": OPTIONS} | settings
    prepare("shop", folder / "raw", folder / "dataset", **options)
    return Dataset.load(folder / "dataset")


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> tuple[Dataset, RankingTargets]:
    dataset = prepared(tmp_path_factory.mktemp("shop"))
    return dataset, ranking_targets(load_events(dataset), "test")


def test_ratings_are_the_stars_their_noise_and_rounding():
    users = list(itertools.islice(stream_users(ShopConfig(**OPTIONS)), 200))
    rating, stars = (np.concatenate([getattr(user, name) for user in users]) for name in ("rating", "stars"))
    inside = (stars > 2) & (stars < 4)  # where the ends of the scale cut nothing
    noise = (rating - stars)[inside]
    assert abs(noise.mean()) < 0.02
    assert noise.std() == pytest.approx(np.sqrt(NOISE**2 + 0.5**2 / 12), rel=0.05)


def test_it_ranks_far_better_than_items_do(shop):
    dataset, rated = shop
    best = ranking.auc(rated.label_E, oracle_scores(dataset, rated))
    assert best > 0.9 and best - ranking.auc(rated.label_E, item_mean(load_events(dataset))[rated.item_E]) > 0.1


def places_hold(dataset: Dataset, rated: RankingTargets) -> np.ndarray:
    """Stars of each event by its user's number and its item's name, one by one."""
    users, items, found = dataset.users["user_id"].to_list(), dataset.items["item_id"].to_list(), []
    for user, item in zip(rated.user_E.tolist(), rated.item_E.tolist(), strict=True):
        made = next(stream_users(ShopConfig(**OPTIONS), int(users[user].removeprefix("u"))))
        (place,) = np.flatnonzero(made.item == int(items[item].removeprefix("p")))
        found.append(made.stars[place])
    return np.array(found)


@pytest.mark.parametrize("settings", [{}, {"min_item": 12}, {"min_user": 12}])
def test_each_event_has_its_own_stars_whatever_was_left_out(settings, tmp_path):
    dataset = prepared(tmp_path, **settings)
    rated = ranking_targets(load_events(dataset), "test")
    if settings:
        assert (dataset.num_items, dataset.num_users) < (100, 120)
    assert np.array_equal(oracle_scores(dataset, rated), places_hold(dataset, rated))


def altered(dataset: Dataset, **manifest) -> Dataset:
    other = copy.copy(dataset)
    other.manifest = dataset.manifest | manifest
    return other


def test_it_says_nothing_of_other_data_nor_of_another_version_s(shop):
    dataset, rated = shop
    arguments = dataset.manifest["arguments"]
    assert oracle_scores(altered(dataset, source="movielens"), rated) is None
    assert oracle_scores(altered(dataset, arguments=arguments | {"seed": arguments["seed"] + 1}), rated) is None
    assert oracle_scores(altered(dataset, arguments=arguments | {"reader_options": {"gone": 1}}), rated) is None
    turned = dataclasses.replace(rated, label_E=np.roll(rated.label_E, 1))
    assert oracle_scores(dataset, turned) is None, "ratings that the shop would not give"


def test_it_says_nothing_where_all_are_of_one_class(shop):
    dataset, rated = shop
    for rows in (np.zeros(0, int), np.flatnonzero(rated.label_E)):
        assert oracle_scores(dataset, rated.take(rows)) is None


def test_it_stands_in_a_comparison_s_frame(shop, tmp_path):
    dataset, rated = shop
    save_frame(dataset.path, tmp_path)
    _, known = load_frame(tmp_path)
    for kind in ("ranking", "request"):
        assert np.array_equal(known["oracle"].logits[kind], oracle_scores(dataset, rated))
    assert is_frame(tmp_path / "targets.npz") and not known["oracle"].ranks
