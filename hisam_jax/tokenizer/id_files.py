"""Tables of IDs in the forms of others: Parquet, and the `index.json` of LC-Rec, LETTER and MiniOneRec.

`NAME.index.json` maps an item's number, a string, to a list of tokens, one a level: `{"0": ["<a_183>", "<b_70>"]}`;
`NAME.item2id` beside it has a line `ITEM<tab>NUMBER` for each item. LC-Rec and LETTER write four levels `a` to `d`, the
last of them moved until no two items were equal, or nearly; MiniOneRec three, and with RQ-Kmeans one more that counts
duplicates. All of them read any token as a word of its own, so a digit is one more letter here, and a reserved code
(the level's size: the item lacks that modality) one more number of its letter. What neither file says, level names and
sizes, lies in `NAME.levels.json`, which they do not look for: with it, and in Parquet, a round trip is exact, and what
was altered or half written since is told by checksums.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hisam_jax.errors import UserError
from hisam_jax.files import atomic_write
from hisam_jax.paths import output_path
from hisam_jax.remote import local
from hisam_jax.tokenizer import collisions
from hisam_jax.tokenizer.base import Level
from hisam_jax.tokenizer.id_reading import AGAIN, META, beside, read_index, read_parquet
from hisam_jax.tokenizer.semantic_ids import FORMAT_VERSION, SemanticIDTable


@dataclasses.dataclass(frozen=True)
class ImportOptions:
    """What a foreign file does not say.

    Attributes:
        item_map: file of lines `ITEM<tab>NUMBER`; by default NAME.item2id beside NAME.index.json, without which its
            keys are item ids.
        levels: a name for each level, `GROUP/DEPTH`, such as text/0; by default shared/0, shared/1, ...
        sizes: codes of each level; by default the greatest code plus 1.
        last_is_digit: whether the last token only counts duplicates.
        collisions: `digit` (the default) or `none`, for items with equal codes.
    """

    item_map: str | None = None
    levels: Sequence[str] | None = None
    sizes: Sequence[int] | None = None
    last_is_digit: bool = False
    collisions: str | None = None


def export_ids(table: SemanticIDTable, path: str | os.PathLike) -> list[str]:
    """Writes NAME.parquet, or NAME.index.json with NAME.item2id and NAME.levels.json; returns their paths.

    Parquet has `item_id`, `codes` (a list, one a level), `digit` where there are digits, and `id`, the codes with the
    digit; level names, sizes and the table's provenance are in the file's metadata.
    """
    if not os.fspath(path):
        raise UserError("no name", field="export", expected="NAME.parquet or NAME.index.json")
    path = output_path(path, "export")
    if path.is_dir():
        raise UserError("a folder", path=path, field="export", expected="the name of a file")
    with writing(path):
        if path.suffix == ".parquet":
            _write_parquet(table, path)
            return [str(path)]
        if not path.name.endswith("index.json"):
            raise UserError(f"'{path.name}'", field="export", expected="NAME.parquet or NAME.index.json")
        return _write_index(table, path)


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Turns what keeps `path` from being written, whatever it is, into a `UserError` that names it."""
    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
        problem = f"it cannot be written ({getattr(error, 'strerror', None) or error})"
        raise UserError(problem, path=path, expected="a place where you may write") from error


def _write_index(table: SemanticIDTable, path: Path) -> list[str]:
    """The description goes first: killed at any moment, it does not fit what is beside it, and an import says so.

    Written last, an export that was killed before it would look like somebody else's.
    """
    full_IL = table.full_codes()
    if full_IL.shape[1] > len(string.ascii_lowercase):
        raise UserError(f"{full_IL.shape[1]} levels", path=path, expected="at most 26, one letter each")
    columns = [pl.format(f"<{letter}_{{}}>", pl.lit(pl.Series(column))) for letter, column in _lettered(full_IL)]
    rows = pl.select(pl.concat_list(columns)).to_series().to_list()
    pairs = pl.select(pl.format("{}\t{}", pl.lit(_one_line(table.item_ids, path)), pl.int_range(len(rows)))).to_series()
    contents = {
        "item2id": "".join(f"{line}\n" for line in pairs.to_list()).encode(),
        "index": json.dumps({str(number): row for number, row in enumerate(rows)}).encode(),
    }
    about = _about(table) | {"files": {part: hashlib.sha256(content).hexdigest() for part, content in contents.items()}}
    atomic_write(beside(path, ".levels.json"), json.dumps(about, indent=1) + "\n")
    atomic_write(beside(path, ".item2id"), contents["item2id"])
    atomic_write(path, contents["index"])
    return [str(path), *(str(beside(path, ending)) for ending in (".item2id", ".levels.json"))]


