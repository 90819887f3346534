"""What preparing the events asks for and what it leaves, whichever engine does it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hisam_jax.data.encoders import Interactions
from hisam_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Settings:
    """How events are filtered, ordered and split: arguments of `prepare`."""

    protocol: str
    min_user: int
    min_item: int
    seed: int
    max_rejected: float
    need_liked: bool  # whether an encoder reads the training positives


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What is known once the sequences are written; nothing here grows with the events but `liked`.

    Attributes:
        users: users.parquet: user_id, events, train_events, one row a user index.
        item_ids: one an item index.
        item_train: int32 [I], training events of each item.
        cold_users: how many.
        rejected: reason -> rows of the log.
        liked: training positives where they were asked for, else empty.
        report: keys of the manifest.
    """

    users: pl.DataFrame
    item_ids: pl.Series
    item_train: np.ndarray
    cold_users: int
    rejected: dict[str, int]
    liked: Interactions
    report: dict[str, Any]


def users_table(ids: pl.Series, events: np.ndarray, train: np.ndarray) -> pl.DataFrame:
    """Rows of users.parquet."""
    return pl.DataFrame({"user_id": ids, "events": events, "train_events": train})


def report(
    settings: Settings,
    users: pl.DataFrame,
    num_items: int,
    before: int,
    interactions: int,
    cuts: Mapping[str, int],
    after_test: int,
    split_counts: Mapping[str, int],
    checksum: str,
) -> dict[str, Any]:
    """Keys of the manifest; `before` and `interactions` count events without and with the k-core applied."""
    lengths = users["events"].to_numpy()
    core = {
        "min_user": settings.min_user,
        "min_item": settings.min_item,
        "interactions_dropped": before - interactions,
    }
    split = {"protocol": settings.protocol, "seed": settings.seed}
    split |= {"cuts": dict(cuts)} if cuts else {}
    split |= {"after_test": after_test, "checksum": checksum, **split_counts}
    return {
        "users": len(users),
        "items": num_items,
        "interactions": interactions,
        "core": core,
        "split": split,
        "history": {"median": float(np.median(lengths)), "max": int(lengths.max())},
    }


def check_events_left(left: int, before: int, settings: Settings, path: Path) -> None:
    """Stops where the k-core is empty."""
    if not left:
        raise UserError(
            f"no event is left of {before:,}", path=path, field="min_user, min_item",
            expected=f"a smaller --min-user than {settings.min_user} or --min-item than {settings.min_item}",
        )  # fmt: skip
