"""`hisam recommend`, `hisam report`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hisam_jax.cli.common import Lines, Verb, count, names


def _recommend_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", metavar="DIR", required=True, help="a run that `hisam train` left")
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument(
        "--user", metavar="ID", help="a user of the dataset, by the id in the raw data (one of --user, --history)"
    )
    who.add_argument(
        "--history",
        metavar="ID,ID,...",
        type=names,
        help="item ids, oldest first, for somebody the dataset does not know",
    )
    parser.add_argument("-k", metavar="N", type=count, default=10, help="how many items to recommend")


def _recommend(arguments: argparse.Namespace) -> Lines:
    from hisam_jax.inference.recommend import recommend

    return Lines(recommend(arguments.workdir, user=arguments.user, history=arguments.history, k=arguments.k))


def _report_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", metavar="DIR", required=True, help="a run that `hisam evaluate` has scored")


def _report(arguments: argparse.Namespace) -> Path | str:
    from hisam_jax.evaluation.report import report

    return report(arguments.workdir)


def _export_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", metavar="DIR", required=True, help="a run that `hisam train` left")
    parser.add_argument("--out", metavar="DIR", required=True, help="where the release goes; whole or absent")
    parser.add_argument("-k", metavar="N", type=count, default=100, help="the most recommendations of a user")
    parser.add_argument("--beams", metavar="N", type=count, default=50, help="prefixes kept while IDs are generated")


def _export(arguments: argparse.Namespace) -> Any:
    from hisam_jax.inference.export import export

    manifest = export(arguments.workdir, arguments.out, k=arguments.k, beams=arguments.beams)
    return {name: manifest[name] for name in ("release", "items", "window", "ways", "functions", "platforms")}


VERBS = {
    "export": Verb("Writes a run as StableHLO that jax and numpy alone can serve.", _export_flags, _export),
    "recommend": Verb("Recommends items to a user or a history, as JSON lines.", _recommend_flags, _recommend),
    "report": Verb("Writes one self-contained report.html and prints its path.", _report_flags, _report),
}
