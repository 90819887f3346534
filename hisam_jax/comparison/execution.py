"""The steps of a comparison as processes of their own: prepare, tokenize, train, evaluate."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hisam_jax.claims import claim
from hisam_jax.comparison.grid import Cell, Grid, beside, flat
from hisam_jax.config import load_config
from hisam_jax.errors import UserError
from hisam_jax.files import atomic_write
from hisam_jax.training.checkpoints import differences

SAID = 400  # last characters of a failed step's log that are shown


class Failed(Exception):
    """A step ended with an error; its last words."""


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
        rows: metrics of rows by the runs that they were made of.
    """

    grid: Grid
    out: Path
    config: Path
    raw: Path | None = None
    given: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    steps: int = 0
    rows: dict[tuple, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def dataset(self, name: str) -> Path:
        """A prepared dataset; made where it is not there."""
        if name in self.given:
            return self.given[name]
        folder = self.out / "datasets" / name
        if not folder.exists():
            self._once(folder, self._prepare(name, folder))
        return folder

    def frame(self, name: str) -> Path:
        """The folder of what is scored on a dataset, and of the baselines' scores."""
        folder = self.out / "frames" / name
        dataset = self.dataset(name)
        if not (folder / "targets.npz").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            self._once(folder / "targets.npz", ["-m", "hisam_jax.comparison.frame", str(dataset), str(folder)])
        return folder

    def ids(self, dataset: str, tokenizer: str) -> Path:
        """Semantic IDs of a dataset; made where they are not there."""
        entry, folder = self.grid.tokenizers[tokenizer], self.out / "ids" / dataset / tokenizer
        config = beside(entry.config, self.config)
        arguments = ["tokenize", "--dataset", self.dataset(dataset), "--config", config, "--out", folder]
        settings = {"tokenizer": _resolved(config, flat(entry.overrides))}
        with claim(self.out / "locks" / "settings.lock", wait=True):
            _check_same(self.out / "ids" / dataset / f"{tokenizer}.json", settings, folder)
        self._once(folder, _hisam(arguments, flat(entry.overrides)))
        return folder

    def train(self, cell: Cell) -> list[str]:
        """The command that trains a cell."""
        config, overrides = self._config(cell)
        dataset, ids = self.dataset(cell.dataset), self.ids(cell.dataset, self.grid.rows[cell.row].tokenizer)
        arguments = ["train", "--dataset", dataset, "--ids", ids, "--config", config]
        return _hisam([*arguments, "--workdir", self.out / cell.folder / "run"], overrides)

    def run(self, cell: Cell, lock: int) -> None:
        """Trains and evaluates a cell, or goes on where an earlier start was stopped.

        Raises:
            Failed: a step ended with an error, which the cell's `failed.json` keeps.
            UserError: the folder holds a cell of other settings.
        """
        folder = self.out / cell.folder
        _check_same(folder / "cell.json", self.settings(cell), folder)
        evaluate = _hisam(["evaluate", "--workdir", folder / "run", "--no-baselines"], {})
        try:
            for step, arguments in (("train", self.train(cell)), ("evaluate", evaluate)):
                execute(arguments, folder / f"{step}.log", (lock,))
        except Failed as error:
            record = folder / "failed.json"
            tries = json.loads(record.read_text())["tries"] if record.is_file() else 0
            atomic_write(record, json.dumps({"tries": tries + 1, "said": str(error)}, indent=1) + "\n")
            raise
        (folder / "failed.json").unlink(missing_ok=True)

    def done(self, cell: Cell) -> bool:
        """Whether a cell has been evaluated.

        Raises:
            UserError: it has, with other settings.
        """
        done = (self.out / cell.folder / "run" / "evaluation.json").is_file()
        if done:
            _check_same(self.out / cell.folder / "cell.json", self.settings(cell), self.out / cell.folder)
        return done

    def settings(self, cell: Cell) -> dict[str, Any]:
        """All that decides what a cell finds on its dataset, as JSON: its config and its tokenizer's."""
        entry = self.grid.tokenizers[self.grid.rows[cell.row].tokenizer]
        config, overrides = self._config(cell)
        parts = {"run": (config, overrides), "tokenizer": (beside(entry.config, self.config), flat(entry.overrides))}
        return {name: _resolved(*part) for name, part in parts.items()}

    def _config(self, cell: Cell) -> tuple[Path, dict[str, Any]]:
        row = self.grid.rows[cell.row]
        config = beside(row.config_of(cell.dataset), self.config)
        overrides = {**flat(row.overrides), "seed": cell.seed}
        if self.steps:
            overrides["training.steps"] = min(self.steps, _resolved(config, overrides)["training"]["steps"])
        return config, overrides

    def _prepare(self, name: str, folder: Path) -> list[str]:
        arguments: list[Any] = ["prepare"]
        for field, value in self.grid.datasets[name].prepare.items():
            text = str(value)
            if "{data}" in text and self.raw is None:
                expected = f"--data DIR, or --dataset {name}=DIR for one that is prepared"
                raise UserError(f"{text!r} without a folder of data", field=f"datasets.{name}", expected=expected)
            arguments += [f"--{field.replace('_', '-')}", text.replace("{data}", str(self.raw))]
        if len(arguments) == 1:
            raise UserError("no such dataset", field=f"datasets.{name}", expected=f"--dataset {name}=DIR")
        return _hisam([*arguments, "--out", folder], {})

    def _once(self, made: Path, command: Sequence[str]) -> None:
        """Runs a command that makes a file or folder, unless it is there; one process at a time."""
        if made.exists():
            return
        lock = self.out / "locks" / ("-".join(made.relative_to(self.out).parts) + ".lock")
        with claim(lock, wait=True) as held:
            if not made.exists():
                execute(command, lock.with_suffix(".log"), (held,))


def execute(command: Sequence[str], log: Path, held: Sequence[int] = ()) -> None:
    """Runs `python COMMAND` to its end, what it says going to a log; it holds the locks `held` with us.

    Raises:
        Failed: it ended with an error.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as stream:
        child = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=stream, pass_fds=held)
        try:
            code = child.wait()
        except BaseException:
            child.send_signal(signal.SIGTERM)  # a run saves what it has
            child.wait()
            raise
    if code:
        said = log.read_text(errors="replace")[-SAID:].strip().splitlines() or [f"exit code {code}"]
        raise Failed(f"{said[-1]} (exit code {code}; {log})")


def _hisam(arguments: Sequence[Any], overrides: Mapping[str, Any]) -> list[str]:
    flags = [f"--config.{field}={value}" for field, value in overrides.items()]
    return ["-m", "hisam_jax", *map(str, arguments), *flags]


def _resolved(config: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A config with its overrides, as JSON."""
    whole = load_config(config, {field: str(value) for field, value in overrides.items()}).to_dict()
    return json.loads(json.dumps(whole, sort_keys=True))


def _check_same(record: Path, settings: Mapping[str, Any], made: Path) -> None:
    """Keeps the settings of what is `made` beside it, or refuses others than it began with."""
    then = json.loads(record.read_text()) if record.is_file() else settings
    changed = [name for part in settings for name in differences(then.get(part, {}), settings[part])]
    if changed:
        raise UserError(
            f"was made with other settings ({', '.join(changed)})", path=made, expected="these settings",
            hint=f"give --steps as before, another --out, or remove it and {record.name}",
        )  # fmt: skip
    if not record.is_file():
        atomic_write(record, json.dumps(settings, indent=1) + "\n")
