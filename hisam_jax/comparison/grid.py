"""What a comparison's config file asks for: datasets, tokenizers, rows and seeds."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hisam_jax.comparison import grid_checks
from hisam_jax.config import build
from hisam_jax.errors import UserError

REQUIRED = ("title", "datasets", "tokenizers", "rows", "seeds", "reference")


@dataclasses.dataclass(frozen=True)
class Data:
    """A dataset of the grid.

    Attributes:
        prepare: arguments of `hisam prepare` but `--out`, `{data}` standing for the folder of raw data, such as
            `{"source": "sequences", "raw": "{data}/amazon-beauty-2014"}`; a field of two words has an underscore.
        title: for the tables.
        note: what a reader of the tables should know of the data.
        metrics: that lead the tables, such as `retrieval/recall@10`; the first one is drawn.
        published: figures of others to be held against, each with `name`, `row` (ours), `source`, the values of
            metrics by name and, if they differ, `why`; a value is compared with the row's masked and unmasked
            interval, as tables differ in this.
    """

    prepare: Mapping = dataclasses.field(default_factory=dict)
    title: str = ""
    note: str = ""
    metrics: tuple = ("retrieval/recall@10", "retrieval/ndcg@10")
    published: tuple = ()


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of the grid.

    Attributes:
        config: file of `hisam tokenize`.
        overrides: of its fields, nested as they are there.
        seeded: fit it anew for every seed of a row, so that the spread of the seeds is that of IDs and model together;
            otherwise all runs read the IDs of the config's own seed. Theirs lie in folders of their own, `NAME.seed-N`.
    """

    config: str
    overrides: Mapping = dataclasses.field(default_factory=dict)
    seeded: bool = False

    def of(self, seed: int) -> Tokenizer:
        """What a run of this seed reads the IDs of."""
        return dataclasses.replace(self, overrides={**self.overrides, "seed": seed}) if self.seeded else self


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the tables: a model with its IDs.

    Attributes:
        config: file of `hisam train`; may be one a dataset, by its name.
        tokenizer: one of the grid's.
        overrides: of the config's fields, nested as they are there, such as `{"model": {"anchors": False}}`.
        against: the row that its paired difference is taken from; empty: the grid's reference.
        group: heading of the rows that belong together.
        datasets: names of those that it is for; empty: all.
        seeds: of its runs; empty: the grid's.
        note: what the row is there to show.
    """

    config: str | Mapping
    tokenizer: str
    overrides: Mapping = dataclasses.field(default_factory=dict)
    against: str = ""
    group: str = ""
    datasets: tuple = ()
    seeds: tuple = ()
    note: str = ""

    def config_of(self, dataset: str) -> str:
        """The config file for a dataset."""
        return self.config if isinstance(self.config, str) else self.config[dataset]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run: a row of the grid on a dataset with a seed."""

    dataset: str
    row: str
    seed: int

    @property
    def folder(self) -> Path:
        """Below the comparison's folder."""
        return Path("cells") / self.dataset / self.row / f"seed-{self.seed}"


@dataclasses.dataclass(frozen=True)
class Grid:
    """The whole comparison.

    Attributes:
        title: of the page.
        datasets, tokenizers, rows: by name; a config file gives rows as a list, each with its `name`, for their order.
        seeds: of every row that names none.
        reference: the row that others are compared with.
        resamples: of the bootstrap over users.
        pairs: `(row, rival)` whose paired differences have a table of their own, by groups of users and items too.
        across: the same over datasets of one split, each side `DATASET/ROW`, such as `("both/hmat", "text/hmat")`.
    """

    title: str
    datasets: Mapping[str, Data]
    tokenizers: Mapping[str, Tokenizer]
    rows: Mapping[str, Row]
    seeds: tuple
    reference: str
    resamples: int = 1000
    pairs: tuple = ()
    across: tuple = ()

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Grid:
        """A grid from the sections of a config file.

        Raises:
            UserError: an unknown or missing field, a value of another type, a row of an unknown tokenizer, dataset or
                rival, a metric that there is none of, a name that is no name of a folder.
        """
        grid_checks.check_fields(config, [field.name for field in dataclasses.fields(cls)], REQUIRED)
        sections = {"datasets": Data, "tokenizers": Tokenizer, "rows": Row}
        given = {name: grid_checks.named(name, config[name]) for name in sections}
        parts = {
            name: {key: build(kind, value, f"{name}.{key}") for key, value in given[name].items()}
            for name, kind in sections.items()
        }
        grid = cls(
            config["title"], **parts, seeds=grid_checks.sequence("seeds", config["seeds"], "seeds such as (0, 1, 2)"),
            reference=config["reference"], resamples=config.get("resamples", 1000),
            **{name: grid_checks.pairs(name, config.get(name, ())) for name in ("pairs", "across")},
        )  # fmt: skip
        grid_checks.check(grid)
        return grid

    def cells(self) -> Iterator[Cell]:
        """Every run, the first seed of all rows before the second of any."""
        seeds = {name: row.seeds or self.seeds for name, row in self.rows.items()}
        for turn in range(max(map(len, seeds.values()), default=0)):
            for dataset in self.datasets:
                for name in self.rows_of(dataset):
                    if turn < len(seeds[name]):
                        yield Cell(dataset, name, int(seeds[name][turn]))

    def rows_of(self, dataset: str) -> list[str]:
        """Names of the rows that are for a dataset."""
        return [name for name, row in self.rows.items() if not row.datasets or dataset in row.datasets]

    def rival_of(self, row: str) -> str | None:
        """The row that a row is compared with; None for the reference itself."""
        rival = self.rows[row].against or self.reference
        return None if rival == row else rival


def flat(overrides: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested overrides by dotted names."""
    found: dict[str, Any] = {}
    for name, value in overrides.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def beside(path: str | os.PathLike, config_file: str | os.PathLike) -> Path:
    """A config file named in another: as it is from here, else from the folder that holds `configs` beside it."""
    if Path(path).is_file():
        return Path(path)
    for folder in Path(config_file).resolve().parents:
        if (folder / path).is_file():
            return folder / path
    raise UserError("no such config file", path=path, expected=f"a file from here, or beside {config_file}")
