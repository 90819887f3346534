"""A user's own tables, CSV or Parquet, with the columns named by options."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from hisam_jax.data.readers.base import RawData
from hisam_jax.data.readers.catalogue import (
    ItemRow,
    Pictures,
    build_catalogue,
    clean_id,
    item_row,
    read_records,
    select_fields,
)
from hisam_jax.data.readers.columns import (
    check_file,
    check_has_rows,
    has_byte,
    need_columns,
    read_header,
    split_events,
    timestamp_unit,
    to_interactions,
    whole_parquet,
)
from hisam_jax.data.readers.line_log import LineLog
from hisam_jax.errors import UserError

PARQUET = (".parquet", ".pq")
MOMENTS = (pl.Datetime, pl.Date)
USUAL = {  # what a column is called when nobody names it
    "rating": ("rating",),
    "timestamp": ("timestamp",),
    "title": ("title", "name"),
    "text": ("text", "description"),
    "categories": ("categories", "category"),
    "image": ("image",),
}


def read(
    raw: Path,
    images: Path | None = None,
    *,
    interactions: str = "interactions.csv",
    items: str = "items.csv",
    user: str = "user",
    item: str = "item",
    rating: str | None = None,
    timestamp: str | None = None,
    title: str | None = None,
    text: str | None = None,
    categories: str | None = None,
    image: str | None = None,
    separator: str = ",",
    category_separator: str = "|",
) -> RawData:
    """Reads two tables; a column that is None goes by its usual name where there is one, '' is not read.

    Timestamps may be dates in ISO form, seconds, or milli-, micro- or nanoseconds since 1970; the unit is that of most
    of the column. In a CSV of interactions a quoted field may hold separators but no line break: such lines count as
    broken, and Parquet takes them.

    Args:
        raw: the folder that `interactions` and `items` are relative to; `.gz` is read as it is.
        images: folder of pictures, found by the `image` column's file name or by item id.
        user: column of both id kinds: `user` in the interactions, `item` in both tables.
        text: columns that become text, joined by commas: `brand,description`.
        categories: column of categories, joined by `category_separator`, or a Parquet list.
        image: column with a picture's path or URL; a path is looked for below `images`, or else below `raw`.
        separator: between the fields of both CSV files; `\\t` for a tab.

    Raises:
        UserError: a file or a named column is missing, a file is empty, or no item is usable.
    """
    separator = _separator(separator)
    events_path = check_file(raw / interactions, "a CSV or Parquet table of interactions")
    items_path = check_file(raw / items, "a CSV or Parquet table of items")
    names = _names(events_path, separator)
    rating, timestamp = _usual("rating", rating, names), _usual("timestamp", timestamp, names)
    wanted = {"user": user, "item": item, "rating": rating, "timestamp": timestamp}
    wanted = {name: column for name, column in wanted.items() if column}
    need_columns(events_path, names, list(wanted.values()))
    log = None if _is_parquet(events_path) else _line_log(events_path, separator, names, wanted)
    with whole_parquet(events_path):
        rows = log.scan_rows() if log else check_has_rows(_parquet_events(events_path, wanted), events_path)
        unit = timestamp_unit(rows) if timestamp else "s"
    log = log and dataclasses.replace(log, unit=unit)
    names = _names(items_path, separator)
    given = {"title": title, "text": text, "categories": categories, "image": image}
    chosen = {part: _usual(part, column, names) or "" for part, column in given.items()}
    groups = {part: column.split(",") if part == "text" else [column] for part, column in chosen.items()}
    parts = {part: [name.strip() for name in group if name.strip()] for part, group in groups.items()}
    records = _records(items_path, separator, item, [name for group in parts.values() for name in group])
    catalogue, refused = build_catalogue(
        _item_rows(records, item, parts, category_separator, Pictures(images), raw), items_path
    )
    return RawData(
        interactions=log.scan() if log else to_interactions(rows, unit=unit, dates=True),
        items=catalogue,
        interactions_path=events_path,
        items_path=items_path,
        has_ratings=bool(rating),
        has_timestamps=bool(timestamp),
        refused_items=refused,
        lines=log,
        sliceable=log is None,
    )


def _usual(part: str, given: str | None, names: Sequence[str]) -> str | None:
    return next((name for name in USUAL[part] if name in names), None) if given is None else given


def _names(path: Path, separator: str) -> list[str]:
    if _is_parquet(path):
        return _scan_parquet(path, []).collect_schema().names()
    names = read_header(path, separator)
    other = next((mark for mark in ";\t|," if len(names) == 1 and mark in names[0]), None)
    if other:
        expected = f"fields parted by {separator!r}, or --separator {other!r}"
        raise UserError(f"one column '{names[0]}'", path=path, line=1, field="separator", expected=expected)
    return names


def _line_log(path: Path, separator: str, header: list[str], columns: dict[str, str]) -> LineLog:
    form = {"separator": separator, "header": header, "columns": columns, "quoted": has_byte(path, b'"')}
    return LineLog(path, functools.partial(split_events, **form), dates=True, first_line=1)


def _separator(text: str) -> str:
    separator = {"\\t": "\t", "tab": "\t"}.get(text, text)
    if len(separator) != 1 or separator in '"\r\n':
        raise UserError(
            f"separator '{text}'", field="separator", expected="one character, neither a quote nor a line end, or \\t"
        )
    return separator


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() in PARQUET


def _scan_parquet(path: Path, needed: list[str]) -> pl.LazyFrame:
    try:
        frame = pl.scan_parquet(path, glob=False)
        names = frame.collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"not a Parquet file: {error}", path=path, expected="a whole Parquet file") from error
    need_columns(path, names, needed)
    return frame


def _need_plain(path: Path, schema: pl.Schema, columns: Iterable[str]) -> None:
    for column in columns:
        kind = schema[column]
        if kind.is_nested() or kind in (pl.Duration, pl.Time, pl.Object):
            raise UserError(f"a column of {kind}", path=path, field=column, expected="text, numbers or dates")


def _parquet_events(path: Path, wanted: dict[str, str]) -> pl.LazyFrame:
    """The string columns that `to_interactions` takes; `row` is the row's number."""
    frame = _scan_parquet(path, list(wanted.values()))
    schema = frame.collect_schema()
    _need_plain(path, schema, wanted.values())
    texts = {name: _as_text(column, schema[column]) for name, column in wanted.items()}
    whole = {name: _as_whole(column, schema[column]) for name, column in wanted.items() if name in ("user", "item")}
    return frame.with_row_index("row").select("row", **{**texts, **whole}, broken=pl.lit(False))


