"""The report's training section: losses, validation metrics and pace over steps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from hisam_jax.evaluation import plots

VALIDATION = "validation/"
NAMES = {"auc": "AUC", "gauc": "GAUC", "logloss": "log loss", "recall@10": "Recall@10", "ndcg@10": "NDCG@10"}


def section(metrics: list[dict[str, Any]], run: dict[str, Any]) -> dict[str, Any] | None:
    """Charts of what metrics.jsonl holds and a few facts; None before the first line."""
    if not metrics:
        return None
    keys = list(dict.fromkeys(key for row in metrics for key in row))
    losses = ["loss"] + [key for key in keys if key.startswith("loss/")]
    names = {key: key.removeprefix("loss/") if key != "loss" else "total" for key in losses}
    if len(losses) == 2:
        names.pop("loss")  # one head: the total is its loss
    charts = [("Loss", "by head, lower is better", plots.lines, "loss", names)]
    for metric, members in _by_metric(keys).items():
        charts.append((f"Validation {metric}", "on a fixed draw of users", plots.lines, metric, members))
    charts.append(("Pace", "items through the model", plots.lines, "items a second", {"items_per_second": "items/s"}))
    drawn = [
        {"title": title, "note": note, "svg": draw(f"curve{index}", series, label)}
        for index, (title, note, draw, label, wanted) in enumerate(charts)
        if (series := {name: curve for key, name in wanted.items() if (curve := _curve(metrics, key))})
    ]
    return {"charts": drawn, "facts": _facts(metrics, run)}


def _by_metric(keys: Iterable[str]) -> dict[str, dict[str, str]]:
    """`validation/retrieval/recall@10` -> {"recall@10": {key: "retrieval"}}; AUC and GAUC share a chart."""
    groups: dict[str, dict[str, str]] = {}
    for key in keys:
        if key.startswith(VALIDATION):
            *head, metric = key.removeprefix(VALIDATION).split("/")
            group = "AUC and GAUC" if metric in ("auc", "gauc") else NAMES.get(metric, metric)
            groups.setdefault(group, {})[key] = " ".join(head) or NAMES.get(metric, metric)
    return groups


def _curve(metrics: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]] | None:
    points = [(row["step"], row[key]) for row in metrics if _number(row.get(key)) and _number(row.get("step"))]
    return tuple(map(list, zip(*points, strict=True))) if points else None


def _facts(metrics: list[dict[str, Any]], run: dict[str, Any]) -> list[tuple[str, str]]:
    last, facts = metrics[-1], []
    facts.append(("steps", f"{last['step']:,}".replace(",", "\u2009")))
    parameters = run.get("parameters")
    total = parameters.get("total") if isinstance(parameters, dict) else parameters
    if _number(total):
        facts.append(("parameters", f"{total / 1e6:.2f} M"))
    if _number(seconds := run.get("seconds", last.get("seconds"))):
        facts.append(("training time", _duration(seconds)))
    if _number(pace := run.get("items_per_second")):
        facts.append(("items a second", f"{pace:,.0f}".replace(",", "\u2009")))
    if _number(peak := run.get("peak_memory_bytes")):
        facts.append(("peak memory", f"{peak / 2**30:.2f} GiB"))
    return facts


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
