"""`sequences.txt`: one user a line, `user item item ...`, oldest first, with `items.csv` or `movies.dat`.

There are no ratings and no timestamps: the order in the file is the only order, and where the file was sorted by
something else inside a day (Amazon 2014) that order leaks. A repeated item is a repeated event.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from hisam_jax.data.readers.base import INTERACTION_SCHEMA, RawData
from hisam_jax.data.readers.catalogue import ItemRow, Pictures, build_catalogue, item_row, read_records, select_fields
from hisam_jax.data.readers.columns import (
    check_has_rows,
    find_file,
    need_columns,
    read_header,
    scan_lines,
    to_interactions,
)
from hisam_jax.data.readers.movielens import read_movies

EXPECTED = "sequences.txt with items.csv (item_id,asin,title,categories) or movies.dat"


def read(raw: Path, images: Path | None = None) -> RawData:
    """Reads `sequences.txt` and its catalogue; pictures go by item id or, in `items.csv`, by `asin`.

    Raises:
        UserError: a file is missing or empty, `items.csv` has no `item_id`, or no item is usable.
    """
    path = find_file(raw, ("sequences.txt",), EXPECTED)
    catalogue = find_file(path.parent, ("items.csv", "movies.dat", "movies.csv"), EXPECTED)
    pictures = Pictures(images)
    items, refused = (_read_items if catalogue.name == "items.csv" else read_movies)(catalogue, pictures)
    events = to_interactions(check_has_rows(_scan_events(path), path))
    return RawData(
        interactions=events.drop("order").with_row_index("order").select(list(INTERACTION_SCHEMA)),
        items=items,
        interactions_path=path,
        items_path=catalogue,
        has_ratings=False,
        has_timestamps=False,
        refused_items=refused,
    )


def _scan_events(path: Path) -> pl.LazyFrame:
    words = pl.col("raw").str.extract_all(r"\S+")
    return (
        scan_lines(path)
        .filter(pl.col("raw").str.strip_chars() != "")
        .select("row", user=words.list.first(), item=words.list.slice(1), broken=pl.lit(False))
        .explode("item", empty_as_null=True)  # a user without items stays, as a row without an item
    )


def _read_items(path: Path, pictures: Pictures) -> tuple[pl.DataFrame, dict[str, int]]:
    header = read_header(path, ",")
    need_columns(path, header, ("item_id",))
    return build_catalogue(_item_rows(path, header, pictures), path)


def _item_rows(path: Path, header: list[str], pictures: Pictures) -> Iterator[tuple[int, ItemRow | str]]:
    for line, record in select_fields(read_records(path), header):
        if isinstance(record, str):
            yield line, record
        else:
            item, asin = record["item_id"].strip(), record.get("asin", "").strip()
            words = record.get("categories", "").split("|")
            yield line, item_row(item, record.get("title"), words, (), pictures.find(item, asin))
