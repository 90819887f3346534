"""`hisam tokenize`, `hisam train`, `hisam evaluate`."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable
from typing import Any

from hisam_jax.cli.common import Verb, add_config, config_of
from hisam_jax.errors import UserError


def _tokenize_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", metavar="DIR", required=True, help="a dataset that `hisam prepare` left")
    add_config(parser, "configs/tokenizer/dst.py")
    parser.add_argument(
        "--out", metavar="DIR", required=True, help="where the table of semantic IDs and diagnostics.json go"
    )
    parser.add_argument("--json", action="store_true", help="print diagnostics.json in place of its table")


def _tokenize(arguments: argparse.Namespace) -> Any:
    from hisam_jax.tokenizer.diagnostics_table import diagnostics_table
    from hisam_jax.tokenizer.run import tokenize

    report = tokenize(arguments.dataset, config_of(arguments), arguments.out)
    return report if arguments.json else diagnostics_table(report, arguments.out)


def _train_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", metavar="DIR", required=True, help="a dataset that `hisam prepare` left")
    parser.add_argument("--ids", metavar="DIR", required=True, help="a table that `hisam tokenize` left")
    add_config(parser, "configs/shop.py")
    parser.add_argument(
        "--workdir",
        metavar="DIR",
        required=True,
        help="where metrics.jsonl, TensorBoard events, checkpoints and the resolved config go; a run that was stopped "
        "goes on from its last checkpoint there",
    )
    parser.add_argument(
        "--mix",
        metavar="DIR=WEIGHT",
        type=_share,
        action="append",
        default=[],
        help="another dataset over the same items: WEIGHT windows of its training events for each of --dataset; may "
        "be given several times; evaluated is --dataset alone",
    )


def _train(arguments: argparse.Namespace) -> Any:
    mixture = _mixture(arguments.mix)
    from hisam_jax.training.run import train

    return train(arguments.dataset, arguments.ids, config_of(arguments), arguments.workdir, mixture)


def _mixture(shares: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Weights by folder; one weight of two for the same folder would be lost."""
    mixture: dict[str, float] = {}
    for folder, weight in shares:
        if os.path.realpath(folder) in map(os.path.realpath, mixture):
            raise UserError(f"{folder} twice", field="--mix", expected="each dataset once", hint="add its weights up")
        mixture[folder] = weight
    return mixture


def _share(text: str) -> tuple[str, float]:
    folder, _, weight = text.rpartition("=")
    if not folder or not re.fullmatch(r"\d+(\.\d+)?", weight):
        raise argparse.ArgumentTypeError(f"'{text}'; expected DIR=WEIGHT, such as other_dataset=0.5")
    return folder, float(weight)


def _evaluate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workdir", metavar="DIR", required=True, help="a run that `hisam train` left")
    parser.add_argument(
        "--split", choices=("validation", "test"), default="test", help="which held-out events are scored"
    )
    parser.add_argument(
        "--baselines", action=argparse.BooleanOptionalAction, default=True, help="score the simple ones too"
    )


def _evaluate(arguments: argparse.Namespace) -> Any:
    from hisam_jax.evaluation.run import evaluate

    return evaluate(arguments.workdir, arguments.split, arguments.baselines)


VERBS = {
    "tokenize": Verb("Fits a tokenizer and gives every item its semantic ID.", _tokenize_flags, _tokenize),
    "train": Verb("Trains a model; started again, it goes on where it was stopped.", _train_flags, _train),
    "evaluate": Verb("Scores a run over the whole catalogue, beside the baselines.", _evaluate_flags, _evaluate),
}
