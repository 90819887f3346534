"""`hisam scale`: works through a sweep, several cells at a time if asked, fits laws and writes the page."""

from __future__ import annotations

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
from hisam_jax.cells.processes import Failed, some_failed
from hisam_jax.claims import claim
from hisam_jax.drawing import svg
from hisam_jax.errors import UserError
from hisam_jax.files import atomic_write
from hisam_jax.paths import output_path
from hisam_jax.progress import progress
from hisam_jax.scaling import fits, page, plots
from hisam_jax.scaling.frontier import Target
from hisam_jax.scaling.law import FEWEST_CELLS
from hisam_jax.scaling.sweep import Cell, Sweep, chosen
from hisam_jax.scaling.yard import Yard


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
        raise UserError("IDs without their dataset", field="--ids", expected="--dataset DIR beside it")
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
        yard.check()
        yard.inputs()
        work = Work(
            "scale", yard.out / "locks", operator.attrgetter("folder"), yard.done, yard.run, lambda: None, yard.again
        )
        return Pool(work, cells, jobs).work()
    finally:
        if old is not None:
            signal.signal(signal.SIGTERM, old)


def _work_here(yard: Yard, cells: Sequence[Cell]) -> Mapping[Cell, str]:
    yard.check()
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
