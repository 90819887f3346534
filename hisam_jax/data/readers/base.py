"""What every reader gives: a lazy table of events, a table of items, and why rows were refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from hisam_jax.data.readers.line_log import LineLog

INTERACTION_SCHEMA = {
    "user": pl.String,
    "item": pl.String,
    "rating": pl.Float32,  # null where the source has none
    "timestamp": pl.Int64,  # seconds since 1970, null where the source has none
    "order": pl.UInt32,  # 0-based place in the source; decides the order only where there are no timestamps
    "line": pl.UInt32,  # 1-based line of the source file, for messages
    "reason": pl.String,  # null for a usable row, else a key of REASONS
}
ITEM_SCHEMA = {
    "item": pl.String,
    "title": pl.String,  # null or "" where missing
    "text": pl.String,  # attributes other than the title as words: genres, categories, brand
    "categories": pl.List(pl.String),
    "image": pl.String,  # path of a picture file, null where missing
}
# reason -> (field, what was expected)
REASONS: dict[str, tuple[str, str]] = {
    "broken_row": ("row", "as many fields as the header has, or one JSON object"),
    "not_utf8": ("row", "UTF-8 text"),
    "missing_user": ("user", "a user id"),
    "missing_item": ("item", "an item id"),
    "bad_rating": ("rating", "a finite number"),
    "bad_timestamp": (
        "timestamp",
        "seconds since 1970, between 0 and 4102444800 (the year 2100), or in a table an ISO date",
    ),
    "unknown_item": ("item", "an item of the catalogue"),
    "duplicate_interaction": ("row", "one event per user, item and time"),
    "duplicate_item": ("item", "one catalogue row per item (the first is kept)"),
    "broken_image": ("image", "a readable picture"),
}


@dataclasses.dataclass(frozen=True)
class RawData:
    """A source as read, nothing filtered yet.

    Attributes:
        interactions: INTERACTION_SCHEMA, lazily; unusable rows are still there, with their `reason`.
        items: ITEM_SCHEMA, one row an item, unique ids.
        interactions_path: the file that messages about interactions name.
        items_path: the file that messages about items name.
        has_ratings: whether `rating` is filled.
        has_timestamps: whether `timestamp` is filled.
        refused_items: reason -> how many rows of the catalogue, and the line of the first.
        features: modality -> file of precomputed features, where the source brings them.
        lines: how the log's lines become `interactions`, where it is one event a line.
        sliceable: whether a slice of `interactions` is read without what lies before it (Parquet).
        truth: planted factors per item (column `item` first), for tests only.
    """

    interactions: pl.LazyFrame
    items: pl.DataFrame
    interactions_path: Path
    items_path: Path
    has_ratings: bool
    has_timestamps: bool
    refused_items: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    features: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    lines: LineLog | None = None
    sliceable: bool = False
    truth: pl.DataFrame | None = None

    @property
    def rejected_items(self) -> dict[str, int]:
        """reason -> how many rows of the catalogue."""
        return {reason: count for reason, (count, _) in self.refused_items.items()}
