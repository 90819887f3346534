"""Finished cells -> fitted laws, parabolas, frontiers and predictions, by model: what `scale.json` holds."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hisam_jax.errors import UserError
from hisam_jax.evaluation.intervals import Interval
from hisam_jax.scaling import frontier, isoflop
from hisam_jax.scaling.frontier import CostOfItem, Target
from hisam_jax.scaling.law import Fit, fit_law

POINTS = 13  # of a frontier's curve
Cells = Sequence[Mapping[str, Any]]


def analyse(cells: Cells, parameters: str, resamples: int, targets: Sequence[Target] = ()) -> dict[str, Any]:
    """Everything that the page says, from finished cells.

    Laws are fitted at the history that most cells have, without cells that saw their data more than once.

    Args:
        cells: records of `cell.json`, each with its `name`.
        parameters: `network` or `total`, what N counts.
        resamples: of every bootstrap.
        targets: to predict for; none: ten times the largest budget.
    """
    history = collections.Counter(cell["history"] for cell in cells).most_common(1)[0][0]
    oracles = [cell["oracle"] for cell in cells if cell["oracle"] is not None and cell["history"] == history]
    targets = targets or [frontier.target_of_flops(frontier.FAR * max(cell["spent"] for cell in cells))]
    models = {}
    for model in dict.fromkeys(cell["model"] for cell in cells):
        used = [cell for cell in cells if cell["model"] == model and cell["history"] == history and not repeats(cell)]
        models[model] = _of_model(used, parameters, resamples, targets)
    return {
        "parameters": parameters,
        "history": history,
        "endless": endless(cells),
        "oracle": float(np.mean(oracles)) if oracles else None,
        "uniform": cells[0]["uniform"],
        "models": models,
        "targets": [dataclasses.asdict(target) for target in targets],
        "histories": histories(cells),
    }


def endless(cells: Cells) -> bool:
    """Whether training had users without end, so that all users of the dataset are held out."""
    return all(cell["planned"]["epochs"] == 0 for cell in cells)


def repeats(cell: Mapping[str, Any]) -> bool:
    """Whether a cell trained on any event twice."""
    return cell["planned"]["epochs"] > 1


def _of_model(cells: Cells, parameters: str, resamples: int, targets: Sequence[Target]) -> dict[str, Any]:
    rows = [(cell["n"][parameters], cell["d"], cell["spent"], cell["loss"]["value"]) for cell in cells]
    n, d, spent, loss = np.array(rows, float).reshape(-1, 4).T
    found: dict[str, Any] = {"cells": len(cells)}
    of_budget = [k for k, cell in enumerate(cells) if cell["flops"]]
    budgets = [cells[k]["flops"] for k in of_budget]
    bowls, power = isoflop.fit_bowls(budgets, n[of_budget], loss[of_budget], resamples)
    found["isoflop"] = {"bowls": [bowl.record() for bowl in bowls], "power": power}
    try:
        fit = fit_law(n, d, loss, resamples)
    except UserError as error:
        return {**found, "law": None, "why": str(error)}
    cost = frontier.fit_cost(n, spent / d)
    return {**found, "law": fit.record(), "cost": dataclasses.asdict(cost), **_frontier(fit, cost, n, spent, targets)}


def _frontier(
    fit: Fit, cost: CostOfItem, n: np.ndarray, spent: np.ndarray, targets: Sequence[Target]
) -> dict[str, Any]:
    around = float(np.exp(np.log(n).mean()))
    low, high = float(spent.min()), float(spent.max())
    curve = np.geomspace(low, frontier.FAR * high, POINTS)
    return {
        "exponents": frontier.exponent(fit, cost, (low, high), around),
        "frontier": [{"flops": float(c), **frontier.predict(fit, cost, c, around)} for c in curve],
        "predictions": [
            {
                **dataclasses.asdict(target),
                **frontier.predict(fit, cost, target.flops, around),
                "times_largest": target.flops / high,
                "far": frontier.is_far(target.flops, spent),
                "warnings": frontier.warnings_of(target, spent, fit),
            }
            for target in targets
        ],
    }


def histories(cells: Cells) -> list[dict[str, Any]]:
    """Cells that differ in their history alone, shortest first: `model`, `size`, `flops`, `items`, `seed`, `cells`."""
    groups = collections.defaultdict(list)
    for cell in cells:
        groups[tuple(cell[name] for name in ("model", "size", "flops", "items", "seed"))].append(cell)
    found = []
    for key, group in groups.items():
        if len(group) > 1:
            rows = [
                {name: cell[name] for name in ("name", "history", "loss", "spent", "d")}
                | {"recall@10": recall_of(cell)}
                for cell in sorted(group, key=lambda cell: cell["history"])
            ]
            found.append(dict(zip(("model", "size", "flops", "items", "seed"), key, strict=True)) | {"cells": rows})
    return found


def recall_of(cell: Mapping[str, Any]) -> Interval:
    """Recall@10 with Wilson's 95 % interval over users, one target each."""
    p, users, z = cell["recall@10"], cell["recall_users"], 1.96
    middle = (p + z**2 / (2 * users)) / (1 + z**2 / users)
    half = z / (1 + z**2 / users) * (p * (1 - p) / users + z**2 / (4 * users**2)) ** 0.5
    return {"value": p, "ci95": [max(0.0, middle - half), min(1.0, middle + half)]}


def best_cells(cells: Cells, model: str, history: int) -> list[Mapping[str, Any]]:
    """The cell of least loss at each budget, the smallest budget first."""
    best: dict[float, Mapping[str, Any]] = {}
    for cell in cells:
        if cell["model"] == model and cell["history"] == history and cell["flops"] and not repeats(cell):
            held = best.get(cell["flops"])
            if held is None or cell["loss"]["value"] < held["loss"]["value"]:
                best[cell["flops"]] = cell
    return [best[flops] for flops in sorted(best)]
