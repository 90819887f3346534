"""Where a sweep is worked on: its inputs, the settings of its cells, what they left."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hisam_jax.cells.processes import (
    FAILED,
    CellFiles,
    Failed,
    begin_cell,
    check_same,
    execute,
    failure_of,
    loaded,
    may_begin_anew,
    note_failure,
    noting_failure,
    resolved,
    tries_of,
)
from hisam_jax.claims import claim
from hisam_jax.comparison.grid import beside, flat
from hisam_jax.comparison.inputs import Inputs
from hisam_jax.data.dataset import Dataset, content_checksum
from hisam_jax.errors import UserError
from hisam_jax.files import atomic_write
from hisam_jax.scaling.cell import RESULT, TASK, read_record, run_cell
from hisam_jax.scaling.sweep import Cell, Sweep
from hisam_jax.tokenizer.run import settings_of
from hisam_jax.tokenizer.semantic_ids import SemanticIDTable
from hisam_jax.training.assembly import Configs, check_together

MENDABLE = 2  # the exit code of what will not go better next time
NEEDS = ("model", "size", "history", "flops", "d", "spent", "loss", "recall@10", "n", "planned")  # of a result
FILES = CellFiles(TASK, RESULT, ("run", "plan.json"))
CHANGED = "give another --out, or remove it"


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

    def check(self) -> None:
        """Looks through all that is given and named before anything is made.

        Raises:
            UserError: no such dataset or IDs, fields of a config or values that cannot be, models whose losses would
                be on other events.
        """
        item_ids, tokenizer = None, self.sweep.tokenizer
        if self.given is not None:
            with _said_of(self.config, {}, "--dataset"):
                item_ids = Dataset.load(self.given, verify=False).items["item_id"].to_list()  # cells verify it
        if self.coded is not None:
            with _said_of(self.config, {}, "--ids"):
                SemanticIDTable.load(self.coded, item_ids, verify=False)
        else:
            with _said_of(self.config, {"tokenizer.overrides": tokenizer.overrides}):
                settings_of(loaded(beside(tokenizer.config, self.config), flat(tokenizer.overrides)))
        self._check_models()

    def _check_models(self) -> None:
        runs = {(cell.model, cell.size): self._checked(cell) for cell in reversed(self.sweep.cells())}
        if len({run.data.endless for run in runs.values()}) > 1:
            expected = "the same for all, whose losses are on the same held-out events"
            raise UserError(
                "data.endless of some and not of others", path=self.config, field="models", expected=expected
            )

    def _checked(self, cell: Cell) -> Configs:
        overrides = {f"models.{cell.model}": self.sweep.models[cell.model], "overrides": self.sweep.overrides}
        with _said_of(self.config, overrides):
            configs = Configs.of(self.settings(cell)["run"])
            check_together(configs)
        return configs

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
        overrides = {
            **flat(sweep.overrides),
            **flat(sweep.models[cell.model]),
            **{f"model.{name}": value for name, value in size.fields().items()},
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
        finished = (self.out / cell.folder / RESULT).is_file()
        if finished:
            folder = self.out / cell.folder
            check_same(folder / TASK, self._compared(cell), folder, CHANGED)
        return finished

    def _compared(self, cell: Cell) -> dict[str, Any]:
        """Settings of a cell with the `epochs` that it began with: they only say what is refused, and may be raised."""
        folder, settings = self.out / cell.folder, self.settings(cell)
        if (folder / TASK).is_file():
            held = read_record(folder / TASK, ("run", "cell"), f"remove {folder}")
            if not may_begin_anew(folder, FILES):
                settings["cell"]["epochs"] = held["cell"].get("epochs")
        return settings

    def _begun(self, cell: Cell) -> Path:
        """A cell's folder with its task in it, for this sweep's `epochs`."""
        folder = self.out / cell.folder
        begin_cell(folder, FILES, self._compared(cell), CHANGED)
        task = json.loads((folder / TASK).read_text())
        if task["cell"].get("epochs") != self.sweep.epochs:
            task["cell"]["epochs"] = self.sweep.epochs
            atomic_write(folder / TASK, json.dumps(task, indent=1) + "\n")
        return folder

    def run(self, cell: Cell, lock: int, stop: threading.Event) -> None:
        """Does a cell, or goes on where an earlier start was stopped.

        Raises:
            Failed: it ended with an error, which the cell's `failed.json` keeps, or has done so too often.
            UserError: the folder holds a cell of other settings.
        """
        folder = self._begun(cell)
        if tries_of(folder) >= self.sweep.attempts:
            raise Failed(f"{failure_of(folder)} ({tries_of(folder)} times; remove {folder / FAILED} to try again)")
        command = ["-m", "hisam_jax.scaling.cell", str(folder), *map(str, self.inputs())]
        with noting_failure(folder):
            execute(command, folder / "log", (lock,), stop)

    def run_here(self, cell: Cell) -> None:
        """Does a cell in this process, or goes on with it; what a user can mend is kept in its `failed.json`.

        Raises:
            UserError: as `run` and `run_cell`.
        """
        inputs, folder = map(str, self.inputs()), self._begun(cell)
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
        files = [self.out / cell.folder / RESULT for cell in self.sweep.cells()]
        hint = "remove it, and the cell is judged again"
        return [{"name": file.parent.name, **read_record(file, NEEDS, hint)} for file in files if file.is_file()]

    def failed(self) -> dict[str, str]:
        """What cells said that failed and are not done."""
        cells = [cell for cell in self.sweep.cells() if not (self.out / cell.folder / RESULT).is_file()]
        return {cell.name: said for cell in cells if (said := failure_of(self.out / cell.folder)) is not None}


@contextlib.contextmanager
def _said_of(config: Path, asked: Mapping[str, Mapping[str, Any]], flag: str | None = None) -> Iterator[None]:
    """Gives an error the flag that it is about, or the field of the sweep's `config` by which it was `asked` for."""
    try:
        yield
    except UserError as error:
        path, field = error.path, flag or error.field
        for section, overrides in asked.items():
            if error.field in flat(overrides):
                path, field = config, f"{section}.{error.field}"
                break
        raise UserError(
            error.problem, path=path, line=error.line, field=field, expected=error.expected, hint=error.hint
        ) from error
