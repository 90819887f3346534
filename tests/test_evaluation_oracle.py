"""What the shop knows of its ratings, held against the ratings and against what preparation made of them."""

import copy
import itertools

import numpy as np
import pytest

from hisam_jax.data.dataset import Dataset
from hisam_jax.data.prepare import prepare
from hisam_jax.data.shop import ShopConfig, stream_users
from hisam_jax.data.shop.choices import NOISE
from hisam_jax.evaluation import ranking
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


def test_it_ranks_what_was_rated_better_than_any_item_can(shop):
    dataset, rated = shop
    stars_E = oracle_scores(dataset, rated)
    assert ranking.auc(rated.label_E, stars_E) > 0.9
    assert ranking.auc(rated.label_E, np.roll(stars_E, 1)) < 0.8


def test_each_event_has_the_stars_of_its_own_place(shop):
    """Of the users by their numbers, one by one."""
    dataset, rated = shop
    stars_E, names = oracle_scores(dataset, rated), dataset.users["user_id"].to_list()
    for event in range(0, len(stars_E), 7):
        user = next(stream_users(ShopConfig(**OPTIONS), int(names[rated.user_E[event]].removeprefix("u"))))
        assert stars_E[event] == user.stars[rated.position_E[event]]
        assert rated.label_E[event] == (user.rating[rated.position_E[event]] > 3)


def test_it_says_nothing_of_other_data_or_of_events_that_moved(shop, tmp_path):
    dataset, rated = shop
    other = copy.copy(dataset)
    other.manifest = dataset.manifest | {"source": "movielens"}
    assert oracle_scores(other, rated) is None
    fewer = prepared(tmp_path, min_item=12)
    assert fewer.num_items < dataset.num_items
    assert oracle_scores(fewer, ranking_targets(load_events(fewer), "test")) is None
    nothing = rated.take(np.zeros(0, int))
    assert oracle_scores(dataset, nothing) is None
