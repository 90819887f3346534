"""A release's items as they are now: arrays with room for new ones, and names; replaced whole when they change."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from hisam_jax.data.dataset import COLD_ITEM_EVENTS, Dataset
from hisam_jax.inference.engine import Items
from hisam_jax.inference.filters import ItemFacts, bit_sets
from hisam_jax.models.catalog import Catalog, feature_scales, standardised
from hisam_jax.tokenizer.trie import Trie

CATEGORIES = 256  # the most frequent ones, which requests may ask for
DAY = 86_400  # seconds


@dataclasses.dataclass(frozen=True)
class Added:
    """An item that came after training.

    Attributes:
        item_id, title, categories: as given.
        features: modality -> [F], those it has.
        codes: of its ID, the digit last where there is one; empty before it is given one.
        ids: checksum of the table that `codes` extends.
        day: on which it came, counted from 1970.
        removed: no longer served.
        text: as given.
        picture: a small JPEG in base64; empty: none.
        encoded: modality -> checksum of the encoder that made these features of its words or its picture.
    """

    item_id: str
    title: str
    categories: tuple[str, ...]
    features: Mapping[str, Sequence[float]]
    codes: tuple[int, ...] = ()
    ids: str = ""
    day: int = 0
    removed: bool = False
    text: str = ""
    picture: str = ""
    encoded: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Names:
    """What is shown of items, by row; `row` grows in place, rows never move."""

    ids: list[str]
    titles: list[str]
    row: dict[str, int]
    categories: dict[str, int]

    @classmethod
    def of(cls, dataset: Dataset) -> Names:
        """Those of a dataset."""
        ids = dataset.items["item_id"].to_list()
        titles = [title or name for title, name in zip(dataset.items["title"].to_list(), ids, strict=True)]
        counted = dataset.items["categories"].explode().drop_nulls().value_counts(sort=True).head(CATEGORIES)
        categories = {name: place for place, name in enumerate(sorted(counted.to_series(0).to_list()))}
        return cls(ids, titles, {name: row for row, name in enumerate(ids)}, categories)

    def any_of(self, names: Sequence[str]) -> np.ndarray:
        """uint32 words of a bit set; `KeyError` of a category that is not known."""
        members = np.zeros((1, len(self.categories)), bool)
        members[0, [self.categories[name] for name in names]] = True
        return bit_sets(members)[0]


def today() -> int:
    """Days since 1970."""
    return int(time.time() // DAY)


class Shelf:
    """Host arrays of all items and of the rows that wait for new ones, from which `Items` are made.

    Args:
        dataset: the catalogue.
        catalog: its frozen tables.
        counts_I: training interactions.
        room: rows for new items.
    """

    def __init__(self, dataset: Dataset, catalog: Catalog, counts_I: np.ndarray, names: Names, room: int):
        self.capacity = catalog.items + room
        self._scales = feature_scales(dataset.features, dataset.present, np.asarray(catalog.trained_I))
        self._codes_IL = self._roomy(catalog.codes_IL)
        self._features = {name: self._roomy(values) for name, values in catalog.features.items()}
        self._trained_I, self._frequency_I = self._roomy(catalog.trained_I), self._roomy(catalog.frequency_I)
        self._popularity_I = self._roomy(np.log1p(np.asarray(counts_I, np.float32)))
        self._cold_I = self._roomy(dataset.train_items & (np.asarray(counts_I) < COLD_ITEM_EVENTS))
        self._cold_I[: catalog.items] |= ~dataset.train_items
        self.servable_I = self._roomy(np.ones(catalog.items, bool))
        self._added_I = np.zeros(self.capacity, np.int32)
        self._members_IA = np.zeros((self.capacity, len(names.categories)), bool)
        for row, held in enumerate(dataset.items["categories"].to_list()):
            self._categorise(row, held or (), names)

    def put(self, row: int, item: Added, codes_L: np.ndarray, names: Names) -> None:
        """A new item in its row."""
        self._codes_IL[row] = codes_L
        for name, values_IF in self._features.items():
            given = item.features.get(name)
            value_F = np.zeros(values_IF.shape[1]) if given is None else np.asarray(given, np.float32)
            values_IF[row] = standardised(value_F[None], np.array([given is not None]), self._scales[name])[0]
        self._added_I[row], self._cold_I[row], self.servable_I[row] = item.day, True, not item.removed
        self._categorise(row, item.categories, names)

    def catalog(self) -> Catalog:
        """The model's tables as they are now."""
        features = {name: jnp.array(values) for name, values in self._features.items()}
        return Catalog(
            jnp.array(self._codes_IL), features, jnp.array(self._trained_I), jnp.array(self._frequency_I)
        )  # fmt: skip

    def items(self, catalog: Catalog, trie: Trie, vectors_ID) -> Items:
        """All of it on the device."""
        facts = ItemFacts(
            jnp.array(self.servable_I), jnp.array(self._added_I), jnp.array(bit_sets(self._members_IA))
        )  # fmt: skip
        return Items(catalog, trie, facts, vectors_ID, jnp.array(self._popularity_I), jnp.array(self._cold_I))

    def _categorise(self, row: int, held: Sequence[str], names: Names) -> None:
        self._members_IA[row] = False
        self._members_IA[row, [names.categories[name] for name in held if name in names.categories]] = True

    def _roomy(self, values: np.ndarray) -> np.ndarray:
        values = np.asarray(values)
        return np.pad(values, ((0, self.capacity - len(values)), *((0, 0),) * (values.ndim - 1)))
