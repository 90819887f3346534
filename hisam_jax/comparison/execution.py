"""The steps of a comparison as processes of their own: prepare, tokenize, train, evaluate."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hisam_jax.cells.processes import (
    CellFiles,
    Failed,
    begin_cell,
    check_same,
    execute,
    hisam,
    loaded,
    may_begin_anew,
    noting_failure,
    refuse_others,
    resolved,
)
from hisam_jax.claims import claim
from hisam_jax.comparison.grid import Cell, Grid, Tokenizer, beside, flat
from hisam_jax.comparison.inputs import Inputs
from hisam_jax.comparison.predictions import TARGETS, is_frame
from hisam_jax.config import need
from hisam_jax.data.dataset import content_checksum
from hisam_jax.errors import UserError
from hisam_jax.tokenizer.run import settings_of
from hisam_jax.training.assembly import Configs, check_together

FILES = CellFiles("cell.json", "run/evaluation.json", ("run",))


@dataclasses.dataclass(frozen=True)
class Workshop:
    """Where a grid is worked on.

    Attributes:
        grid: what is asked for.
        out: folder of the comparison.
        config: the grid's file: configs that it names are found beside it.
        raw: folder of raw data, what `{data}` stands for.
        given: datasets that are prepared already, by name.
        steps: updates of every run at most, for a trial; 0: as the configs say.
        rows: metrics of rows and of pairs, by the runs that they were made of.
        read: what was read of a file, by when it was written: what is drawn of a run is kept as long as its scores are.
    """

    grid: Grid
    out: Path
    config: Path
    raw: Path | None = None
    given: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    steps: int = 0
    rows: dict[tuple, dict[str, Any]] = dataclasses.field(default_factory=dict)
    read: dict[Path, tuple[int, Any]] = dataclasses.field(default_factory=dict)

    @property
    def inputs(self) -> Inputs:
        """The grid's datasets and IDs."""
        return Inputs(self.out, self.config, self.grid.datasets, self.raw, self.given)

    def dataset(self, name: str) -> Path:
        """A prepared dataset; made where it is not there."""
        return self.inputs.dataset(name)

    def frame(self, name: str) -> Path:
        """The folder of what is scored on a dataset, and of the baselines' scores.

        Raises:
            UserError: it was made of another dataset, and so were the cells beside it; the dataset cannot be prepared
                or read.
        """
        try:
            return self._frame(name)
        except Failed as error:
            raise UserError(str(error), path=self.out, field=f"datasets.{name}") from error

    def _frame(self, name: str) -> Path:
        folder = self.out / "frames" / name
        dataset = self.dataset(name)
        held = {"dataset": {"checksum": content_checksum(dataset)}}
        hint = f"give the dataset that {name} was, or another --out"
        with claim(self.out / "locks" / "settings.lock", wait=True):
            check_same(self.out / "frames" / f"{name}.json", held, folder, hint)
        command = ["-m", "hisam_jax.comparison.frame", str(dataset), str(folder)]
        begin = functools.partial(folder.mkdir, parents=True, exist_ok=True)
        self.inputs.once(folder / TARGETS, command, begin, is_frame)
        return folder

    def ids(self, cell: Cell) -> Path:
        """Semantic IDs that a cell reads; made where they are not there."""
        name = self.grid.rows[cell.row].tokenizer
        folder = f"{name}.seed-{cell.seed}" if self.grid.tokenizers[name].seeded else name
        return self.inputs.ids(cell.dataset, folder, self._tokenizer(cell), _hint(f"{folder}.json"))

    def train(self, cell: Cell) -> list[str]:
        """The command that trains a cell."""
        config, overrides = self._config(cell)
        dataset, ids = self.dataset(cell.dataset), self.ids(cell)
        arguments = ["train", "--dataset", dataset, "--ids", ids, "--config", config]
        return hisam([*arguments, "--workdir", self.out / cell.folder / "run"], overrides)

    def run(self, cell: Cell, lock: int, stop: threading.Event | None = None) -> None:
        """Trains and evaluates a cell, or goes on where an earlier start was stopped.

        Raises:
            Stopped: `stop` was set.
            Failed: a step ended with an error, which the cell's `failed.json` keeps.
            UserError: the folder holds a cell of other settings.
        """
        folder = self.out / cell.folder
        begin_cell(folder, FILES, self.settings(cell), _hint(FILES.record))
        evaluate = hisam(["evaluate", "--workdir", folder / "run", "--no-baselines"], {})
        with noting_failure(folder):
            for step, arguments in (("train", self.train(cell)), ("evaluate", evaluate)):
                execute(arguments, folder / f"{step}.log", (lock,), stop)

    def done(self, cell: Cell) -> bool:
        """Whether a cell has been evaluated.

        Raises:
            UserError: it has, with other settings.
        """
        folder = self.out / cell.folder
        done = (folder / FILES.result).is_file()
        if done:
            check_same(folder / FILES.record, self.settings(cell), folder, _hint(FILES.record))
        return done

    def check(self, cells: Sequence[Cell]) -> None:
        """Resolves all that the cells were given, before any is worked on.

        Raises:
            UserError: a config or an override that a step would refuse, by the row or tokenizer that has it; a cell
                that began with other settings.
        """
        for dataset, name in dict.fromkeys((cell.dataset, cell.row) for cell in cells):
            row = self.grid.rows[name]
            self._check_part(f"rows.{name}", row.config_of(dataset), row.overrides, _check_run)
        for name in dict.fromkeys(self.grid.rows[cell.row].tokenizer for cell in cells):
            entry = self.grid.tokenizers[name]
            self._check_part(f"tokenizers.{name}", entry.config, entry.overrides, settings_of)
        for cell in cells:
            folder = self.out / cell.folder
            if not may_begin_anew(folder, FILES):
                refuse_others(folder / FILES.record, self.settings(cell), folder, _hint(FILES.record))

    def _check_part(self, field: str, file: str, overrides: Mapping, check: Callable[[Any], Any]) -> None:
        try:
            config = beside(file, self.config)
        except UserError as error:
            raise UserError(str(error), path=self.config, field=f"{field}.config") from error
        error = _refusal(config, flat(overrides), check)
        if error is None:
            return
        own = _refusal(config, {}, check)
        blamed, error = ("overrides", error) if own is None else ("config", own)
        what = f"{config}: {': '.join(filter(None, (error.field, error.problem)))}"
        raise UserError(
            what, path=self.config, field=f"{field}.{blamed}", expected=error.expected, hint=error.hint
        ) from error

    def settings(self, cell: Cell) -> dict[str, Any]:
        """All that decides what a cell finds on its dataset, as JSON: its config and its tokenizer's."""
        return {"run": resolved(*self._config(cell)), "tokenizer": self._resolved(self._tokenizer(cell))}

    def _tokenizer(self, cell: Cell) -> Tokenizer:
        return self.grid.tokenizers[self.grid.rows[cell.row].tokenizer].of(cell.seed)

    def _resolved(self, tokenizer: Tokenizer) -> dict[str, Any]:
        return resolved(beside(tokenizer.config, self.config), flat(tokenizer.overrides))

    def _config(self, cell: Cell) -> tuple[Path, dict[str, Any]]:
        row = self.grid.rows[cell.row]
        config = beside(row.config_of(cell.dataset), self.config)
        overrides = {**flat(row.overrides), "seed": cell.seed}
        if self.steps:
            planned = resolved(config, overrides).get("training", {}).get("steps", self.steps)
            overrides["training.steps"] = min(self.steps, planned)
        return config, overrides


def _check_run(config: Mapping[str, Any]) -> None:
    need(config, "seed")  # which every cell overrides
    check_together(Configs.of(config))


def _refusal(config: Path, overrides: Mapping[str, Any], check: Callable[[Any], Any]) -> UserError | None:
    """What a step would say of a config file with these overrides."""
    try:
        check(loaded(config, overrides))
    except UserError as error:
        return error
    return None


def _hint(record: str) -> str:
    return f"give --steps as before, another --out, or remove it and {record}"
