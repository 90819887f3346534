"""What a sweep's config file asks for: data, models, sizes, and which of them at which budgets."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import ml_collections

from hisam_jax.comparison.grid import Data, Tokenizer
from hisam_jax.config import build, check_least, is_section
from hisam_jax.errors import UserError
from hisam_jax.scaling.sizes import Rate, Size

FEWEST_ITEMS, MOST_HISTORY = 2, 100_000


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the grid: all of its models at all of its sizes, histories, budgets or items, and seeds.

    Attributes:
        sizes: names of those of the sweep.
        budgets: useful FLOPs of training; the steps are those that spend them (isoFLOP).
        items: trained on, in place of budgets or beside them.
        histories: the most items of a history that a model reads.
        models: names of those of the sweep; empty: all.
        seeds: of parameters and data.
    """

    sizes: tuple
    budgets: tuple = ()
    items: tuple = ()
    histories: tuple = (64,)
    models: tuple = ()
    seeds: tuple = (0,)


NAMED = {"sizes": Size, "parts": Part}  # sections of the file that hold records by name


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run.

    Attributes:
        model, size: by name.
        history: the most items of a history.
        flops: its budget; 0 where `items` is given.
        items: trained on; 0 where the budget is given.
        seed: of parameters and data.
    """

    model: str
    size: str
    history: int
    flops: float
    items: int
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        much = f"c{self.flops:.3g}" if self.flops else f"d{self.items}"
        return f"{self.model}-{self.size}-h{self.history}-{much.replace('+', '')}-s{self.seed}"

    @property
    def folder(self) -> Path:
        """Below the sweep's folder."""
        return Path("cells") / self.name


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The whole sweep.

    Attributes:
        title: of the page.
        data: the dataset: what is held out, and with `data.endless` in the config the shop that goes on.
        tokenizer: of its items.
        config: file of `hisam train` that every cell starts from.
        overrides: of its fields, for all cells.
        models: overrides by model's name, such as `{"hmat": {}, "flat": {"model": {"anchors": False}}}`.
        sizes: by name.
        parts: of the grid, by name; a cell of several is one cell.
        learning_rate: see `Rate`.
        warmup: share of a run's steps in which the rate rises.
        batch_items: places for items in a batch, whatever the history.
        epochs: passes over a dataset's training events at most, where the data is not without end; cells of more than
            one pass are marked. It may be raised later: cells that are done stay done.
        attempts: at a cell that fails, over all starts.
        parameters: what N counts: the `network` without, or the `total` with tables of codes and item ids.
        resamples: of the bootstraps.
    """

    title: str
    data: Data
    tokenizer: Tokenizer
    config: str
    models: Mapping
    sizes: Mapping
    parts: Mapping
    overrides: Mapping = dataclasses.field(default_factory=dict)
    learning_rate: Rate = Rate()
    warmup: float = 0.1
    batch_items: int = 1024
    epochs: float = 4.0
    attempts: int = 3
    parameters: Literal["network", "total"] = "network"
    resamples: int = 200

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Sweep:
        """A sweep from a config file.

        Raises:
            UserError: an unknown or missing field, nothing to run, a name that is not known, a size that no model can
                have, a budget that is none.
        """
        plain = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else dict(config)
        made = {
            name: {key: build(kind, value, f"{name}.{key}") for key, value in plain[name].items()}
            for name, kind in NAMED.items()
            if isinstance(plain.get(name), Mapping)
        }
        sweep = build(cls, plain | made, "")
        sweep._check()
        return sweep

    def cells(self) -> list[Cell]:
        """Every run once, the cheap ones first."""
        found = dict.fromkeys(cell for part in self.parts.values() for cell in self._cells(part))
        return sorted(found, key=lambda cell: (cell.flops, cell.items))

    def _cells(self, part: Part) -> Iterator[Cell]:
        amounts = [(float(flops), 0) for flops in part.budgets] + [(0.0, int(items)) for items in part.items]
        for seed in part.seeds:
            for flops, items in amounts:
                for size in part.sizes:
                    for history in part.histories:
                        for model in part.models or self.models:
                            yield Cell(model, size, int(history), flops, items, int(seed))

    def _check(self) -> None:
        check_least(self, "", batch_items=2, epochs=0, attempts=1, resamples=10)
        if not 0 <= self.warmup < 1:
            raise UserError(f"value {self.warmup}", field="warmup", expected="a share of the steps, 0 or more, below 1")
        for field in ("models", "sizes", "parts"):
            names = getattr(self, field)
            if not names:
                raise UserError("nothing", field=field, expected="at least one")
            for name in names:
                if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9_]+", name):
                    raise UserError(f"name {name!r}", field=field, expected="small letters, digits and _")
        for name, overrides in self.models.items():
            if not isinstance(overrides, Mapping):
                expected = 'overrides by section, such as {"model": {"anchors": False}}, or {}'
                raise UserError(f"value {overrides!r}", field=f"models.{name}", expected=expected)
        for name, size in self.sizes.items():
            size.check(name)
        for name, part in self.parts.items():
            self._check_part(f"parts.{name}", part)
        self._check_names()

    def _check_names(self) -> None:
        """Refuses two cells that would share a folder."""
        cells = sorted(self.cells(), key=lambda cell: cell.name)
        for one, two in itertools.pairwise(cells):
            if one.name == two.name:
                raise UserError(
                    f"{one.flops!r} and {two.flops!r} FLOPs are both cell {one.name}", field="parts",
                    expected="budgets of a size that differ in three digits",
                )  # fmt: skip

    def _check_part(self, field: str, part: Part) -> None:
        for name, given, known in (("sizes", part.sizes, self.sizes), ("models", part.models, self.models)):
            for one in given:
                if not isinstance(one, str) or one not in known:
                    raise UserError(f"value {one!r}", field=f"{field}.{name}", expected=" or ".join(sorted(known)))
        for name in ("sizes", "histories", "seeds"):
            if not getattr(part, name):
                raise UserError("nothing", field=f"{field}.{name}", expected="at least one")
        if not part.budgets and not part.items:
            raise UserError("nothing", field=f"{field}.budgets", expected="FLOPs such as 1e12, or items of it")
        _numbers(f"{field}.budgets", part.budgets, 1, math.inf, whole=False)
        _numbers(f"{field}.items", part.items, 1, math.inf)
        _numbers(f"{field}.histories", part.histories, FEWEST_ITEMS, min(MOST_HISTORY, self.batch_items))
        _numbers(f"{field}.seeds", part.seeds, 0, 2**32 - 1)


def completed(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A sweep's config with every field in it that has a default, so that each can be overridden.

    What is no section is left as it is, for `Sweep.of` to refuse.
    """
    found = _completed(Sweep, config.to_dict())
    for name, kind in NAMED.items():
        if is_section(found.get(name)):
            found[name] = {key: _completed(kind, value) for key, value in found[name].items()}
    return ml_collections.ConfigDict(found)