def import_ids(
    path: str | os.PathLike, item_ids: Sequence[str] | pl.Series, options: ImportOptions | None = None
) -> SemanticIDTable:
    """The table of the catalogue `item_ids`, in its order, from NAME.parquet or NAME.index.json, or the URL of one.

    A file that this package wrote gives the same table again, checksum and all. In any other, items with equal codes
    get a digit (or stay equal, by `options.collisions`), and the tokenizer is called "imported".

    Raises:
        UserError: an unreadable file, a bad token, rows of several lengths, an item twice, missing or too many; a file
            of ours that was altered since, or that an option does not go with; digits that do not tell items apart.
    """
    path, options = local(path, "import", beside=_companions(path)), options or ImportOptions()
    if options.collisions not in (None, "digit", "none"):
        raise UserError(
            f"'{options.collisions}'",
            field="collisions",
            expected="digit or none: no cost of a code is known",
        )
    if not path.is_file():
        raise UserError("no such file", path=path, expected="NAME.parquet or NAME.index.json")
    item_map = None if options.item_map is None else os.fspath(local(options.item_map, "item_map"))
    if path.suffix == ".parquet" and item_map is not None:
        raise UserError("Parquet names its items", path=path, field="item_map", expected="it with an index only")
    read = read_parquet(path) if path.suffix == ".parquet" else read_index(path, item_map)
    found, full_IL, has_digit, about = read
    wanted = pl.Series("item_id", item_ids, dtype=pl.String)
    if wanted.is_empty():
        raise UserError("no items", field="item_id", expected="a catalogue with at least one item")
    rows = _rows_of(found, wanted, path)
    if about is not None and not (options.levels or options.sizes or options.last_is_digit):
        if options.collisions is not None:
            problem = "the file is one of ours and says how its collisions were resolved"
            raise UserError(problem, path=path, field="collisions", expected="it with somebody else's file only")
        _check_whole(about, full_IL, found, path)
        return _restored(about, full_IL[rows], wanted, path)
    full_IL = full_IL[rows]
    options = dataclasses.replace(options, last_is_digit=options.last_is_digit or has_digit)
    return _foreign(full_IL, wanted, path, options)


def _companions(path: str | os.PathLike) -> list[str]:
    """Names of what may lie beside an index."""
    name = Path(os.fspath(path).rpartition("/")[2])
    return [] if name.suffix == ".parquet" else [beside(name, ending).name for ending in (".item2id", ".levels.json")]


def _lettered(full_IL: np.ndarray) -> list[tuple[str, np.ndarray]]:
    return list(zip(string.ascii_lowercase, np.ascontiguousarray(full_IL.T), strict=False))


def _one_line(item_ids: pl.Series, path: Path) -> pl.Series:
    bad = item_ids.filter(item_ids.str.contains(r"[\t\r\n]"))
    if len(bad):
        raise UserError(f"item {bad[0]!r}", path=path, expected="item ids without tabs and line ends")
    return item_ids


def _about(table: SemanticIDTable) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "levels": [dataclasses.asdict(level) for level in table.levels],
        "digit_size": table.digit_size,
        "has_digit": table.digit_I is not None,
        "policy": table.policy,
        "tokenizer": table.tokenizer,
        "parent": table.parent,
        "checksum": table.checksum,
        "sorted_checksum": _sorted(table).checksum,
    }


def _sorted(table: SemanticIDTable) -> SemanticIDTable:
    """The same items in the order of their ids, whose checksum does not hang on that of a file."""
    order = table.item_ids.arg_sort().to_numpy()
    digit_I = None if table.digit_I is None else table.digit_I[order]
    rows = {"codes_IL": table.codes_IL[order], "digit_I": digit_I, "item_ids": table.item_ids.gather(order)}
    return dataclasses.replace(table, checksum="", **rows)


def _write_parquet(table: SemanticIDTable, path: Path) -> None:
    lists = lambda codes_IL: pl.Series(codes_IL, dtype=pl.Array(pl.Int32, codes_IL.shape[1])).arr.to_list()  # noqa: E731
    columns = {"item_id": table.item_ids, "codes": lists(table.codes_IL)}
    if table.digit_I is not None:
        columns["digit"] = table.digit_I
    frame = pl.DataFrame({**columns, "id": lists(table.full_codes())})
    whole = io.BytesIO()
    frame.write_parquet(whole, metadata={META: json.dumps(_about(table))})
    atomic_write(path, whole.getvalue())


def _rows_of(found: pl.Series, wanted: pl.Series, path: Path) -> np.ndarray:
    """Row of the file of each item of the catalogue."""
    twice = found.filter(found.is_duplicated())
    if found.null_count() or len(twice):
        problem = "an item without an id" if found.null_count() else f"item {twice[0]!r} twice"
        raise UserError(problem, path=path, field="item_id", expected="every item once")
    missing, extra = (a.filter(~a.is_in(b.implode())) for a, b in ((wanted, found), (found, wanted)))
    if len(missing) or len(extra):
        parts = [
            f"{verb} {len(names)} ({', '.join(names.head(3).to_list())}{', ...' if len(names) > 3 else ''})"
            for verb, names in (("lacks", missing), ("has besides", extra))
            if len(names)
        ]
        hint = None
        if len(missing) == len(wanted) and path.suffix != ".parquet":
            hint = "the file numbers its items: give the map with --item-map NAME.item2id"
        expected = f"the {len(wanted)} items of the dataset"
        raise UserError(f"IDs of another catalogue: it {', it '.join(parts)}", path=path, expected=expected, hint=hint)
    rows = pl.DataFrame({"item_id": found, "row": np.arange(len(found))})
    joined = pl.DataFrame({"item_id": wanted}).join(rows, on="item_id", how="left", maintain_order="left")
    return joined["row"].to_numpy()


