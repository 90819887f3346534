"""RecBole atomic files: `<name>.inter` and `<name>.item`, tab-separated, each column `name:type` in the header."""

from __future__ import annotations

import dataclasses
import functools
import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from hisam_jax.data.readers.base import RawData
from hisam_jax.data.readers.catalogue import ItemRow, Pictures, build_catalogue, item_row, read_records, select_fields
from hisam_jax.data.readers.columns import check_file, need_columns, read_header, split_events, timestamp_unit
from hisam_jax.data.readers.line_log import LineLog
from hisam_jax.errors import UserError

TYPES = ("token", "token_seq", "float", "float_seq")
TITLE_NAMES = ("title", "movie_title", "name", "item_name")
CATEGORY_NAME = re.compile(r"genre|categor|^class$")
EXPECTED = "NAME.inter and NAME.item, tab-separated, with a header such as user_id:token"


def read(
    raw: Path,
    images: Path | None = None,
    *,
    name: str | None = None,
    user: str = "user_id",
    item: str = "item_id",
    rating: str = "rating",
    timestamp: str = "timestamp",
    title: str | None = None,
    categories: str | None = None,
    sequence_separator: str = " ",
) -> RawData:
    """Reads one atomic data set; `rating` and `timestamp` may be absent.

    Timestamps are seconds or a finer unit, told by their size over the whole column. A column named like genre,
    categories or class gives the categories; every other token column of the items becomes text.

    Args:
        raw: the folder.
        images: pictures named by item id.
        name: the data set's name, where the folder holds several.
        user: feature name; likewise `item`, `rating`, `timestamp`, `title` and `categories`.
        sequence_separator: between the words of a `token_seq`.

    Raises:
        UserError: a file or a needed column is missing, a header is untyped, or no item is usable.
    """
    events, catalogue = _find(raw, name)
    types = _header(events)
    wanted = {"user": user, "item": item, "rating": rating, "timestamp": timestamp}
    default = {"rating": "rating", "timestamp": "timestamp"}
    wanted = {key: column for key, column in wanted.items() if column in types or default.get(key) != column}
    need_columns(events, list(types), list(wanted.values()))
    form = {"separator": "\t", "header": list(types), "columns": wanted}
    log = LineLog(events, functools.partial(split_events, **form), first_line=1)
    rows = log.scan_rows()
    log = dataclasses.replace(log, unit=timestamp_unit(rows) if "timestamp" in wanted else "s")
    columns = _item_columns(catalogue, item, title, categories)
    rows_of_items = _item_rows(catalogue, columns, sequence_separator, Pictures(images))
    items, refused = build_catalogue(rows_of_items, catalogue)
    return RawData(
        interactions=log.scan(),
        items=items,
        interactions_path=events,
        items_path=catalogue,
        has_ratings="rating" in wanted,
        has_timestamps="timestamp" in wanted,
        refused_items=refused,
        lines=log,
    )


def _find(raw: Path, name: str | None) -> tuple[Path, Path]:
    if not raw.is_dir():
        raise UserError("no such folder", path=raw, field="raw", expected=f"a folder with {EXPECTED}")
    pattern = "*.inter" if name is None else f"{glob.escape(name)}.inter"
    found = sorted(raw.glob(pattern)) or sorted(raw.glob(f"*/{pattern}"))  # archives unpack into a folder
    if not found:
        raise UserError(f"no {pattern.removeprefix('*')} file", path=raw, expected=EXPECTED)
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UserError(f"{len(found)} .inter files ({names})", path=raw, expected="--recbole-name NAME")
    return check_file(found[0], EXPECTED), check_file(found[0].with_suffix(".item"), EXPECTED)


def _header(path: Path) -> dict[str, str]:
    """Feature name -> type."""
    types = {}
    for column in read_header(path, "\t"):
        feature, _, kind = column.rpartition(":")
        if feature in types:
            raise UserError(f"column '{feature}' is there twice", path=path, line=1, field=feature, expected="it once")
        if kind not in TYPES or not feature:
            expected = f"name:type, tab-separated, the type one of {', '.join(TYPES)}"
            raise UserError(f"header column '{column}'", path=path, line=1, field=column, expected=expected)
        types[feature] = kind
    return types


def _item_columns(path: Path, item: str, title: str | None, categories: str | None) -> dict[str, str]:
    """Column -> its part: 'item', 'title', 'categories', 'text', or '' for what is no text."""
    types = _header(path)
    need_columns(path, list(types), [item, *filter(None, (title, categories))])
    title = title or next((name for name in TITLE_NAMES if name in types), None)
    categories = categories or next((name for name in types if CATEGORY_NAME.search(name.lower())), None)
    parts = {name: "text" if kind.startswith("token") else "" for name, kind in types.items()}
    return (
        parts | {name: part for name, part in ((title, "title"), (categories, "categories")) if name} | {item: "item"}
    )


def _item_rows(
    path: Path, columns: dict[str, str], separator: str, pictures: Pictures
) -> Iterator[tuple[int, ItemRow | str]]:
    def values(record: dict[str, str], part: str) -> list[str]:
        return [record[name] for name, role in columns.items() if role == part]

    for line, record in select_fields(read_records(path, "\t", quoted=False), list(columns)):
        if isinstance(record, str):
            yield line, record
        else:
            item = values(record, "item")[0].strip()
            names = _names(values(record, "categories"), separator)
            title, text = " ".join(values(record, "title")), values(record, "text")
            yield line, item_row(item, title, names, text, pictures.find(item))


def _names(values: Sequence[str], separator: str) -> list[str]:
    """Category names; a bar or a comma parts them where there is one, else the sequence separator."""
    text = " ".join(values)
    mark = next((mark for mark in "|," if mark in text), separator)
    return [name.strip(" '\"[]") for name in text.split(mark)]
