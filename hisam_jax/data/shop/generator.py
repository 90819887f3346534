"""The shop as an endless stream of users, and as a raw folder on disk."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from hisam_jax.data.shop.catalogue import make_catalogue
from hisam_jax.data.shop.config import ShopConfig
from hisam_jax.data.shop.pictures import picture
from hisam_jax.data.shop.tables import item_ids, item_table, truth_table
from hisam_jax.data.shop.users import COLD, UserEvents, block_size, simulate_block
from hisam_jax.files import atomic_directory, sha256_file, sha256_of

FORMAT = 1  # rises whenever the same config would give other data
SHOP = "shop.json"
TABLES = ("interactions.parquet", "items.parquet", "truth.parquet", "events_truth.parquet", "users_truth.parquet")


def stream_users(config: ShopConfig, start: int = 0) -> Iterator[UserEvents]:
    """Users `start`, `start + 1`, ... without end; `config.users` does not matter, user u is the same in any shop."""
    size = block_size(make_catalogue(config))
    blocks = (_block(_endless(config), number) for number in itertools.count(start // size))
    yield from itertools.islice(itertools.chain.from_iterable(blocks), start % size, None)


def user_events(config: ShopConfig, user: int) -> UserEvents:
    """One user out of turn, at the price of a block of users."""
    return next(stream_users(config, user))


def generate(config: ShopConfig, out: str | Path) -> Path:
    """Writes the shop's raw folder, whole or not at all: five tables, `images/` and `shop.json`.

    Raises:
        UserError: the disk is full.
    """
    with atomic_directory(out) as folder:
        item_table(config).write_parquet(folder / "items.parquet")
        truth_table(config).write_parquet(folder / "truth.parquet")
        events, users = _tables(config)
        events.select("user", "item", "rating", "timestamp").write_parquet(folder / "interactions.parquet")
        truth = events.select("user", "item", "timestamp", "oracle_nll", "favourite_kind")
        truth.write_parquet(folder / "events_truth.parquet")
        users.write_parquet(folder / "users_truth.parquet")
        _write_pictures(config, folder / "images")
        (folder / SHOP).write_text(json.dumps(_describe(config, folder, events, users), indent=1) + "\n")
    return Path(out)


def user_ids(users: np.ndarray) -> list[str]:
    """Ids in the order of the stream, which tells nothing about them."""
    return [f"u{user:07d}" for user in users.tolist()]


@functools.lru_cache(maxsize=2)
def _block(config: ShopConfig, number: int) -> list[UserEvents]:
    return simulate_block(config, number)


def _endless(config: ShopConfig) -> ShopConfig:
    return dataclasses.replace(config, users=1)


def _tables(config: ShopConfig) -> tuple[pl.DataFrame, pl.DataFrame]:
    """All events (user by user, oldest first) with their truth, and the truth by user."""
    everyone = list(itertools.islice(stream_users(config), config.users))
    sizes = np.array([len(one.item) for one in everyone])
    ids, names = pl.Series(user_ids(np.arange(config.users))), pl.Series(item_ids(config.items))
    joined = {
        name: np.concatenate([getattr(one, name) for one in everyone])
        for name in ("item", "rating", "timestamp", "nll", "favourite_kind")
    }
    events = pl.DataFrame(
        {"user": ids.gather(np.repeat(np.arange(config.users), sizes)), "item": names.gather(joined.pop("item"))}
        | joined
    ).rename({"nll": "oracle_nll"})
    users = pl.DataFrame(
        {
            "user": ids,
            "events": sizes,
            "cold": sizes < COLD,
            "oracle_nll": [float(one.nll.mean()) for one in everyone],
            "oracle_last_rank": pl.Series([one.last_rank or None for one in everyone], dtype=pl.Int64),
            "bias": [one.bias for one in everyone],
            "first_favourite_kind": [int(one.favourite_kind[0]) for one in everyone],
            "last_favourite_kind": [int(one.favourite_kind[-1]) for one in everyone],
        }
    )
    return events, users


def _write_pictures(config: ShopConfig, folder: Path) -> None:
    catalogue, names = make_catalogue(config), item_ids(config.items)
    folder.mkdir()
    for item in np.flatnonzero(catalogue.has_picture_I).tolist():
        (folder / f"{names[item]}.jpg").write_bytes(picture(config, catalogue, item))


def _describe(config: ShopConfig, folder: Path, events: pl.DataFrame, users: pl.DataFrame) -> dict:
    files = {name: sha256_file(folder / name) for name in TABLES}
    return {
        "format": FORMAT,
        "config": dataclasses.asdict(config),
        "interactions": events.height,
        "oracle_nll": float(events["oracle_nll"].mean()),
        "oracle_recall@10": (users["oracle_last_rank"] <= 10).mean(),
        "files": files,
        "checksum": sha256_of(json.dumps([FORMAT, dataclasses.asdict(config), files])),
    }
