"""The items' words: synonyms of what text tells, a typo now and then, and words that mean nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hisam_jax.data.shop import vocabulary as words
from hisam_jax.data.shop.catalogue import Catalogue
from hisam_jax.data.shop.config import ShopConfig

TYPO = 0.04  # share of words with two letters swapped
_STREAM = 2  # of the seed
_DRAWS = 24


def make_words(config: ShopConfig, catalogue: Catalogue) -> tuple[list[str | None], list[str], list[list[str]]]:
    """Titles, attributes and category paths of all items; None, "" and [] where an item has no text."""
    draws_ID = np.random.default_rng([config.seed, _STREAM]).random((config.items, _DRAWS)).tolist()
    kinds, emblems = catalogue.kind_I.tolist(), catalogue.emblem_I.tolist()
    rows = zip(draws_ID, kinds, emblems, catalogue.style_I.tolist(), catalogue.has_text_I.tolist(), strict=True)
    made = [_item_words(iter(draw), *rest) if has else (None, "", []) for draw, *rest, has in rows]
    return tuple(map(list, zip(*made, strict=True)))


def _item_words(draw, kind: int, emblem: int, style: int) -> tuple[str, str, list[str]]:
    """The style stands in the title, the attributes or both; so does the emblem's second mention."""
    departments = words.DEPARTMENTS[kind // words.KINDS_PER_DEPARTMENT]
    where = next(draw)
    title = [_pick(words.BRANDS, draw)]
    title += [_typo(_pick(words.STYLES[style], draw), draw)] if where < 0.7 else []
    title += [_typo(_pick(words.EMBLEMS[emblem], draw), draw), _typo(_pick(words.KINDS[kind], draw), draw)]
    title += [_pick(words.FILLERS, draw)] if next(draw) < 0.4 else []
    text = [_pick(words.STYLES[style], draw)] if where > 0.3 else []
    text += [_pick(departments, draw), _typo(_pick(words.KINDS[kind], draw), draw), _pick(words.FILLERS, draw)]
    text += [_pick(words.EMBLEMS[emblem], draw)] if next(draw) < 0.6 else []
    path = [departments[0], words.KINDS[kind][0]][: 1 if next(draw) < 0.15 else 2]
    return " ".join(title), ", ".join(text), path


def _pick(options: Sequence[str], draw) -> str:
    return options[int(next(draw) * len(options))]


def _typo(word: str, draw) -> str:
    """Swaps two inner letters in a few words."""
    chance = next(draw)
    if chance >= TYPO or len(word) < 4:
        return word
    at = 1 + int(chance / TYPO * (len(word) - 2))
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
