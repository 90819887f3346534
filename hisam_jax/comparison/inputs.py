"""What runs read, made once for all of them: prepared datasets, semantic IDs, what is scored."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hisam_jax.cells.processes import execute, hisam, keep, refuse_others, resolved
from hisam_jax.claims import claim
from hisam_jax.comparison.grid import Data, Tokenizer, beside, flat
from hisam_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Where they lie.

    Attributes:
        out: folder of all that is made.
        config: the file that asks for them: configs that it names are found beside it.
        datasets: what is asked for, by name.
        raw: folder of raw data, what `{data}` stands for.
        given: datasets that are prepared already, by name.
        field: of the config that `datasets` are in, for errors.
    """

    out: Path
    config: Path
    datasets: Mapping[str, Data]
    raw: Path | None = None
    given: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    field: str = "datasets."

    def dataset(self, name: str) -> Path:
        """A prepared dataset; made where it is not there."""
        if name in self.given:
            return self.given[name]
        folder = self.out / "datasets" / name
        if not folder.exists():
            self.once(folder, self._prepare(name, folder))
        return folder

    def ids(self, dataset: str, name: str, tokenizer: Tokenizer, hint: str) -> Path:
        """Semantic IDs of a dataset; made where they are not there.

        Raises:
            UserError: there are some of other settings (`hint` says what to do), or of settings that no one recorded.
        """
        folder, config = self.out / "ids" / dataset / name, beside(tokenizer.config, self.config)
        arguments = ["tokenize", "--dataset", self.dataset(dataset), "--config", config, "--out", folder]
        settings = {"tokenizer": resolved(config, flat(tokenizer.overrides))}
        record = self.out / "ids" / dataset / f"{name}.json"
        command = hisam(arguments, flat(tokenizer.overrides))
        self.once(folder, command, functools.partial(keep, record, settings))
        if not record.is_file():
            expected = f"IDs made here, with their settings in {record}"
            hint = "remove it: IDs are made anew"
            raise UserError("IDs of unknown settings", path=folder, expected=expected, hint=hint)
        refuse_others(record, settings, folder, hint)
        return folder

    def once(
        self,
        made: Path,
        command: Sequence[str],
        begin: Callable[[], None] = lambda: None,
        there: Callable[[Path], bool] = Path.exists,
    ) -> None:
        """Runs a command that makes a file or folder, after `begin`, unless it is there; one process at a time."""
        if there(made):
            return
        lock = self.out / "locks" / ("-".join(made.relative_to(self.out).parts) + ".lock")
        with claim(lock, wait=True) as held:
            if not there(made):
                begin()
                execute(command, lock.with_suffix(".log"), (held,))

    def _prepare(self, name: str, folder: Path) -> list[str]:
        arguments: list[Any] = ["prepare"]
        for field, value in self.datasets[name].prepare.items():
            text = str(value)
            if "{data}" in text and self.raw is None:
                expected = f"--data DIR, or --dataset {name}=DIR for one that is prepared"
                raise UserError(f"{text!r} without a folder of data", field=f"{self.field}{name}", expected=expected)
            arguments += [f"--{field.replace('_', '-')}", text.replace("{data}", str(self.raw))]
        if len(arguments) == 1:
            raise UserError("no such dataset", field=f"{self.field}{name}", expected=f"--dataset {name}=DIR")
        return hisam([*arguments, "--out", folder], {})