def _as_text(column: str, kind: pl.DataType) -> pl.Expr:
    if isinstance(kind, MOMENTS):
        return pl.col(column).dt.epoch("s").cast(pl.String)
    return pl.col(column).cast(pl.String, strict=False)


def _as_whole(column: str, kind: pl.DataType) -> pl.Expr:
    """Ids that pandas turned into floats because one was missing are whole numbers again."""
    whole = pl.col(column).cast(pl.Int64, strict=False) if kind.is_float() else pl.col(column)
    return whole.cast(pl.String, strict=False)


def _records(path: Path, separator: str, item: str, needed: list[str]) -> Iterator[tuple[int, dict[str, Any] | str]]:
    needed = list(dict.fromkeys([item, *needed]))
    if _is_parquet(path):
        frame = _scan_parquet(path, needed).select(needed)
        _need_plain(path, frame.collect_schema(), [item])
        with whole_parquet(path):
            rows = frame.with_columns(_as_whole(item, frame.collect_schema()[item]).alias(item)).collect()
        return enumerate(rows.iter_rows(named=True), start=1)
    header = read_header(path, separator)
    need_columns(path, header, needed)
    return select_fields(read_records(path, separator), header)


def _item_rows(
    records: Iterator[tuple[int, dict[str, Any] | str]],
    item: str,
    parts: dict[str, list[str]],
    category_separator: str,
    pictures: Pictures,
    raw: Path,
) -> Iterator[tuple[int, ItemRow | str]]:
    for line, record in records:
        if isinstance(record, str):
            yield line, record
            continue
        values = {part: [record[name] for name in names] for part, names in parts.items()}
        key = clean_id(record[item])
        names = [name for value in values["categories"] for name in _split(value, category_separator)]
        title = values["title"][0] if values["title"] else None
        yield line, item_row(key, title, names, values["text"], _picture(values["image"], key, pictures, raw))


def _split(value: Any, separator: str) -> list[str]:
    return list(value) if isinstance(value, list) else str(value or "").split(separator or None)


def _picture(values: list[Any], key: str, pictures: Pictures, raw: Path) -> str | None:
    name = str(values[0]).strip() if values and values[0] else ""
    found = pictures.find(name, key)
    try:
        return str((raw / name).resolve()) if found is None and name and (raw / name).is_file() else found
    except (OSError, ValueError):
        return None  # no name of a file: too long, or a NUL inside
