"""The embedded shop as a source: generated where it is not yet, reused where it is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import polars as pl

from hisam_jax.config import build
from hisam_jax.data.readers.base import INTERACTION_SCHEMA, ITEM_SCHEMA, RawData
from hisam_jax.data.shop import ShopConfig, generate
from hisam_jax.data.shop.generator import FORMAT, SHOP, TABLES
from hisam_jax.errors import UserError
from hisam_jax.files import sha256_file


def read(raw: str | Path, images: str | Path | None = None, **options: Any) -> RawData:
    """The shop of `ShopConfig(**options)` in the folder `raw`; an option of None takes its default.

    `images` names another folder of pictures, `<item>.jpg`, in place of the shop's own.

    Raises:
        UserError: an unknown option or a value out of range; `raw` holds another shop (says which fields differ), a
            shop that was altered, or something that is no shop.
    """
    folder = Path(raw)
    config = build(ShopConfig, {name: value for name, value in options.items() if value is not None}, "shop")
    if not _holds(folder, config):
        generate(config, folder)
    pictures = Path(images) if images is not None else folder / "images"
    return RawData(
        interactions=_interactions(folder),
        items=_items(folder, pictures),
        interactions_path=folder / "interactions.parquet",
        items_path=folder / "items.parquet",
        has_ratings=True,
        has_timestamps=True,
        sliceable=True,
        truth=pl.read_parquet(folder / "truth.parquet"),
    )


def _holds(folder: Path, config: ShopConfig) -> bool:
    """Whether `folder` is this very shop; an empty or absent one is free for it, anything else an error."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    file = folder / SHOP
    if not file.is_file():
        raise UserError("this is not a shop's folder", path=folder, expected="an empty or absent folder, or a shop")
    try:
        found = json.loads(file.read_text())
        version, fields, files = found["format"], dict(found["config"]), dict(found["files"])
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise UserError("broken shop description", path=file, hint="remove the folder to have it made anew") from error
    _same_config(version, fields, config, file)
    for name in TABLES:
        if not (folder / name).is_file() or sha256_file(folder / name) != files.get(name):
            raise UserError("altered or missing", path=folder / name, hint="remove the folder to have it made anew")
    return True


def _same_config(version: Any, fields: dict[str, Any], config: ShopConfig, file: Path) -> None:
    wanted = {"format": FORMAT} | dataclasses.asdict(config)
    have = {"format": version} | fields
    differ = [name for name in {**wanted, **have} if wanted.get(name) != have.get(name)]
    if differ:
        there = ", ".join(f"{name}={have.get(name)!r}" for name in differ)
        here = ", ".join(f"{name}={wanted.get(name)!r}" for name in differ)
        hint = "name another folder, or the same options"
        raise UserError(f"another shop is here: {there}", path=file, field=differ[0], expected=here, hint=hint)


def _interactions(folder: Path) -> pl.LazyFrame:
    frame = pl.scan_parquet(folder / "interactions.parquet").with_row_index("order")
    extra = {"line": pl.col("order") + 1, "reason": pl.lit(None)}
    return frame.with_columns(**extra).select(pl.col(name).cast(kind) for name, kind in INTERACTION_SCHEMA.items())


def _items(folder: Path, pictures: Path) -> pl.DataFrame:
    name = pl.col("image").str.split("/").list.last()
    items = pl.read_parquet(folder / "items.parquet").with_columns(image=pl.lit(f"{pictures}/") + name)
    return items.select(pl.col(column).cast(kind) for column, kind in ITEM_SCHEMA.items())
