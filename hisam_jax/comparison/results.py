"""A grid's finished cells as one record: metrics with intervals, paired differences, cold and warm, cost."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hisam_jax.cells.processes import failure_of
from hisam_jax.comparison import statistics
from hisam_jax.comparison.execution import Workshop
from hisam_jax.comparison.grid import Cell
from hisam_jax.comparison.plots import curves, curves_of, forest, leading
from hisam_jax.comparison.predictions import PREDICTIONS, TARGETS, Frame, Scores, load_frame, load_scores
from hisam_jax.comparison.runs import taken
from hisam_jax.comparison.tables import markdown
from hisam_jax.data.dataset import read_manifest
from hisam_jax.errors import UserError
from hisam_jax.evaluation import ranking
from hisam_jax.evaluation.cold_start import GROUPS
from hisam_jax.evaluation.intervals import Bootstrap
from hisam_jax.evaluation.oracle import ORACLE
from hisam_jax.files import atomic_write
from hisam_jax.remote import local


@dataclasses.dataclass(frozen=True)
class Scored:
    """What is known of a dataset by now.

    Attributes:
        dataset: its name.
        frame: what is scored.
        cells: row -> its finished cells.
        known: row or baseline -> scores, a run each.
    """

    dataset: str
    frame: Frame
    cells: Mapping[str, Sequence[Cell]]
    known: Mapping[str, Sequence[Scores]]


def collect(shop: Workshop) -> dict[str, Any]:
    """Everything that is known by now; a row is there with its first finished seed."""
    there = {cell.dataset for cell in shop.grid.cells() if shop.done(cell)}
    there |= {name for name in shop.grid.datasets if (shop.out / "frames" / name / TARGETS).is_file()}
    scored = {name: _scored(shop, name) for name in shop.grid.datasets if name in there}
    datasets = {name: _of_dataset(shop, held) for name, held in scored.items()}
    across = [pair for names in shop.grid.across if (pair := _across(shop, scored, *names))]
    return {"title": shop.grid.title, "reference": shop.grid.reference, "datasets": datasets, "across": across}


def write(shop: Workshop, result: Mapping[str, Any], plots: bool = True) -> None:
    """Writes `comparison.json`, `comparison.md` and a plot a dataset."""
    atomic_write(shop.out / "comparison.json", json.dumps(result, indent=1) + "\n")
    atomic_write(shop.out / "comparison.md", markdown(result))
    drawn = {name: table for name, table in result["datasets"].items() if leading(table)}
    for name, table in drawn.items() if plots else ():
        (shop.out / "plots").mkdir(exist_ok=True)
        atomic_write(shop.out / "plots" / f"{name}.svg", forest(table))
        if curves_of(table):
            atomic_write(shop.out / "plots" / f"{name}-curves.svg", curves(table))


def _scored(shop: Workshop, dataset: str) -> Scored:
    folder = shop.frame(dataset)
    frame, simple = _read(shop, folder / TARGETS, lambda: load_frame(folder))
    cells = _finished(shop, dataset)

    def scores_of(cell: Cell) -> Scores:
        run = shop.out / cell.folder / "run"
        return _read(shop, run / PREDICTIONS, lambda: load_scores(run, frame))

    scores = {row: [scores_of(cell) for cell in of] for row, of in cells.items()}
    return Scored(dataset, frame, cells, {name: [one] for name, one in simple.items()} | scores)


def _read(shop: Workshop, file: Path, load: Callable[[], Any]) -> Any:
    """What `load` gives, once for as long as the file is the same one."""
    written = file.stat().st_mtime_ns
    if shop.read.get(file, (None,))[0] != written:
        shop.read[file] = written, load()
    return shop.read[file][1]


def _of_dataset(shop: Workshop, scored: Scored) -> dict[str, Any]:
    grid, dataset, frame, known = shop.grid, scored.dataset, scored.frame, scored.known
    manifest = read_manifest(local(shop.dataset(dataset), "dataset"))
    rows = {}
    for row in known:
        rows[row] = dict(_measured(shop, scored, row))
        rival = grid.rival_of(row) if row in grid.rows else grid.reference
        if rival in known and rival != row:
            rows[row] |= {"against": {"row": rival} | _paired(shop, scored, row, scored, rival)}
        if row in scored.cells:
            folders = [shop.out / cell.folder / "run" for cell in scored.cells[row]]
            rows[row] |= taken(folders, [cell.seed for cell in scored.cells[row]])
            rows[row] |= {"group": grid.rows[row].group, "note": grid.rows[row].note}
        if row == ORACLE:
            rows[row] |= {"group": "what the shop knows"}
    pairs = [
        {"row": row, "rival": rival, **_paired(shop, scored, row, scored, rival)}
        for row, rival in grid.pairs
        if row in known and rival in known
    ]
    data = grid.datasets[dataset]
    return {
        "title": data.title or dataset,
        "note": data.note,
        "lead": list(data.metrics),
        "users": int(len(np.union1d(frame.user_T, frame.rated_E))),
        "items": manifest["items"],
        "split_checksum": manifest["split"]["checksum"],
        "protocol": manifest["split"]["protocol"],
        "tie_break": manifest.get("tie_break"),
        "sizes": {name: int(mask.sum()) for name, mask in frame.of_T.items()},
        "rated": _rated(frame),
        "rows": rows,
        "pairs": pairs,
        "published": [dict(entry) for entry in data.published],
        "failed": _failed(shop, dataset),
    }


def _across(shop: Workshop, scored: Mapping[str, Scored], ours: str, theirs: str) -> dict[str, Any] | None:
    """A paired difference between rows of two datasets; None while one is not there.

    Raises:
        UserError: these datasets hold out other events.
    """
    (mine, row), (other, rival) = ((scored.get(dataset), row) for dataset, row in (ours.split("/"), theirs.split("/")))
    if mine is None or row not in mine.cells or other is None or rival not in other.cells:
        return None
    if not mine.frame.same(other.frame):
        raise UserError(f"{ours} and {theirs} hold out other events", field="across", expected="datasets of one split")
    lead = list(shop.grid.datasets[mine.dataset].metrics)
    return {"row": ours, "rival": theirs, **_paired(shop, mine, row, other, rival), "lead": lead}


def _measured(shop: Workshop, scored: Scored, row: str) -> dict[str, Any]:
    """Metrics of a row, of each group too, worked out once for the same runs: they cost thousands of resamples."""
    key = "row", scored.frame, *scored.known[row]
    if key not in shop.rows:
        bootstrap = Bootstrap(resamples=shop.grid.resamples)
        tables = {g: statistics.metrics(scored.known[row], scored.frame, bootstrap, g) for g in (None, *GROUPS)}
        shop.rows[key] = {"metrics": tables.pop(None), "groups": tables}
    return shop.rows[key]


def _paired(shop: Workshop, mine: Scored, row: str, other: Scored, rival: str) -> dict[str, Any]:
    """Differences of two rows, worked out once for the same runs."""
    key = "pair", mine.frame, *mine.known[row], "less", *other.known[rival]
    if key not in shop.rows:
        bootstrap = Bootstrap(resamples=shop.grid.resamples)
        shop.rows[key] = _against(mine.known[row], other.known[rival], mine.frame, bootstrap)
    return shop.rows[key]


def _rated(frame: Frame) -> dict[str, int]:
    """Rated events, by groups too, and users: all, and those whom GAUC can judge."""
    by_user = ranking.auc_by_user(frame.label_E, np.zeros(len(frame.label_E)), frame.rated_E)
    return {
        "events": len(frame.rated_E),
        "users": len(np.unique(frame.rated_E)),
        "of both classes": len(by_user.auc_V),
        **{name: int(mask.sum()) for name, mask in frame.of_E.items()},
    }


def _finished(shop: Workshop, dataset: str) -> dict[str, list[Cell]]:
    cells = [cell for cell in shop.grid.cells() if cell.dataset == dataset and shop.done(cell)]
    return {row: of for row in shop.grid.rows_of(dataset) if (of := [cell for cell in cells if cell.row == row])}


def _against(ours: Sequence[Scores], theirs: Sequence[Scores], frame: Frame, bootstrap: Bootstrap) -> dict[str, Any]:
    tables = {group: statistics.differences(ours, theirs, frame, bootstrap, group) for group in (None, *GROUPS)}
    return {"metrics": tables.pop(None), "groups": tables}


def _failed(shop: Workshop, dataset: str) -> dict[str, str]:
    found = {}
    for cell in shop.grid.cells():
        said = failure_of(shop.out / cell.folder)
        if cell.dataset == dataset and said is not None and not shop.done(cell):
            found[f"{cell.row}, seed {cell.seed}"] = said
    return found
