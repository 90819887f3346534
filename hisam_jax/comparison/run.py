"""`hisam compare`: works through a grid, several cells at a time if asked, and writes the tables anew after each."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from hisam_jax.cells.pool import Pool, Work
from hisam_jax.cells.processes import some_failed
from hisam_jax.claims import claim
from hisam_jax.comparison.execution import Workshop
from hisam_jax.comparison.grid import Cell, Grid
from hisam_jax.comparison.results import collect, write
from hisam_jax.errors import UserError
from hisam_jax.paths import output_path


def compare(
    config: ml_collections.ConfigDict,
    config_file: str | os.PathLike,
    out: str | os.PathLike,
    *,
    data: str | os.PathLike | None = None,
    datasets: Mapping[str, str | os.PathLike] | None = None,
    only: Sequence[str] = (),
    jobs: int = 1,
    steps: int = 0,
    tables_only: bool = False,
) -> dict[str, Any]:
    """Runs every cell of a grid that is not done yet, and writes `comparison.md`, `comparison.json` and plots.

    Started again, also after a kill, it goes on; several processes, on machines that share `out`, divide the cells
    between them. A cell that fails is recorded, the others go on, and the next start tries it again.

    Args:
        config: see `comparison.grid.Grid`.
        config_file: where it came from; files that it names are looked for here, then beside it.
        out: folder of datasets, IDs, cells and tables.
        data: folder of raw data, `{data}` in the grid.
        datasets: prepared datasets by the grid's names, in place of preparing them.
        only: rows to run; empty: all. The tables show all that is done.
        jobs: cells at a time, each on its share of the cores.
        steps: of every run at most, to try a grid out; 0: as its configs say.
        tables_only: write the tables of what is done, run nothing.

    Returns:
        What `comparison.json` holds.

    Raises:
        UserError: a grid that cannot be, or settings of a row, before any work; data that cannot be prepared; cells
            that failed.
    """
    grid = Grid.of(config)
    for name, known, field in ((only, grid.rows, "only"), (datasets or {}, grid.datasets, "dataset")):
        for entry in name:
            if entry not in known:
                raise UserError(f"value {entry!r}", field=f"--{field}", expected=" or ".join(known))
    given = {name: Path(path) for name, path in (datasets or {}).items()}
    shop = Workshop(grid, output_path(out, "out"), Path(config_file), Path(data) if data else None, given, steps)
    if not tables_only:
        cells = [cell for cell in grid.cells() if not only or cell.row in only]
        shop.check(cells)
        failed = _work(shop, cells, jobs)
    result = _write_tables(shop)
    if not tables_only and failed:
        raise some_failed({str(cell.folder): said for cell, said in failed.items()}, len(cells), shop.out)
    return result


def _work(shop: Workshop, cells: Sequence[Cell], jobs: int) -> dict[Cell, str]:
    """Runs all cells; returns those that failed, with what they said."""
    for dataset in shop.grid.datasets:
        if any(cell.dataset == dataset for cell in cells):
            shop.frame(dataset)
    after = functools.partial(_write_tables, shop, plots=False)
    work = Work("compare", shop.out / "locks", lambda cell: cell.folder, shop.done, shop.run, after)
    return Pool(work, cells, jobs).work()


def _write_tables(shop: Workshop, plots: bool = True) -> dict[str, Any]:
    """Of all that is done by now; one process and thread at a time."""
    with claim(shop.out / "locks" / "tables.lock", wait=True):
        result = collect(shop)
        write(shop, result, plots)
    return result
