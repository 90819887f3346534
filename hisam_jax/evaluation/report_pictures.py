"""Items as the report shows them: a title, and a picture as a data URI or a coloured tile in its place."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image

from hisam_jax.data.dataset import Dataset

TINTS = 6  # tile colours that the style sheet defines
TITLE_RATIO = 0.74


class Pictures:
    """Looks up what to show of an item."""

    def __init__(self, dataset: Dataset):
        self._dataset = dataset
        self._titles = dataset.items["title"].to_list()
        self._ids = dataset.items["item_id"].to_list()
        self._popular = np.argsort(-dataset.items["train_count"].to_numpy(), kind="stable")

    @property
    def ratio(self) -> float:
        """Width over height of the usual picture; that of a title tile where there are none."""
        pictures = [jpeg for item in self._popular[:40] if (jpeg := self._dataset.thumbnail(item))]
        ratios = [width / height for width, height in (Image.open(io.BytesIO(jpeg)).size for jpeg in pictures)]
        return float(np.clip(np.median(ratios), 0.5, 1.6)) if ratios else TITLE_RATIO

    def tile(self, item: int, **extra: Any) -> dict[str, Any]:
        """`{title, id, tint, rank, hit, picture}` with `extra` over them; `picture` is None where the item has none."""
        jpeg = self._dataset.thumbnail(item)
        return {
            "title": self._titles[item] or self._ids[item],
            "id": self._ids[item],
            "tint": int(item) % TINTS,
            "rank": None,
            "hit": False,
            "picture": None if jpeg is None else "data:image/jpeg;base64," + base64.b64encode(jpeg).decode(),
        } | extra

    def tiles(self, items: Iterable[int]) -> list[dict[str, Any]]:
        """A tile for each item."""
        return [self.tile(int(item)) for item in items]

    def most_popular(self, count: int) -> list[dict[str, Any]]:
        """Tiles of the items most often met in training that have a picture; too few to look at gives none."""
        chosen = [item for item in self._popular[: 4 * count] if self._dataset.thumbnail(item) is not None][:count]
        return self.tiles(chosen) if len(chosen) >= count // 2 else []

    def by_popularity(self, items: np.ndarray) -> np.ndarray:
        """The items, those with a picture first, each part by training count."""
        items = items[np.argsort(-self._dataset.items["train_count"].to_numpy()[items], kind="stable")]
        return items[np.argsort([self._dataset.thumbnail(item) is None for item in items], kind="stable")]
