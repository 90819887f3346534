"""The shop's items: their planted factors, popularity and when they are sold."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np

from hisam_jax.data.shop import vocabulary as words
from hisam_jax.data.shop.config import ShopConfig

NEVER = np.iinfo(np.int32).max
_STREAM = 1  # of the seed


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """Factors of I items, and the items of each of the 256 leaves.

    Attributes:
        leaf_I: place in the category tree, `kind * 8 + emblem`; department and kind follow from it.
        style_I: told by the text only.
        colour_I: told by the picture only.
        pattern_I: told by the picture only.
        log_popularity_I: log of the Zipf weight within the leaf.
        quality_I: what every user's rating gains, stars.
        release_day_I: first day on which it is sold, days since the log began; `NEVER` where it is not sold.
        has_picture_I: whether it has a picture.
        has_text_I: whether it has any text.
        members_LM: items of each leaf, the last repeated as padding.
        leaf_size_L: items of each leaf.
        leaf_log_popularity_L: log of the Zipf weight of each leaf.
        on_sale_DL: items of each leaf on sale on each day, int32.
    """

    leaf_I: np.ndarray
    style_I: np.ndarray
    colour_I: np.ndarray
    pattern_I: np.ndarray
    log_popularity_I: np.ndarray
    quality_I: np.ndarray
    release_day_I: np.ndarray
    has_picture_I: np.ndarray
    has_text_I: np.ndarray
    members_LM: np.ndarray
    leaf_size_L: np.ndarray
    leaf_log_popularity_L: np.ndarray
    on_sale_DL: np.ndarray

    @property
    def kind_I(self) -> np.ndarray:
        return self.leaf_I // words.NUM_EMBLEMS

    @property
    def department_I(self) -> np.ndarray:
        return self.kind_I // words.KINDS_PER_DEPARTMENT

    @property
    def emblem_I(self) -> np.ndarray:
        return self.leaf_I % words.NUM_EMBLEMS


def make_catalogue(config: ShopConfig) -> Catalogue:
    """The catalogue of a config; depends on its item fields and seed, not on `users`. Arrays only, no words."""
    return _make(dataclasses.replace(config, users=1))


@functools.lru_cache(maxsize=2)
def _make(config: ShopConfig) -> Catalogue:
    I, L = config.items, words.NUM_LEAVES  # noqa: E741
    rng = np.random.default_rng([config.seed, _STREAM])
    leaf_I = rng.permutation(np.arange(I) % L).astype(np.int32)
    style_I, colour_I, pattern_I = (
        rng.integers(size, size=I, dtype=np.int32) for size in (words.NUM_STYLES, words.NUM_COLOURS, words.NUM_PATTERNS)
    )
    members_LM, size_L, place_I = _members(leaf_I, rng)
    release_day_I = _release_days(config, rng)
    return Catalogue(
        leaf_I=leaf_I,
        style_I=style_I,
        colour_I=colour_I,
        pattern_I=pattern_I,
        log_popularity_I=-config.popularity * np.log1p(place_I),
        quality_I=rng.normal(0.0, 0.35, I),
        release_day_I=release_day_I,
        has_picture_I=rng.random(I) >= config.missing_picture,
        has_text_I=rng.random(I) >= config.missing_title,
        members_LM=members_LM,
        leaf_size_L=size_L,
        leaf_log_popularity_L=-config.popularity * np.log1p(rng.permutation(L)),
        on_sale_DL=_on_sale(leaf_I, release_day_I, config),
    )


def _members(leaf_I: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items of each leaf in a random order, leaf sizes, and each item's place in that order."""
    size_L = np.bincount(leaf_I, minlength=words.NUM_LEAVES)
    shuffled_I = rng.permutation(len(leaf_I))
    sorted_I = shuffled_I[np.argsort(leaf_I[shuffled_I], kind="stable")]
    first_L = np.cumsum(size_L) - size_L
    place_M = np.arange(max(1, size_L.max()))
    index_LM = np.minimum(first_L[:, None] + np.minimum(place_M, np.maximum(size_L - 1, 0)[:, None]), len(leaf_I) - 1)
    place_I = np.empty(len(leaf_I), np.int64)
    place_I[sorted_I] = np.arange(len(leaf_I)) - np.repeat(first_L, size_L)
    return sorted_I[index_LM], size_L, place_I


def _release_days(config: ShopConfig, rng: np.random.Generator) -> np.ndarray:
    """Day 0 for most; of the cold items two in three come in the last tenth of the time and one never."""
    day_I = np.zeros(config.items, np.int32)
    cold = rng.permutation(config.items)[: round(config.cold_items * config.items)]
    never, late = cold[: len(cold) // 3], cold[len(cold) // 3 :]
    day_I[late] = rng.uniform(0.9, 0.99, len(late)) * config.horizon_days
    day_I[never] = NEVER
    return day_I


def _on_sale(leaf_I: np.ndarray, release_day_I: np.ndarray, config: ShopConfig) -> np.ndarray:
    days = int(np.ceil(config.horizon_days)) + 1
    sold = release_day_I < days
    new_DL = np.zeros((days, words.NUM_LEAVES), np.int32)
    np.add.at(new_DL, (release_day_I[sold], leaf_I[sold]), 1)
    return np.cumsum(new_DL, axis=0, dtype=np.int32)
