"""`hisam scale`: works through a sweep, several cells at a time if asked, fits laws and writes the page."""

from __future__ import annotations

import dataclasses
import json
import operator
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from hisam_jax.cells.pool import Pool, Work
from hisam_jax.cells.processes import (
    FAILED,
    CellFiles,
    Failed,
    begin_cell,
    check_same,
    execute,
    failure_of,
    note_failure,
    resolved,
    some_failed,
    tries_of,
)
from hisam_jax.claims import claim
from hisam_jax.comparison.grid import beside, flat
from hisam_jax.comparison.inputs import Inputs
from hisam_jax.data.dataset import content_checksum
from hisam_jax.drawing import svg
from hisam_jax.errors import UserError
from hisam_jax.files import atomic_write
from hisam_jax.paths import output_path
from hisam_jax.progress import progress
from hisam_jax.scaling import fits, page, plots
from hisam_jax.scaling.cell import run_cell
from hisam_jax.scaling.frontier import Target
from hisam_jax.scaling.law import FEWEST_CELLS
from hisam_jax.scaling.sweep import Cell, Sweep, chosen
from hisam_jax.tokenizer.semantic_ids import SemanticIDTable

MENDABLE = 2  # the exit code of what will not go better next time
CHANGED = "give another --out, or remove it"
FILES = CellFiles("task.json", "cell.json", ("run", "plan.json"))


