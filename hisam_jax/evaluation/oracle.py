"""What the embedded shop knows of its rated events: how well any model could rank them."""

from __future__ import annotations

import numpy as np
import polars as pl

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
    number_E = user_numbers(dataset, rated.user_E)
    asked = pl.DataFrame({"user": number_E, "item": dataset.items["item_id"].gather(rated.item_E)})
    told = _told(config, np.unique(number_E))
    found = asked.join(told, on=("user", "item"), how="left", maintain_order="left")  # no user has an item twice
    if found["stars"].null_count() or not np.array_equal(found["liked"].to_numpy(), rated.label_E):
        return None
    return found["stars"].to_numpy().astype(np.float64)


def _told(config: ShopConfig, number_U: np.ndarray) -> pl.DataFrame:
    """All events of these users: `user`, the shop's number, `item`, its key, `stars` and whether it was `liked`."""
    size, wanted, names = block_size(make_catalogue(config)), set(number_U.tolist()), pl.Series(item_ids(config.items))
    blocks = (simulate_block(config, block) for block in np.unique(number_U // size).tolist())
    users = [user for block in blocks for user in block if user.user in wanted]
    item_A, stars_A, rating_A = (np.concatenate([getattr(u, n) for u in users]) for n in ("item", "stars", "rating"))
    user_A = np.repeat([user.user for user in users], [len(user.item) for user in users])
    return pl.DataFrame(
        {"user": user_A, "item": names.gather(item_A), "stars": stars_A, "liked": rating_A > LIKED_ABOVE}
    )
