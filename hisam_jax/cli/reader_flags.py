"""The flags of `hisam prepare` that belong to one source or a few: which reader option each one sets."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from hisam_jax.cli.common import count, seed, share
from hisam_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ReaderFlag:
    """A flag, the reader option behind it, and the option's default with each source that has it."""

    flag: str
    option: str
    metavar: str
    help: str
    defaults: Mapping[str, Any]
    kind: Callable[[str], Any] = str
    unset: str = "none"  # what a default of None means


def _shop(option: str, metavar: str, default: Any, kind: Callable[[str], Any], text: str) -> ReaderFlag:
    return ReaderFlag(f"--shop-{option.replace('_', '-')}", option, metavar, text, {"shop": default}, kind)


def _table(flag: str, option: str, metavar: str, default: Any, text: str) -> ReaderFlag:
    return ReaderFlag(flag, option, metavar, text, {"table": default})


def _column(flag: str, option: str, table: str | None, recbole: str | None, text: str) -> ReaderFlag:
    unset = "the usual name where there is one"
    return ReaderFlag(flag, option, "NAME", text, {"table": table, "recbole": recbole}, unset=unset)


GROUPS: dict[str, tuple[ReaderFlag, ...]] = {
    "the embedded shop (--source shop)": (
        _shop("users", "N", 2500, count, "users"),
        _shop("items", "N", 2000, count, "items, at least 64"),
        _shop("events_per_user", "N", 32.0, float, "mean events of a user, at least 10"),
        _shop("seed", "N", 0, seed, "seed of everything that is generated"),
        _shop("missing_picture", "SHARE", 0.04, share, "share of items without a picture, 0 to 1"),
        _shop("missing_title", "SHARE", 0.04, share, "share of items without any text, 0 to 1"),
        _shop("cold_users", "SHARE", 0.1, share, "share of users with 3 to 9 events, 0 to 1"),
        _shop("cold_items", "SHARE", 0.1, share, "share of items released last or never sold, 0 to 0.5"),
        _shop("popularity", "EXPONENT", 0.8, float, "exponent of the Zipf law of popularity, 0 or more"),
        _shop("sequence", "SHARE", 0.7, share, "share of choices that follow the last purchases, 0 to 1"),
        _shop("sequence_days", "DAYS", 20.0, float, "time constant with which that share fades, days"),
        _shop("explore", "SHARE", 0.1, share, "share of choices made by popularity alone, 0 to 1"),
        _shop("drift_days", "DAYS", 90.0, float, "time constant of the tastes' drift, days"),
        _shop("horizon_days", "DAYS", 1000.0, float, "length of the log, days"),
        _shop("picture_size", "PIXELS", 96, count, "side of the square pictures, 32 to 1024 pixels"),
    ),
    "columns (--source table or recbole)": (
        _column("--user-column", "user", "user", "user_id", "user ids"),
        _column("--item-column", "item", "item", "item_id", "item ids, in both tables"),
        _column("--rating-column", "rating", None, "rating", "ratings"),
        _column(
            "--timestamp-column", "timestamp", None, "timestamp", "times: ISO dates, or seconds (or finer) since 1970"
        ),
        _column("--title-column", "title", None, None, "item titles"),
        _column("--category-column", "categories", None, None, "item categories"),
        _table("--text-columns", "text", "NAME,...", None, "item columns that become text"),
        _table("--image-column", "image", "NAME", None, "a picture's path or URL, looked for below --images"),
    ),
    "files (--source table, recbole, amazon2014 or amazon2023)": (
        _table(
            "--interactions", "interactions", "FILE", "interactions.csv", "CSV or Parquet of interactions, in --raw"
        ),
        _table("--items", "items", "FILE", "items.csv", "CSV or Parquet of items, in --raw"),
        _table("--separator", "separator", "CHARACTER", ",", "between the fields of both CSV files; \\t is a tab"),
        _table("--category-separator", "category_separator", "CHARACTER", "|", "between the categories of an item"),
        ReaderFlag("--recbole-name", "name", "NAME", "which data set, where --raw holds several", {"recbole": None}),
        ReaderFlag(
            "--sequence-separator", "sequence_separator", "CHARACTER", "between a token_seq's words", {"recbole": " "}
        ),
        ReaderFlag(
            "--amazon-category",
            "category",
            "NAME",
            "which category, where --raw holds several",
            {"amazon2014": None, "amazon2023": None},
        ),
    ),
}


def add_reader_flags(parser: argparse.ArgumentParser) -> None:
    """Adds every reader's flags in groups; one that is left out takes the reader's own default."""
    for title, flags in GROUPS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            text = f"{flag.help} (default: {_defaults(flag)})".replace("%", "%%")
            group.add_argument(flag.flag, metavar=flag.metavar, type=flag.kind, help=text)


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The reader options that the command line sets.

    Raises:
        UserError: a flag of another source.
    """
    options = {}
    for flag in (flag for flags in GROUPS.values() for flag in flags):
        value = getattr(arguments, flag.flag.removeprefix("--").replace("-", "_"))
        if value is None:
            continue
        if arguments.source not in flag.defaults:
            expected = f"--source {' or '.join(flag.defaults)}"
            raise UserError(f"no flag of --source {arguments.source}", field=flag.flag, expected=expected)
        options[flag.option] = value
    return options


def _defaults(flag: ReaderFlag) -> str:
    values = {source: flag.unset if value is None else repr(value) for source, value in flag.defaults.items()}
    if len(set(values.values())) == 1:
        value = next(iter(values.values())).strip("'")
        return "a space" if value == " " else value
    return ", ".join(f"{value} with {source}" for source, value in values.items()).replace("'", "")
