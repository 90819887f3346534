"""A grid's finished cells as one record: metrics with intervals, paired differences, cold and warm, cost."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hisam_jax.cells.processes import failure_of
from hisam_jax.comparison import statistics
from hisam_jax.comparison.execution import Workshop
from hisam_jax.comparison.grid import Cell
from hisam_jax.comparison.plots import forest, leading
from hisam_jax.comparison.predictions import Frame, Scores, load_frame, load_scores
from hisam_jax.comparison.tables import markdown
from hisam_jax.data.dataset import read_manifest
from hisam_jax.evaluation import ranking
from hisam_jax.evaluation.cold_start import GROUPS
from hisam_jax.evaluation.intervals import Bootstrap
from hisam_jax.files import atomic_write
from hisam_jax.remote import local
from hisam_jax.training.checkpoints import describe, saved_steps


def collect(shop: Workshop) -> dict[str, Any]:
    """Everything that is known by now; a row is there with its first finished seed."""
    datasets = {}
    for name in shop.grid.datasets:
        if (shop.out / "frames" / name / "targets.npz").is_file():
            datasets[name] = _of_dataset(shop, name)
    return {"title": shop.grid.title, "reference": shop.grid.reference, "datasets": datasets}


def write(shop: Workshop, result: Mapping[str, Any], plots: bool = True) -> None:
    """Writes `comparison.json`, `comparison.md` and a plot a dataset."""
    atomic_write(shop.out / "comparison.json", json.dumps(result, indent=1) + "\n")
    atomic_write(shop.out / "comparison.md", markdown(result))
    drawn = {name: table for name, table in result["datasets"].items() if leading(table)}
    for name, table in drawn.items() if plots else ():
        (shop.out / "plots").mkdir(exist_ok=True)
        atomic_write(shop.out / "plots" / f"{name}.svg", forest(table))


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
            rows[row] |= _run(shop, cells[row]) | {"group": grid.rows[row].group, "note": grid.rows[row].note}
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


def _run(shop: Workshop, cells: Sequence[Cell]) -> dict[str, Any]:
    """What the row's runs took, means over its seeds."""
    folders = [shop.out / cell.folder / "run" for cell in cells]
    records, plans = (
        [json.loads((folder / name).read_text()) for folder in folders] for name in ("run.json", "config.json")
    )
    memories = [_memory(folder) for folder in folders]
    return {
        "seeds": [cell.seed for cell in cells],
        "parameters": records[0]["parameters"],
        "train_flops_per_item": records[0].get("train_flops_per_item"),
        "items_per_second": _mean(records, "items_per_second"),
        "peak_memory_bytes": _mean(records, "peak_memory_bytes"),
        "minutes": (_mean(records, "seconds") or 0.0) / 60,
        "steps": [record["steps"] for record in records],
        "cut_from": [
            cut_from(record["steps"], plan["training"], memory)
            for record, plan, memory in zip(records, plans, memories, strict=True)
        ],
        "best_step": [_best_step(folder, memory) for folder, memory in zip(folders, memories, strict=True)],
        "tokenizer": records[0]["tokenizer"],
        "device": sorted({record["device"] for record in records}),
        "versions": records[0]["versions"],
    }


def _mean(records: Sequence[Mapping[str, Any]], name: str) -> float | None:
    known = [record[name] for record in records if record[name]]
    return float(np.mean(known)) if known else None


def _memory(folder: Path) -> Mapping[str, Any]:
    """What a run's last checkpoint keeps of its training."""
    steps = saved_steps(folder / "checkpoints")
    return describe(folder / "checkpoints", steps[-1]).memory if steps else {}


def cut_from(steps: int, training: Mapping[str, Any], memory: Mapping[str, Any]) -> int | None:
    """The steps that a run was to take, where `training.max_minutes` ended it before; None where nothing or else did.

    Args:
        steps: that it took.
        training: that section of its config.
        memory: of its last checkpoint, which holds what else may end training early.
    """
    limited = training.get("max_minutes") is not None and memory.get("stopped") is None
    return training["steps"] if limited and steps < training["steps"] else None


def _best_step(folder: Path, memory: Mapping[str, Any]) -> int | None:
    """The step whose parameters were evaluated."""
    steps = saved_steps(folder / "checkpoints")
    best = memory.get("best_step")
    return best if best in steps else (steps[-1] if steps else None)


def _failed(shop: Workshop, dataset: str) -> dict[str, str]:
    found = {}
    for cell in shop.grid.cells():
        said = failure_of(shop.out / cell.folder)
        if cell.dataset == dataset and said is not None and not shop.done(cell):
            found[f"{cell.row}, seed {cell.seed}"] = said
    return found
