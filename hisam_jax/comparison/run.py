"""`hisam compare`: works through a grid, several cells at a time if asked, and writes the tables anew after each."""

from __future__ import annotations

import itertools
import os
import queue
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from hisam_jax.claims import claim
from hisam_jax.comparison.execution import Failed, Workshop
from hisam_jax.comparison.grid import Cell, Grid
from hisam_jax.comparison.results import collect, write
from hisam_jax.errors import UserError
from hisam_jax.paths import output_path

WAIT_SECONDS = 5.0  # between two looks at cells that other processes hold


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
        UserError: a grid that cannot be, data that cannot be prepared, or cells that failed.
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
        failed = _Pool(shop, cells, jobs).work()
    result = _write_tables(shop)
    if not tables_only and failed:
        first, said = next(iter(failed.items()))
        raise UserError(
            f"{len(failed)} of {len(cells)} cells failed, the first {first.folder}: {said}", path=shop.out,
            hint="mend it and run the same command again: what is done stays done",
        )  # fmt: skip
    return result


def _write_tables(shop: Workshop, plots: bool = True) -> dict[str, Any]:
    """Of all that is done by now; one process and thread at a time."""
    with claim(shop.out / "locks" / "tables.lock", wait=True):
        result = collect(shop)
        write(shop, result, plots)
    return result


class _Pool:
    """Threads that each run one cell after another in processes."""

    def __init__(self, shop: Workshop, cells: Sequence[Cell], jobs: int):
        self._shop, self._cells, self._jobs = shop, cells, max(1, jobs)
        self._failed: dict[Cell, str] = {}
        self._errors: queue.Queue[BaseException] = queue.Queue()
        self._stop, self._taking = threading.Event(), threading.Lock()

    def work(self) -> dict[Cell, str]:
        """Runs all cells; returns those that failed, with what they said."""
        for dataset in self._shop.grid.datasets:
            if any(cell.dataset == dataset for cell in self._cells):
                try:
                    self._shop.frame(dataset)
                except Failed as error:
                    raise UserError(str(error), path=self._shop.out, field=f"datasets.{dataset}") from error
        while todo := [cell for cell in self._cells if not self._shop.done(cell) and cell not in self._failed]:
            before = len(todo)
            turn = iter(todo)
            threads = [threading.Thread(target=self._thread, args=(n, turn), daemon=True) for n in range(self._jobs)]
            for thread in threads:
                thread.start()
            self._join(threads)
            if not self._errors.empty():
                raise self._errors.get()
            if before == len([cell for cell in todo if not self._shop.done(cell) and cell not in self._failed]):
                time.sleep(WAIT_SECONDS)  # all that is left is with other processes
        return self._failed

    def _join(self, threads: Sequence[threading.Thread]) -> None:
        try:
            while any(thread.is_alive() for thread in threads):
                threads[0].join(0.2)
                time.sleep(0.05)
        except BaseException:
            self._stop.set()
            raise

    def _thread(self, number: int, turn: itertools.chain) -> None:
        try:
            if self._jobs > 1 and hasattr(os, "sched_setaffinity"):
                os.sched_setaffinity(0, _share(sorted(os.sched_getaffinity(0)), number, self._jobs))  # of this thread
            while not self._stop.is_set():
                with self._taking:
                    cell = next(turn, None)
                if cell is None:
                    return
                self._cell(cell)
        except BaseException as error:  # noqa: BLE001 - handed to the main thread, which raises it
            self._stop.set()
            self._errors.put(error)

    def _cell(self, cell: Cell) -> None:
        shop = self._shop
        with claim(shop.out / "locks" / ("-".join(cell.folder.parts) + ".lock")) as held:
            if held is None or shop.done(cell):
                return
            print(f"compare: {cell.folder}", file=sys.stderr, flush=True)
            try:
                shop.run(cell, held)
            except Failed as error:
                print(f"compare: {cell.folder} failed: {error}", file=sys.stderr, flush=True)
                self._failed[cell] = str(error)
                return
        _write_tables(shop, plots=False)


def _share(cores: Sequence[int], number: int, jobs: int) -> set[int]:
    """One of `jobs` parts of the cores; where there are fewer cores, parts overlap."""
    mine = {core for place, core in enumerate(cores) if place % jobs == number % len(cores)}
    return mine or {cores[number % len(cores)]}
