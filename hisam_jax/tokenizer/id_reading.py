"""Reads tables of IDs in the forms that `id_files` describes: what lies in the files, not yet held to a catalogue.

Every reader raises a `UserError` that names the file, and the item or the line, that cannot be read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hisam_jax.errors import UserError
from hisam_jax.files import sha256_file

META = "hisam_jax"
MOST = 2**31 - 2  # the greatest code, so that a level's size is an int32 as well
AGAIN = "export it again, or remove NAME.levels.json to import it as somebody else's"
Read = tuple[pl.Series, np.ndarray, bool, dict[str, Any] | None]  # item ids, codes, is the last a digit, description
TOKEN = r"^<([A-Za-z]+)_([0-9]{1,9})>$"


def beside(path: Path, ending: str) -> Path:
    """NAME + ending in the folder of NAME.index.json."""
    name = path.name.removesuffix(".json").removesuffix("index").removesuffix(".")
    return path.with_name((name or "items") + ending)


def read_parquet(path: Path) -> Read:
    """Columns `item_id`, and `codes` or `code_0`, `code_1`, ..., with `digit` where there are digits."""
    try:
        frame, kept = pl.read_parquet(path), pl.read_parquet_metadata(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"unreadable Parquet ({error})", path=path) from error
    names = frame.columns
    loose = [name for name in names if name.startswith("code_") and name[5:].isdigit()]
    loose = ["codes"] if "codes" in names else sorted(loose, key=lambda name: int(name[5:]))
    if "item_id" not in names or not loose:
        raise UserError(f"columns {', '.join(names)}", path=path, expected="item_id, and codes or code_0, code_1, ...")
    has_digit = "digit" in names
    loose += ["digit"] if has_digit else []
    for name in loose:
        kind = getattr(frame[name].dtype, "inner", frame[name].dtype)
        if not kind.is_integer():
            raise UserError(f"{frame[name].dtype}", path=path, field=name, expected="whole numbers from 0 on")
    whole = {name: pl.List(pl.Int64) if frame[name].dtype.is_nested() else pl.Int64 for name in loose}
    ids = frame["item_id"].cast(pl.String)
    values = frame.select(pl.concat_list([pl.col(name).cast(kind, strict=False) for name, kind in whole.items()]))
    about = _json_of(kept[META], path) if META in kept else None
    return ids, _rectangle(ids, values.to_series(), path), has_digit, about


def read_index(path: Path, item_map: str | None) -> Read:
    """`NAME.index.json` with what lies beside it; without a map its keys are item ids."""
    index = _bytes_of(path)
    levels = beside(path, ".levels.json")
    about = _json_of(_bytes_of(levels), levels) if levels.is_file() else None
    _check_parts(about, {"index": path, "item2id": beside(path, ".item2id")}, levels)
    entries = _json_of(index, path)
    if not isinstance(entries, dict) or not entries:
        raise UserError(f"a {type(entries).__name__}", path=path, expected='an object {"0": ["<a_1>", ...], ...}')
    for key, row in entries.items():
        if not isinstance(row, list) or not all(isinstance(token, str) for token in row):
            raise UserError(f"item {key!r}: {json.dumps(row)[:60]}", path=path, expected="a list of tokens like <a_12>")
    keys = pl.Series("key", list(entries), dtype=pl.String)
    tokens = pl.Series("tokens", list(entries.values()), dtype=pl.List(pl.String))
    parts = tokens.list.explode(keep_nulls=False, empty_as_null=False).str.extract_groups(TOKEN).struct.unnest()
    letters, numbers = parts.to_series(0), parts.to_series(1)
    owner = pl.Series(np.repeat(np.arange(len(keys)), tokens.list.len().to_numpy()))
    bad = letters.is_null().arg_max() if letters.null_count() else None
    if bad is not None:
        token = tokens.list.explode(keep_nulls=False, empty_as_null=False)[bad]
        raise UserError(f"item {keys[owner[bad]]!r}: token {token!r}", path=path, expected="<LETTER_NUMBER>, as <a_12>")
    full_IL = _rectangle(keys, _regroup(numbers.cast(pl.Int64), tokens), path)
    _check_letters(keys, letters.to_numpy().reshape(full_IL.shape), path)
    return _named(keys, path, item_map), full_IL, False, about


def _check_parts(about: Any, parts: Mapping[str, Path], levels: Path) -> None:
    """Refuses an export of ours that was altered or half written; descriptions of old know no checksums of files."""
    known = about.get("files") if isinstance(about, dict) else None
    for part, file in parts.items() if isinstance(known, dict) else ():
        problem = None
        if not file.is_file():
            problem = "the file is missing"
        elif sha256_file(file) != known.get(part):
            problem = "the file was altered, or its export did not end"
        if problem:
            raise UserError(problem, path=file, expected=f"what {levels.name} was written with", hint=AGAIN)


def _regroup(values: pl.Series, like: pl.Series) -> pl.Series:
    """Flat values as lists of the same lengths as `like`."""
    row = np.repeat(np.arange(len(like)), like.list.len().to_numpy())
    lists = pl.DataFrame({"row": row, "value": values}).group_by("row", maintain_order=True).agg("value")
    rows = pl.DataFrame({"row": np.arange(len(like))}).join(lists, on="row", how="left", maintain_order="left")
    return rows["value"]


def _rectangle(ids: pl.Series, values: pl.Series, path: Path) -> np.ndarray:
    """int64 [I, L] of lists that must be of one length, at least 1, of numbers from 0 to MOST."""
    lengths = values.list.len().fill_null(0)
    width = int(lengths.mode().max() or 0) if len(lengths) else 0
    if not width:
        raise UserError("no codes", path=path, expected="at least one item with at least one code")
    ragged = (lengths != width).arg_max() if (lengths != width).any() else None
    if ragged is not None:
        problem = f"item {ids[ragged]!r}: {lengths[ragged]} codes"
        raise UserError(problem, path=path, expected=f"{width}, as most items have")
    flat = values.explode(keep_nulls=True, empty_as_null=True)
    wrong = (flat.is_null() | (flat < 0) | (flat > MOST)).fill_null(True)
    if wrong.any():
        at = wrong.arg_max()
        problem = f"item {ids[at // width]!r}: code {flat[at]}"
        raise UserError(problem, path=path, expected=f"whole numbers from 0 to {MOST}")
    return flat.to_numpy().reshape(len(ids), width)


def _check_letters(keys: pl.Series, letter_IL: np.ndarray, path: Path) -> None:
    first_L = letter_IL[0]
    if len(set(first_L)) < len(first_L):
        raise UserError(f"item {keys[0]!r}: letters {', '.join(first_L)}", path=path, expected="one letter a level")
    other = letter_IL != first_L
    if other.any():
        row, level = np.unravel_index(other.argmax(), other.shape)
        problem = f"item {keys[int(row)]!r}: letter {letter_IL[row, level]!r} at position {level}"
        raise UserError(problem, path=path, expected=f"{first_L[level]!r}, as in item {keys[0]!r}")


def _named(keys: pl.Series, path: Path, item_map: str | None) -> pl.Series:
    """Item ids of an index's numbers."""
    file = Path(item_map) if item_map else beside(path, ".item2id")
    if not file.is_file():
        if item_map:
            raise UserError("no such file", path=file, expected="lines ITEM<tab>NUMBER")
        return keys
    names: dict[str, str] = {}
    for line, text in enumerate(_lines(file), 1):
        item, tab, number = text.rpartition("\t")
        if not tab or not number.strip().isdigit() or number.strip() in names:
            problem = "a number twice" if number.strip() in names else f"{text[:60]!r}"
            raise UserError(problem, path=file, line=line, expected="ITEM<tab>NUMBER, each number once")
        names[number.strip()] = item
    found = [names.get(key) for key in keys.to_list()]
    if None in found:
        problem = f"no item for number {keys[found.index(None)]!r}"
        raise UserError(problem, path=file, expected=f"every key of {path.name}")
    return pl.Series("item_id", found, dtype=pl.String)


def _lines(file: Path) -> list[str]:
    """Lines ended by a newline alone, or with a carriage return before it: ids may hold what else ends lines."""
    try:
        text = _bytes_of(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 (byte {error.start})", path=file, expected="lines ITEM<tab>NUMBER") from error
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"it cannot be read ({error.strerror})", path=path, expected="a file to read") from error


def _json_of(text: str | bytes, path: Path) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UserError(f"unreadable JSON ({error})", path=path, line=getattr(error, "lineno", None)) from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"key {twice!r} twice")
    return entries
