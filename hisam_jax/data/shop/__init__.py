"""The embedded shop: a generator of items, pictures and users with a planted structure, of any size."""

from __future__ import annotations

from hisam_jax.data.shop.catalogue import Catalogue, make_catalogue
from hisam_jax.data.shop.config import ShopConfig
from hisam_jax.data.shop.generator import generate, stream_users, user_events
from hisam_jax.data.shop.pictures import picture
from hisam_jax.data.shop.tables import item_table, truth_table
from hisam_jax.data.shop.users import UserEvents, oracle_nats, oracle_probabilities

__all__ = [
    "Catalogue",
    "ShopConfig",
    "UserEvents",
    "generate",
    "item_table",
    "make_catalogue",
    "oracle_nats",
    "oracle_probabilities",
    "picture",
    "stream_users",
    "truth_table",
    "user_events",
]