def _completed(record: type, section: Any) -> Any:
    if not is_section(section):
        return section
    found = dict(section)
    hints = typing.get_type_hints(record)
    for field in dataclasses.fields(record):
        if dataclasses.is_dataclass(hints[field.name]) and (
            field.name in found or field.default is not dataclasses.MISSING
        ):
            found[field.name] = _completed(hints[field.name], found.get(field.name, {}))
        elif field.default is not dataclasses.MISSING:
            found.setdefault(field.name, field.default)
        elif field.default_factory is not dataclasses.MISSING:
            found.setdefault(field.name, field.default_factory())
    return found


def _numbers(field: str, values: Sequence[Any], least: float, most: float, whole: bool = True) -> None:
    for value in values:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or (whole and value != int(value)) or not least <= value <= most:
            kind = "a whole number" if whole else "a number"
            raise UserError(f"value {value!r}", field=field, expected=f"{kind} from {least} to {most}")


def chosen(cells: Sequence[Cell], only: Iterable[str]) -> list[Cell]:
    """The cells of these names or numbers, counted from 1; all where none is given.

    Raises:
        UserError: there is no such cell.
    """
    by_name = {cell.name: cell for cell in cells} | {str(number): cell for number, cell in enumerate(cells, 1)}
    for one in only:
        if one not in by_name:
            expected = f"1 to {len(cells)}, or a name that `hisam scale CONFIG --list` prints"
            raise UserError(f"value {one!r}", field="--only", expected=expected)
    return [by_name[one] for one in only] or list(cells)