def _check_whole(about: Any, full_IL: np.ndarray, found: pl.Series, path: Path) -> None:
    """Refuses a table that is not, up to the order of its items, the one that was described."""
    table = _restored(about, full_IL, found, path)
    known = about.get("sorted_checksum")
    if (table.checksum != about.get("checksum")) if known is None else (_sorted(table).checksum != known):
        hint = AGAIN if path.suffix != ".parquet" else "export it again"
        raise UserError("the file or its description was altered", path=path, expected="them as exported", hint=hint)


def _restored(about: Any, full_IL: np.ndarray, item_ids: pl.Series, path: Path) -> SemanticIDTable:
    """The table that was exported; its checksum where the catalogue has the same order, else a new one."""
    try:
        if about["format_version"] != FORMAT_VERSION:
            raise UserError(f"version {about['format_version']}", path=path, expected=f"version {FORMAT_VERSION}")
        levels, has_digit = tuple(Level(**level) for level in about["levels"]), about["has_digit"]
        if full_IL.shape[1] != len(levels) + has_digit:
            raise ValueError(f"{full_IL.shape[1]} codes an item, {len(levels) + has_digit} described")
        return SemanticIDTable(
            levels=levels,
            codes_IL=np.ascontiguousarray(full_IL[:, : len(levels)], np.int32),
            digit_I=np.ascontiguousarray(full_IL[:, -1], np.int32) if has_digit else None,
            digit_size=about["digit_size"],
            item_ids=item_ids,
            tokenizer=about["tokenizer"],
            policy=about["policy"],
            parent=about["parent"],
        )
    except (KeyError, TypeError, ValueError) as error:
        hint = "remove NAME.levels.json to import it as somebody else's"
        raise UserError(f"does not fit its description ({error})", path=path, hint=hint) from error


def _foreign(full_IL: np.ndarray, item_ids: pl.Series, path: Path, options: ImportOptions) -> SemanticIDTable:
    policy = options.collisions or "digit"
    digits = full_IL[:, -1] if options.last_is_digit else None
    codes_IL = full_IL[:, :-1] if options.last_is_digit else full_IL
    levels = _levels(codes_IL, path, options)
    outside_IL = codes_IL > [level.size for level in levels]
    if outside_IL.any():
        row, at = np.argwhere(outside_IL)[0]
        problem = f"item {item_ids[int(row)]!r}: code {codes_IL[row, at]} of {levels[at].name}"
        raise UserError(problem, path=path, field="sizes", expected=f"0 to {levels[at].size}, which is a missing one")
    codes_IL = np.ascontiguousarray(codes_IL, np.int32)
    if digits is not None and policy == "digit":
        _check_different(full_IL, item_ids, path)
    if digits is None and collisions.collision(codes_IL)["rate"] == 0:
        resolved = collisions.Resolved(codes_IL)
    elif digits is None:
        resolved = collisions.resolve(policy, codes_IL, [level.size for level in levels], None)
    else:
        resolved = collisions.Resolved(codes_IL, digits.astype(np.int32), 2 * (int(digits.max()) + 1))
    return SemanticIDTable(
        levels=levels,
        codes_IL=resolved.codes_IL,
        digit_I=resolved.digit_I,
        digit_size=resolved.digit_size,
        item_ids=item_ids,
        tokenizer={"name": "imported", "file": path.name},
        policy=policy,
    )


def _check_different(full_IL: np.ndarray, item_ids: pl.Series, path: Path) -> None:
    """Refuses digits that leave two items equal."""
    key_I = collisions.keys_of(full_IL)
    order = np.argsort(key_I, kind="stable")
    same = np.flatnonzero(np.diff(key_I[order]) == 0)
    if len(same):
        a, b = (item_ids[int(row)] for row in order[same[0] : same[0] + 2])
        raise UserError(
            f"items {a!r} and {b!r} have equal codes and equal digits",
            path=path,
            field="digit",
            expected="digits that tell items of equal codes apart",
            hint="leave the digits out to have them counted again, or say --collisions none",
        )


def _levels(codes_IL: np.ndarray, path: Path, options: ImportOptions) -> tuple[Level, ...]:
    depth = codes_IL.shape[1]
    names = options.levels or [f"shared/{level}" for level in range(depth)]
    sizes = options.sizes or (codes_IL.max(0) + 1).tolist()
    for field, given in (("levels", names), ("sizes", sizes)):
        if len(given) != depth or not depth:
            raise UserError(f"{len(given)} given", path=path, field=field, expected=f"{depth}, one for each code")
    bad = next((name for name in names if not name.rpartition("/")[2].isdigit() or not name.partition("/")[0]), None)
    if bad is not None or len(set(names)) < depth:
        raise UserError(f"{bad or names}", path=path, field="levels", expected="different names like shared/0, text/0")
    return tuple(Level(name, name.rpartition("/")[0], int(size)) for name, size in zip(names, sizes, strict=True))
