"""The public data sets of this benchmark, prepared once under the scratch folder."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from benchmarks.common import start, wait


@dataclasses.dataclass(frozen=True)
class PublicSet:
    """A data set and the share of it that a model of this benchmark sees.

    Attributes:
        title: for the tables.
        prepare: arguments of `hisam prepare`, `{data}` filled in.
        window: items of a history that the fixed model reads.
        steps: of the fixed model.
        users: test users that are scored, drawn once; 0 is all.
        tokenizer_steps: of tokenizers that learn by steps of 256 items, some 60 passes over the items.
    """

    title: str
    prepare: str
    window: int
    steps: int
    users: int
    tokenizer_steps: int


SETS = {
    "ml-latest-small": PublicSet(
        "MovieLens latest-small (5-core, posters)",
        "--source movielens --raw {data}/ml-latest-small --images {data}/movielens-posters --min-user 5 --min-item 5",
        window=32,
        steps=200,
        users=0,
        tokenizer_steps=1000,
    ),
    "ml-1m": PublicSet(
        "MovieLens-1M (posters)",
        "--source sequences --raw {data}/ml-1m --images {data}/movielens-posters",
        window=32,
        steps=200,
        users=1000,
        tokenizer_steps=1000,
    ),
    "amazon-beauty-2014": PublicSet(
        "Amazon Beauty 2014 (text only)",
        "--source sequences --raw {data}/amazon-beauty-2014 --image-encoder none",
        window=32,
        steps=200,
        users=1000,
        tokenizer_steps=3000,
    ),
}


def prepared(name: str, data: Path, work: Path) -> Path:
    """The dataset's folder under `work`, made where it is not there yet; leave-one-out, seed 0."""
    folder = work / name / "dataset"
    if not (folder / "manifest.json").is_file():
        command = f"-m hisam_jax prepare {SETS[name].prepare.format(data=data)} --out {folder}"
        wait([start(shlex.split(command), work / name / "prepare.log")])
    return folder
