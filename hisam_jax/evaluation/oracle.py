"""What the embedded shop knows of its rated events: how well any model could rank them."""

from __future__ import annotations

import numpy as np

from hisam_jax.data.dataset import Dataset
from hisam_jax.data.endless import shop_of, user_numbers
from hisam_jax.data.marks import LIKED_ABOVE
from hisam_jax.data.shop import make_catalogue
from hisam_jax.data.shop.config import ShopConfig
from hisam_jax.data.shop.tables import item_ids
from hisam_jax.data.shop.users import block_size, simulate_block
from hisam_jax.errors import UserError
from hisam_jax.evaluation.targets import RankingTargets

ORACLE = "oracle"


def oracle_scores(dataset: Dataset, rated: RankingTargets) -> np.ndarray | None:
    """Stars of rated events [E] before their own noise: by the item's quality, the user's bias and tastes of that day.

    A model has to infer them from what was done. None for other data, where all are of one class, and for a dataset
    that this version's shop would not give.
    """
    if dataset.manifest.get("source") != "shop" or rated.label_E.all() or not rated.label_E.any():
        return None
    try:
        config = shop_of(dataset)
    except (UserError, KeyError):  # of a version with other options: there is no oracle, but all else
        return None
    made_E = dataset.items["item_id"].gather(rated.item_E)
    shop_of_name = {name: item for item, name in enumerate(item_ids(config.items))}
    wanted_E = np.array([shop_of_name.get(name, -1) for name in made_E.to_list()])
    key_A, stars_A, liked_A = _told(config, np.unique(user_numbers(dataset, rated.user_E)))
    key_E = user_numbers(dataset, rated.user_E) * config.items + wanted_E
    place_E = np.minimum(np.searchsorted(key_A, key_E), len(key_A) - 1)
    same = np.array_equal(key_A[place_E], key_E) and np.array_equal(liked_A[place_E], rated.label_E)
    return stars_A[place_E] if same and (wanted_E >= 0).all() else None


def _told(config: ShopConfig, number_U: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All events of these users as `number * items + item`, ascending, with their stars and whether they were liked.

    No user has an item twice, so that these are keys.
    """
    size, wanted = block_size(make_catalogue(config)), set(number_U.tolist())
    blocks = (simulate_block(config, block) for block in np.unique(number_U // size).tolist())
    users = [user for block in blocks for user in block if user.user in wanted]
    key_A = np.concatenate([user.user * config.items + user.item.astype(np.int64) for user in users])
    stars_A, rating_A = (np.concatenate([getattr(user, name) for user in users]) for name in ("stars", "rating"))
    order = np.argsort(key_A)
    return key_A[order], stars_A[order].astype(np.float64), rating_A[order] > LIKED_ABOVE
