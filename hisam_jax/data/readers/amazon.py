"""Amazon reviews of 2014 and 2023 in the official JSON lines, gzipped or not.

Reviews are scanned lazily; only the four fields of an event are ever taken out of them. The picture URLs of the
metadata resolve to files of `images` by their last part, or else by `<asin>.jpg`.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from hisam_jax.data.readers.base import RawData
from hisam_jax.data.readers.catalogue import ItemRow, Pictures, build_catalogue, clean_id, item_row
from hisam_jax.data.readers.columns import check_file, open_binary
from hisam_jax.data.readers.line_log import LineLog
from hisam_jax.errors import UserError

PICTURE_SIZES = ("large", "hi_res", "thumb")


@dataclasses.dataclass(frozen=True)
class Release:
    """Where a release keeps things.

    Attributes:
        reviews: file-name patterns of the reviews, with the category in the place of `{}`.
        fields: schema name -> JSON field.
        unit: of the timestamps.
        to_item: metadata object, pictures -> catalogue row.
    """

    reviews: tuple[str, ...]
    fields: dict[str, str]
    unit: str
    to_item: Callable[[dict[str, Any], Pictures], ItemRow]


def read_2014(raw: Path, images: Path | None = None, *, category: str | None = None) -> RawData:
    """Reads `reviews_<Category>_5.json.gz` (or without `_5`) and `meta_<Category>.json.gz`.

    The official metadata lines are Python literals, not JSON; both are taken.

    Args:
        raw: the folder with both files.
        images: folder of pictures.
        category: such as `Beauty`, where the folder holds several.

    Raises:
        UserError: a file is missing, empty or cut off, or no item is usable.
    """
    fields = {"user": "reviewerID", "item": "asin", "rating": "overall", "timestamp": "unixReviewTime"}
    release = Release(("reviews_{}_5.json", "reviews_{}.json"), fields, "s", _item_2014)
    return _read(raw, images, category, release)


def read_2023(raw: Path, images: Path | None = None, *, category: str | None = None) -> RawData:
    """Reads `<Category>.jsonl.gz` and `meta_<Category>.jsonl.gz`; items are `parent_asin`, times milliseconds.

    Args:
        raw: the folder with both files.
        images: folder of pictures.
        category: such as `Books`, where the folder holds several.

    Raises:
        UserError: a file is missing, empty or cut off, or no item is usable.
    """
    fields = {"user": "user_id", "item": "parent_asin", "rating": "rating", "timestamp": "timestamp"}
    return _read(raw, images, category, Release(("{}.jsonl",), fields, "ms", _item_2023))


def _read(raw: Path, images: Path | None, category: str | None, release: Release) -> RawData:
    reviews = check_file(_find_reviews(raw, category, release), "JSON lines of reviews")
    metadata = check_file(_metadata_of(reviews), "JSON lines of metadata")
    log = LineLog(reviews, functools.partial(_reviews, fields=release.fields), unit=release.unit)
    log.scan_rows()
    items, refused = build_catalogue(_item_rows(metadata, release, Pictures(images)), metadata)
    return RawData(
        interactions=log.scan(),
        items=items,
        interactions_path=reviews,
        items_path=metadata,
        has_ratings=True,
        has_timestamps=True,
        refused_items=refused,
        lines=log,
    )


def _find_reviews(raw: Path, category: str | None, release: Release) -> Path:
    expected = f"{release.reviews[0].format('CATEGORY')}[.gz] and its meta_CATEGORY file"
    if not raw.is_dir():
        raise UserError("no such folder", path=raw, field="raw", expected=f"a folder with {expected}")
    for pattern in release.reviews:
        names = [pattern.format(category or "*") + end for end in (".gz", "")]
        found = sorted(path for name in names for path in raw.glob(name) if not path.name.startswith("meta_"))
        if len({path.name.removesuffix(".gz") for path in found}) == 1:
            return found[0]
        if found:
            names = ", ".join(path.name for path in found)
            raise UserError(
                f"several categories: {names}", path=raw, field="category", expected="--amazon-category NAME"
            )
    raise UserError("no reviews here", path=raw, expected=expected)


def _metadata_of(reviews: Path) -> Path:
    stem, kind = reviews.name.removesuffix(".gz").split(".", 1)
    name = f"meta_{stem.removeprefix('reviews_').removesuffix('_5')}.{kind}"
    candidates = [reviews.parent / name, reviews.parent / f"{name}.gz"]
    return next((path for path in candidates if path.exists()), candidates[1])


def _reviews(lines: pl.LazyFrame, fields: dict[str, str]) -> pl.LazyFrame:
    """String columns of an event; a line that is no JSON object has none of them and is `broken`."""
    values = {name: pl.col("raw").str.json_path_match(f"$.{field}") for name, field in fields.items()}
    rows = lines.filter(pl.col("raw").str.strip_chars() != "").select("row", **values)
    return rows.with_columns(broken=pl.all_horizontal(pl.col(list(fields)).is_null()))


def _item_rows(path: Path, release: Release, pictures: Pictures) -> Iterator[tuple[int, ItemRow | str]]:
    with open_binary(path) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                record = _parse(line.decode("utf-8", errors="replace"))
                yield number, "broken_row" if record is None else release.to_item(record, pictures)


def _parse(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = _literal(line.strip())
    return value if isinstance(value, dict) else None


def _literal(text: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a backslash that escapes nothing is common in titles
        try:
            return ast.literal_eval(text)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return None


def _item_2014(record: dict[str, Any], pictures: Pictures) -> ItemRow:
    key = clean_id(record.get("asin"))
    url = record.get("imUrl")
    image = pictures.find(url if isinstance(url, str) else None, key)
    return item_row(key, record.get("title"), _flat(record.get("categories")), [record.get("brand")], image)


def _item_2023(record: dict[str, Any], pictures: Pictures) -> ItemRow:
    key = clean_id(record.get("parent_asin"))
    urls = [
        url
        for entry in _listed(record.get("images"))
        if isinstance(entry, dict)
        for url in (entry.get(size) for size in PICTURE_SIZES)
        if isinstance(url, str)
    ]
    categories = [record.get("main_category"), *_flat(record.get("categories"))]
    return item_row(key, record.get("title"), categories, [record.get("store")], pictures.find(*urls, key))


def _flat(value: Any) -> Iterable[Any]:
    """The texts of a list, or of a list of lists."""
    return [leaf for entry in _listed(value) for leaf in (_flat(entry) if isinstance(entry, list) else [entry])]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
