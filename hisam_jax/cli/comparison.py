"""`hisam compare`."""

from __future__ import annotations

import argparse
from typing import Any

from hisam_jax.cli.common import Verb, config_of, count


def _flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a grid, such as configs/compare/shop.py")
    parser.add_argument("--out", metavar="DIR", required=True, help="where datasets, IDs, runs and tables go")
    parser.add_argument("--data", metavar="DIR", help="folder of raw data, {data} in the grid")
    parser.add_argument(
        "--dataset",
        metavar="NAME=DIR",
        type=_named,
        action="append",
        default=[],
        help="a prepared dataset in place of the one that the grid would prepare; may be given several times",
    )
    parser.add_argument("--only", metavar="ROW", nargs="+", default=[], help="rows to run (default: all)")
    parser.add_argument("--jobs", metavar="N", type=count, default=1, help="runs at a time, each on its share of cores")
    parser.add_argument("--steps", metavar="N", type=count, help="updates of a run, for a trial (default: its own)")
    parser.add_argument("--tables", action="store_true", help="only write the tables of what is done")


def _compare(arguments: argparse.Namespace) -> Any:
    from hisam_jax.comparison.run import compare

    compare(
        config_of(arguments),
        arguments.config,
        arguments.out,
        data=arguments.data,
        datasets=dict(arguments.dataset),
        only=arguments.only,
        jobs=arguments.jobs,
        steps=arguments.steps or 0,
        tables_only=arguments.tables,
    )
    return f"{arguments.out}/comparison.md"


def _named(text: str) -> tuple[str, str]:
    name, sign, folder = text.partition("=")
    if not name or not sign or not folder:
        raise argparse.ArgumentTypeError(f"'{text}'; expected NAME=DIR")
    return name, folder


VERBS = {"compare": Verb("Trains and evaluates a grid of tokenizers, models and switches.", _flags, _compare)}
