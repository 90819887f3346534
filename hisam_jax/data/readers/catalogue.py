"""Catalogues: rows to ITEM_SCHEMA, pictures by name. A catalogue fits in memory; interactions never need to."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import polars as pl

from hisam_jax.data.readers.base import ITEM_SCHEMA
from hisam_jax.data.readers.columns import REPLACEMENT, open_binary
from hisam_jax.errors import UserError

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
PLACEHOLDERS = {"", "unknown", "(no genres listed)", "none", "nan", "null"}
LONGEST_RECORD = 1_000  # lines that one quoted field may span
BATCH = 50_000

# (item, title, text, categories, image), or the reason for which the row was refused
ItemRow = tuple[str, str | None, str, list[str], str | None]
# reason -> how many rows, and the line of the first
Refused = dict[str, tuple[int, int]]


def build_catalogue(rows: Iterable[tuple[int, ItemRow | str]], path: Path) -> tuple[pl.DataFrame, Refused]:
    """ITEM_SCHEMA with unique ids (the first of each is kept), and which rows were refused for which reason.

    Args:
        rows: each with its 1-based line, or its 1-based row where the file has no lines.
        path: the file, for messages.

    Raises:
        UserError: not one usable row.
    """
    refused: dict[str, list[int]] = {}
    stream = _usable(rows, refused)
    schema = {**ITEM_SCHEMA, "line": pl.UInt32}
    frames = [pl.DataFrame(batch, schema, orient="row") for batch in iter(lambda: list(islice(stream, BATCH)), [])]
    if not frames:
        counts = ", ".join(f"{len(lines)} {reason}" for reason, lines in sorted(refused.items()))
        problem = f"no usable item ({counts})" if counts else "no usable item"
        raise UserError(problem, path=path, expected="one row an item, with its id")
    items = pl.concat(frames)
    first = items["item"].is_first_distinct()
    if not first.all():
        refused["duplicate_item"] = items.filter(~first)["line"].to_list()
    counted = {reason: (len(lines), lines[0]) for reason, lines in sorted(refused.items())}
    return items.filter(first).drop("line"), counted


def item_row(
    item: object, title: object, categories: Iterable[object], extra: Iterable[object], image: str | None
) -> ItemRow:
    """One row: `text` is the extra words (brand, ...) and then the categories, each said once."""
    names = clean_words(categories)
    text = " ".join(clean_words([*extra, *names]))
    return clean_id(item), _clean(title) or None, text, names, image


def clean_id(value: object) -> str:
    """An id as text, without spaces around it; '' for none."""
    return "" if value is None else str(value).strip()


def clean_words(values: Iterable[object]) -> list[str]:
    """Texts without spaces around them, duplicates and placeholders such as '(no genres listed)'."""
    words = (_clean(value) for value in values)
    return list(dict.fromkeys(word for word in words if word.lower() not in PLACEHOLDERS))


def read_records(path: Path, separator: str = ",", quoted: bool = True) -> Iterator[tuple[int, list[str] | None]]:
    """Line and fields of each record below the header, None for a broken one: a stray quote spoils only its own."""
    with open_binary(path) as stream:
        lines = [line.decode("utf-8", errors="replace").rstrip("\r\n") for line in stream]
    place = 1
    while place < len(lines):
        if not lines[place].strip():
            place += 1
        elif not quoted or '"' not in lines[place]:
            yield place + 1, lines[place].split(separator)
            place += 1
        else:
            fields, used = _quoted_record(lines, place, separator)
            yield place + 1, fields
            place += used


def select_fields(
    records: Iterable[tuple[int, list[str] | None]], header: Sequence[str]
) -> Iterator[tuple[int, dict[str, str] | str]]:
    """Each record by column name, or 'broken_row' where it has not as many fields as the header."""
    for line, fields in records:
        whole = fields is not None and len(fields) == len(header)
        yield line, dict(zip(header, fields, strict=True)) if whole else "broken_row"


class Pictures:
    """Picture files of a folder, found by name; without a folder nothing is found.

    Raises:
        UserError: no such folder, or not one picture in it.
    """

    def __init__(self, folder: Path | None):
        self._files: dict[str, str] = {}
        if folder is None:
            return
        if not folder.is_dir():
            raise UserError("no such folder", path=folder, field="images", expected="a folder of pictures")
        rank = {suffix: place for place, suffix in enumerate(PICTURE_SUFFIXES)}
        found = [entry.name for entry in os.scandir(folder) if Path(entry.name).suffix.lower() in rank]
        if not found:
            expected = f"files ending in {', '.join(PICTURE_SUFFIXES)}"
            raise UserError("no picture in this folder", path=folder, field="images", expected=expected)
        root = folder.resolve()
        for name in sorted(found, key=lambda name: (rank[Path(name).suffix.lower()], name)):
            self._files.setdefault(Path(name).stem, str(root / name))
            self._files.setdefault(name, str(root / name))

    def find(self, *names: str | None) -> str | None:
        """The first picture that goes by one of `names`: an id, a file name, or the last part of a path or URL."""
        for name in names:
            last = re.split(r"[?#]", name)[0].rsplit("/", 1)[-1] if name else ""
            path = self._files.get(last) or self._files.get(Path(last).stem if _is_picture(last) else "")
            if path:
                return path
        return None


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in PICTURE_SUFFIXES


def _clean(value: object) -> str:
    return "" if value is None else " ".join(str(value).split())


def _usable(rows: Iterable[tuple[int, ItemRow | str]], refused: dict[str, list[int]]) -> Iterator[tuple]:
    for line, row in rows:
        reason = row if isinstance(row, str) else _item_reason(row)
        if reason:
            refused.setdefault(reason, []).append(line)
        else:
            yield (*row, line)


def _item_reason(row: ItemRow) -> str | None:
    item, title, text, _, _ = row
    if any(REPLACEMENT in field for field in (item, title or "", text)):
        return "not_utf8"
    return None if item else "missing_item"


def _quoted_record(lines: Sequence[str], place: int, separator: str) -> tuple[list[str] | None, int]:
    """The record that begins at `lines[place]` and how many lines it spans."""
    record = lines[place]
    for used in range(1, LONGEST_RECORD):
        try:
            return next(csv.reader([record], delimiter=separator, strict=True)), used
        except csv.Error as error:
            unclosed = "end of data" in str(error)
        if not unclosed or place + used >= len(lines):
            break
        record += "\n" + lines[place + used]
    return None, 1
