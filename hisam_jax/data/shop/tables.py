"""The shop's catalogue and its planted truth as tables."""

from __future__ import annotations

import numpy as np
import polars as pl

from hisam_jax.data.readers.base import ITEM_SCHEMA
from hisam_jax.data.shop.catalogue import NEVER, make_catalogue
from hisam_jax.data.shop.config import ShopConfig
from hisam_jax.data.shop.texts import make_words


def item_ids(items: int) -> list[str]:
    """Ids in catalogue order; the order tells nothing, as factors are drawn independently of it."""
    return [f"p{i:07d}" for i in range(items)]


def item_table(config: ShopConfig) -> pl.DataFrame:
    """Columns of the readers' item schema; `image` is relative to the shop's folder."""
    catalogue = make_catalogue(config)
    ids = item_ids(config.items)
    titles, texts, categories = make_words(config, catalogue)
    images = [f"images/{name}.jpg" if has else None for name, has in zip(ids, catalogue.has_picture_I, strict=True)]
    columns = {"item": ids, "title": titles, "text": texts, "categories": categories, "image": images}
    return pl.DataFrame(columns, schema=ITEM_SCHEMA)


def truth_table(config: ShopConfig) -> pl.DataFrame:
    """The planted factors by item, column `item` first; names of the values are in `vocabulary`."""
    catalogue = make_catalogue(config)
    sold = catalogue.release_day_I < NEVER
    return pl.DataFrame(
        {
            "item": item_ids(config.items),
            "department": catalogue.department_I,
            "kind": catalogue.kind_I,
            "category": catalogue.leaf_I,
            "emblem": catalogue.emblem_I,
            "style": catalogue.style_I,
            "colour": catalogue.colour_I,
            "pattern": catalogue.pattern_I,
            "popularity": np.exp(catalogue.log_popularity_I + catalogue.leaf_log_popularity_L[catalogue.leaf_I]),
            "quality": catalogue.quality_I,
            "release_day": np.where(sold, catalogue.release_day_I, -1),
            "sold": sold,
            "late": sold & (catalogue.release_day_I > 0),
            "has_picture": catalogue.has_picture_I,
            "has_text": catalogue.has_text_I,
        }
    )
