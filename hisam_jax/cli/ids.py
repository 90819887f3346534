"""`hisam ids`: tables of semantic IDs exported, imported, and extended by new items."""

from __future__ import annotations

import argparse
from typing import Any

from hisam_jax.cli.common import Verb, count, names
from hisam_jax.errors import UserError
from hisam_jax.paths import output_path


def _flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group(required=True)
    one = "one of --export, --import, --extend"
    what.add_argument("--export", metavar="FILE", help=f"write --ids to NAME.parquet or NAME.index.json ({one})")
    what.add_argument(
        "--import",
        dest="source",
        metavar="FILE",
        help=f"make --out from NAME.parquet or NAME.index.json, for the items of --dataset ({one})",
    )
    what.add_argument(
        "--extend",
        metavar="DIR",
        help="make --out from --ids with the new items of this dataset, by the frozen tokenizer: no old ID moves; "
        f"items that have vanished are left out and reported ({one})",
    )
    add("--ids", metavar="DIR", help="a table that `hisam tokenize` left; needed by --export and --extend")
    add("--dataset", metavar="DIR", help="a dataset that `hisam prepare` left; needed by --import")
    add("--out", metavar="DIR", help="where the new table goes; needed by --import and --extend")
    add(
        "--item-map",
        metavar="FILE",
        help="with --import of an index: lines ITEM<tab>NUMBER (default: NAME.item2id beside it; without it, its keys "
        "are item ids)",
    )
    add(
        "--levels",
        metavar="NAME,...",
        type=names,
        help="with --import: a name for each level, such as text/0 (default: as in the file, else shared/0, ...)",
    )
    add(
        "--sizes",
        metavar="N,...",
        type=_counts,
        help="with --import: codes of each level (default: as in the file, else its greatest code plus 1)",
    )
    add("--last-is-digit", action="store_true", help="with --import: the last code only tells equal items apart")
    add(
        "--collisions",
        choices=("digit", "none"),
        help="with --import of somebody else's file: whether items with equal codes get a digit (default: digit)",
    )


def _counts(text: str) -> list[int]:
    return [count(part) for part in names(text)]


TAKES = {
    "export": ("ids",),
    "import": ("out", "dataset", "item_map", "levels", "sizes", "last_is_digit", "collisions"),
    "extend": ("ids", "out"),
}


def _ids(arguments: argparse.Namespace) -> Any:
    given = {"export": arguments.export, "import": arguments.source, "extend": arguments.extend}
    action = next(name for name, value in given.items() if value is not None)
    flag = lambda name: "--" + name.replace("_", "-")  # noqa: E731
    for name in sorted(set().union(*TAKES.values())):
        value = getattr(arguments, name)
        if value not in (None, False) and name not in TAKES[action]:
            takes = ", ".join(map(flag, TAKES[action]))
            raise UserError(f"--{action} does not take it", field=flag(name), expected=f"--{action} with {takes} only")
        if value == "":
            raise UserError("an empty name", field=flag(name), expected="a file or a folder")
    if given[action] == "":
        raise UserError("an empty name", field=f"--{action}", expected="a file or a folder")
    return {"export": _export, "import": _import, "extend": _extend}[action](arguments)


def _export(arguments: argparse.Namespace) -> dict[str, Any]:
    from hisam_jax.tokenizer.id_files import export_ids
    from hisam_jax.tokenizer.semantic_ids import SemanticIDTable

    output_path(arguments.export, "--export")
    table = SemanticIDTable.load(_needed(arguments, "ids", "--export"))
    return {"files": export_ids(table, arguments.export), **_summary(table)}


def _import(arguments: argparse.Namespace) -> dict[str, Any]:
    out, dataset = (_needed(arguments, name, "--import") for name in ("out", "dataset"))
    output_path(out, "--out")
    from hisam_jax.data.dataset import Dataset
    from hisam_jax.files import atomic_directory
    from hisam_jax.tokenizer.id_files import ImportOptions, import_ids, writing

    options = ImportOptions(
        arguments.item_map, arguments.levels, arguments.sizes, arguments.last_is_digit, arguments.collisions
    )
    table = import_ids(arguments.source, Dataset.load(dataset).items["item_id"], options)
    with writing(out), atomic_directory(out, holds="codes.npy") as scratch:
        table.write_into(scratch)
    return {"ids": out, **_summary(table)}


def _extend(arguments: argparse.Namespace) -> dict[str, Any]:
    ids, out = (_needed(arguments, name, "--extend") for name in ("ids", "out"))
    from hisam_jax.tokenizer.extension import extend_ids

    return {"ids": out, **extend_ids(ids, arguments.extend, out)}


def _summary(table: Any) -> dict[str, Any]:
    levels = {level.name: level.size for level in table.levels}
    about = {"items": len(table.item_ids), "levels": levels, "digit_size": table.digit_size}
    return {**about, "tokenizer": table.tokenizer.get("name"), "checksum": table.checksum}


def _needed(arguments: argparse.Namespace, name: str, to: str) -> str:
    value = getattr(arguments, name)
    if value is None:
        raise UserError(f"{to} needs --{name}", field=f"--{name}", expected=f"--{name} DIR")
    return value


VERBS = {"ids": Verb("Exports or imports a table of semantic IDs, or extends it by new items.", _flags, _ids)}