@dataclasses.dataclass(frozen=True)
class Yard:
    """Where a sweep is worked on.

    Attributes:
        sweep: what is asked for.
        out: folder of everything.
        config: the sweep's file: configs that it names are found beside it.
        raw: folder of raw data, what `{data}` stands for.
        given: the dataset where it is prepared already.
        coded: its IDs where they are made already.
    """

    sweep: Sweep
    out: Path
    config: Path
    raw: Path | None = None
    given: Path | None = None
    coded: Path | None = None

    def inputs(self) -> tuple[Path, Path]:
        """Dataset and IDs; made where they are not there."""
        given = {} if self.given is None else {"data": self.given}
        inputs = Inputs(self.out, self.config, {"data": self.sweep.data}, self.raw, given, "")
        dataset = inputs.dataset("data")
        ids = self.coded or inputs.ids("data", "ids", self.sweep.tokenizer, CHANGED)
        if self.given or self.coded:
            self._check_given(dataset, ids)
        return dataset, ids

    def _check_given(self, dataset: Path, ids: Path) -> None:
        """Refuses others than the cells that are done were trained on."""
        table = SemanticIDTable.load(ids)
        held = {"dataset": {"files": content_checksum(dataset)}, "ids": {"table": table.checksum}}
        with claim(self.out / "locks" / "settings.lock", wait=True):
            check_same(self.out / "inputs.json", held, self.out, CHANGED)

    def settings(self, cell: Cell) -> dict[str, Any]:
        """All that decides what a cell finds on its dataset, as JSON."""
        sweep, size = self.sweep, self.sweep.sizes[cell.size]
        fields = {"width": size.width, "layers": size.layers, **size.fields()}
        overrides = {
            **flat(sweep.overrides),
            **flat(sweep.models[cell.model]),
            **{f"model.{name}": value for name, value in fields.items()},
            "data.items_per_row": cell.history,
            "data.window": cell.history,
            "data.rows": max(1, sweep.batch_items // cell.history),
            "training.optimizer.learning_rate": sweep.learning_rate.at(size.width),
            "training.monitor": None,
            "training.patience": 0,
            "evaluation.validation_users": 0,
            "seed": cell.seed,
        }
        more = {"warmup": sweep.warmup, "epochs": sweep.epochs, "width": size.width, "layers": size.layers}
        run = resolved(beside(sweep.config, self.config), overrides)
        return {"run": run, "cell": {**dataclasses.asdict(cell), **more}}

    def done(self, cell: Cell) -> bool:
        """Whether a cell is finished.

        Raises:
            UserError: it is, with other settings.
        """
        folder = self.out / cell.folder
        finished = (folder / "cell.json").is_file()
        if finished:
            check_same(folder / "task.json", self.settings(cell), folder, CHANGED)
        return finished

    def run(self, cell: Cell, lock: int, stop: threading.Event) -> None:
        """Does a cell, or goes on where an earlier start was stopped.

        Raises:
            Failed: it ended with an error, which the cell's `failed.json` keeps, or has done so too often.
            UserError: the folder holds a cell of other settings.
        """
        folder = self.out / cell.folder
        begin_cell(folder, FILES, self.settings(cell), CHANGED)
        if tries_of(folder) >= self.sweep.attempts:
            raise Failed(f"{failure_of(folder)} ({tries_of(folder)} times; remove {folder / FAILED} to try again)")
        command = ["-m", "hisam_jax.scaling.cell", str(folder), *map(str, self.inputs())]
        try:
            execute(command, folder / "log", (lock,), stop)
        except Failed as error:
            note_failure(folder, error)
            raise
        (folder / FAILED).unlink(missing_ok=True)

    def run_here(self, cell: Cell) -> None:
        """Does a cell in this process, or goes on with it; what a user can mend is kept in its `failed.json`.

        Raises:
            UserError: as `run` and `run_cell`.
        """
        folder, inputs = self.out / cell.folder, map(str, self.inputs())
        begin_cell(folder, FILES, self.settings(cell), CHANGED)
        try:
            run_cell(folder, *inputs)
        except UserError as error:
            note_failure(folder, Failed(str(error), error.exit_code))
            raise
        (folder / FAILED).unlink(missing_ok=True)

    def again(self, cell: Cell, error: Failed) -> bool:
        """Whether a cell that failed is tried once more: not what would fail again, nor too often."""
        return error.code != MENDABLE and tries_of(self.out / cell.folder) < self.sweep.attempts

    def results(self) -> list[dict[str, Any]]:
        """What finished cells found, in the sweep's order."""
        files = [self.out / cell.folder / "cell.json" for cell in self.sweep.cells()]
        return [{"name": file.parent.name, **json.loads(file.read_text())} for file in files if file.is_file()]

    def failed(self) -> dict[str, str]:
        """What cells said that failed and are not done."""
        cells = [cell for cell in self.sweep.cells() if not (self.out / cell.folder / "cell.json").is_file()]
        return {cell.name: said for cell in cells if (said := failure_of(self.out / cell.folder)) is not None}


def scale(
    config: ml_collections.ConfigDict,
    config_file: str | os.PathLike,
    out: str | os.PathLike,
    *,
    data: str | os.PathLike | None = None,
    dataset: str | os.PathLike | None = None,
    ids: str | os.PathLike | None = None,
    only: Sequence[str] = (),
    jobs: int = 1,
    here: bool = False,
    fits_only: bool = False,
    targets: Sequence[Target] = (),
) -> dict[str, Any]:
    """Runs every cell of a sweep that is not done yet, fits laws to what is done and writes the page.

    Leaves `scale.md`, `scale.json` and `plots/` in `out`. Started again, also after a kill, it goes on, within a cell
    too; several starts that share `out` divide the cells. A cell that fails is recorded and tried again, up to
    `attempts` times over all starts.

    Args:
        config: see `scaling.sweep.Sweep`.
        config_file: where it came from; files that it names are looked for here, then beside it.
        out: folder of dataset, IDs, cells and the page.
        data: folder of raw data, `{data}` in the sweep.
        dataset: a prepared dataset in place of preparing one.
        ids: its IDs, in place of making them by the sweep's tokenizer; only with `dataset`.
        only: cells to run, by name or number; empty: all. The page shows all that is done.
        jobs: cells at a time, each on its share of the cores.
        here: cells one after another in this process, whatever `jobs` says: for a notebook, whose process holds the
            accelerator and lets no other have it. An error of a cell is raised and ends the sweep.
        fits_only: run nothing, write the page of what is done.
        targets: budgets that the page predicts for, see `scaling.frontier.Target`.

    Returns:
        What `scale.json` holds.

    Raises:
        UserError: a sweep that cannot be, data that cannot be prepared, cells that failed, too few for a page.
    """
    sweep = Sweep.of(config)
    cells = chosen(sweep.cells(), only)
    if ids is not None and dataset is None:
        raise UserError("IDs without their dataset", field="ids", expected="dataset beside it")
    yard = Yard(sweep, output_path(out, "out"), Path(config_file), _path(data), _path(dataset), _path(ids))
    try:
        failed = {} if fits_only else _work_here(yard, cells) if here else _work(yard, cells, jobs)
    except Failed as error:
        raise UserError(str(error), path=yard.out, field="data") from error
    result = write_page(yard, targets)
    if fits_only:
        _check_fitted(result, yard.out)
    if failed:
        raise some_failed({cell.name: said for cell, said in failed.items()}, len(cells), yard.out)
    return result


def _work(yard: Yard, cells: Sequence[Cell], jobs: int) -> Mapping[Cell, str]:
    old = None
    if threading.current_thread() is threading.main_thread():
        old = signal.signal(signal.SIGTERM, _leave)
    try:
        yard.inputs()
        work = Work(
            "scale", yard.out / "locks", operator.attrgetter("folder"), yard.done, yard.run, lambda: None, yard.again
        )
        return Pool(work, cells, jobs).work()
    finally:
        if old is not None:
            signal.signal(signal.SIGTERM, old)


def _work_here(yard: Yard, cells: Sequence[Cell]) -> Mapping[Cell, str]:
    yard.inputs()
    for cell in progress([cell for cell in cells if not yard.done(cell)], description="scale", unit="cell"):
        with claim(yard.out / "locks" / f"cells-{cell.name}.lock", wait=True):
            if not yard.done(cell):
                yard.run_here(cell)
    return {}


def _leave(number: int, _: Any) -> None:
    raise SystemExit(128 + number)


def _path(path: str | os.PathLike | None) -> Path | None:
    return None if path is None else Path(path)


def write_page(yard: Yard, targets: Sequence[Target] = ()) -> dict[str, Any]:
    """Fits what is done by now and writes the page; one process at a time."""
    with claim(yard.out / "locks" / "page.lock", wait=True):
        cells, sweep = yard.results(), yard.sweep
        result = {
            "title": sweep.title,
            "learning_rate": sweep.learning_rate.said(),
            "cells": cells,
            "failed": yard.failed(),
            "left": len(sweep.cells()) - len(cells),
        }
        if not cells:
            return result
        result |= fits.analyse(cells, sweep.parameters, sweep.resamples, targets)
        pictures = plots.figures(result)
        (yard.out / "plots").mkdir(exist_ok=True)
        for name, figure in pictures.items():
            atomic_write(yard.out / "plots" / f"{name}.svg", svg(figure))
        atomic_write(yard.out / "scale.json", json.dumps(result, indent=1) + "\n")
        atomic_write(yard.out / "scale.md", page.markdown(result, list(pictures)))
    return result


def _check_fitted(result: Mapping[str, Any], out: Path) -> None:
    """Refuses to be content with a page without a single law, where nothing but the page was asked for."""
    if any(entry["law"] for entry in result.get("models", {}).values()):
        return
    why = {model: entry["why"] for model, entry in result.get("models", {}).items()}
    first = next(iter(why.items()), ("", "no finished cell"))
    raise UserError(
        f"no law: {': '.join(filter(None, first))}", path=out, field="parts",
        expected=f"{FEWEST_CELLS} finished cells of a model", hint="run more of the sweep",
    )  # fmt: skip


def list_cells(config: ml_collections.ConfigDict) -> list[str]:
    """Names of a sweep's cells, in the order in which `--only` numbers them from 1."""
    return [cell.name for cell in Sweep.of(config).cells()]
