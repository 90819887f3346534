"""A grid's finished cells as one record: metrics with intervals, paired differences, cold and warm, cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hisam_jax.cells.processes import failure_of
from hisam_jax.comparison import statistics
from hisam_jax.comparison.execution import Workshop
from hisam_jax.comparison.grid import Cell
from hisam_jax.comparison.plots import curves, curves_of, forest, leading
from hisam_jax.comparison.predictions import Frame, Scores, load_frame, load_scores
from hisam_jax.comparison.runs import taken
from hisam_jax.comparison.tables import markdown
from hisam_jax.data.dataset import read_manifest
from hisam_jax.errors import UserError
from hisam_jax.evaluation import ranking
from hisam_jax.evaluation.cold_start import GROUPS
from hisam_jax.evaluation.intervals import Bootstrap
from hisam_jax.files import atomic_write
from hisam_jax.remote import local


def collect(shop: Workshop) -> dict[str, Any]:
    """Everything that is known by now; a row is there with its first finished seed."""
    datasets = {}
    for name in shop.grid.datasets:
        if (shop.out / "frames" / name / "targets.npz").is_file():
            datasets[name] = _of_dataset(shop, name)
    across = [pair for names in shop.grid.across if (pair := _across(shop, *names))]
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


def _of_dataset(shop: Workshop, dataset: str) -> dict[str, Any]:
    grid, bootstrap = shop.grid, Bootstrap(resamples=shop.grid.resamples)
    frame, simple = load_frame(shop.frame(dataset))
    cells = _finished(shop, dataset)
    scores = {row: [load_scores(shop.out / cell.folder / "run", frame) for cell in of] for row, of in cells.items()}
    known = {name: [one] for name, one in simple.items()} | scores
    manifest = read_manifest(local(shop.dataset(dataset), "dataset"))
    rows = {}
    for row in known:
        rival = grid.rival_of(row) if row in grid.rows else grid.reference
        theirs = known.get(rival) if rival != row else None
        made_of = dataset, row, _seeds(cells, row), rival, _seeds(cells, rival)
        if made_of not in shop.rows:  # thousands of resamples: once for the same runs
            shop.rows[made_of] = _row(known[row], theirs, rival, frame, bootstrap)
        rows[row] = dict(shop.rows[made_of])
        if row in cells:
            folders = [shop.out / cell.folder / "run" for cell in cells[row]]
            rows[row] |= taken(folders, _seeds(cells, row))
            rows[row] |= {"group": grid.rows[row].group, "note": grid.rows[row].note}
    pairs = []
    for row, rival in grid.pairs:
        if row in known and rival in known:
            key = "pair", dataset, row, _seeds(cells, row), rival, _seeds(cells, rival)
            if key not in shop.rows:
                shop.rows[key] = {"row": row, "rival": rival} | _against(known[row], known[rival], frame, bootstrap)
            pairs.append(shop.rows[key])
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


def _across(shop: Workshop, ours: str, theirs: str) -> dict[str, Any] | None:
    """A paired difference between rows of two datasets; None while one is not there.

    Raises:
        UserError: these datasets hold out other events.
    """
    sides = []
    for dataset, row in (ours.split("/"), theirs.split("/")):
        cells = _finished(shop, dataset).get(row) if (shop.frame(dataset) / "targets.npz").is_file() else None
        if not cells:
            return None
        frame, _ = load_frame(shop.frame(dataset))
        scores = [load_scores(shop.out / cell.folder / "run", frame) for cell in cells]
        sides.append((frame, scores, tuple(cell.seed for cell in cells)))
    (frame, scores, seeds), (their_frame, their_scores, their_seeds) = sides
    if not frame.same(their_frame):
        raise UserError(f"{ours} and {theirs} hold out other events", field="across", expected="datasets of one split")
    key = "across", ours, seeds, theirs, their_seeds
    if key not in shop.rows:
        found = _against(scores, their_scores, frame, Bootstrap(resamples=shop.grid.resamples))
        shop.rows[key] = {"row": ours, "rival": theirs} | found
    return {**shop.rows[key], "lead": list(shop.grid.datasets[ours.split("/")[0]].metrics)}


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


def _seeds(cells: Mapping[str, Sequence[Cell]], row: str | None) -> tuple[int, ...]:
    return tuple(cell.seed for cell in cells.get(row, ()))


def _row(
    ours: Sequence[Scores], theirs: Sequence[Scores] | None, rival: str | None, frame: Frame, bootstrap: Bootstrap
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "metrics": statistics.metrics(ours, frame, bootstrap),
        "groups": {group: statistics.metrics(ours, frame, bootstrap, group) for group in GROUPS},
    }
    if theirs is not None:
        found["against"] = {"row": rival} | _against(ours, theirs, frame, bootstrap)
    return found


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
