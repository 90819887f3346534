"""What the embedded shop knows of its rated events: how well any model could rank them."""

from __future__ import annotations

import itertools

import numpy as np

from hisam_jax.data.dataset import Dataset
from hisam_jax.data.endless import shop_of
from hisam_jax.data.shop import stream_users
from hisam_jax.data.shop.tables import item_ids
from hisam_jax.evaluation.targets import RankingTargets

ORACLE = "oracle"


def oracle_scores(dataset: Dataset, rated: RankingTargets) -> np.ndarray | None:
    """Stars of rated events [E] before their own noise, by tastes that a model has to infer from what was done.

    None for other data, and where preparation left out events, so that places do not match.
    """
    if dataset.manifest.get("source") != "shop" or not len(rated.user_E):
        return None
    config = shop_of(dataset)
    number_E = dataset.users["user_id"].gather(rated.user_E).str.strip_prefix("u").cast(int).to_numpy()
    wanted = set(number_E.tolist())
    everyone = itertools.islice(stream_users(config), max(wanted) + 1)
    users = {user.user: user for user in everyone if user.user in wanted}
    place_E = rated.position_E.tolist()
    events = [(users[number], place) for number, place in zip(number_E.tolist(), place_E, strict=True)]
    if any(place >= len(user.item) for user, place in events):
        return None
    item_of_I = dataset.item_index(item_ids(config.items))
    if not np.array_equal(item_of_I[[user.item[place] for user, place in events]], rated.item_E):
        return None
    return np.array([user.stars[place] for user, place in events], np.float64)
