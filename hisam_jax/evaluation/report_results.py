"""The report's head and results: headline figures, tables beside the baselines, cold and warm."""

from __future__ import annotations

from typing import Any

from hisam_jax.data.dataset import Dataset

LISTS = ("retrieval", "generation", "blend")
CLICKS = {"ranking": "Ranking", "request": "Ranking, one request"}
HEADS = CLICKS | {name: name.capitalize() for name in LISTS}
COLUMNS = {
    "ranking": {"gauc": "GAUC", "auc": "AUC", "logloss": "Log loss"},
    "retrieval": {"recall@5": "Recall@5", "recall@10": "Recall@10", "ndcg@5": "NDCG@5", "ndcg@10": "NDCG@10"},
}
LOWER_IS_BETTER = {"logloss"}
UNMASKED = "/unmasked"
BASELINES = {
    "item_knn": "ItemKNN",
    "transitions": "Transitions",
    "popularity": "Popularity",
    "item_mean": "Item mean",
    "item_mean_user_bias": "Item mean + user bias",
    "item_mean_recent_user_bias": "Item mean + recent user bias",
}
GROUPS = {
    "cold_user": "Cold users (< 10 events before)",
    "warm_user": "Warm users",
    "zero_item": "Items never trained on",
    "cold_item": "Cold items (1 to 9 training events)",
    "warm_item": "Warm items",
}
Row = tuple[str, bool, dict[str, Any]]  # name, ours, metrics


def head(
    config: dict[str, Any], run: dict[str, Any], evaluation: dict[str, Any] | None, dataset: Dataset
) -> dict[str, Any]:
    """Title, model, chips and headline figures of the page's head."""
    model = config.get("model") or {}
    name = "Flat baseline" if model.get("anchors") is False else "HMAT"
    sizes = [f"{model[field]} {field}" for field in ("layers", "heads") if field in model]
    sizes += [f"width {model['width']}"] if "width" in model else []
    split = dataset.manifest["split"]
    chips = {
        "seed": run.get("seed", config.get("seed")),
        "protocol": str(split["protocol"]).replace("_", " "),
        "split": split["checksum"],
        "tokenizer": run.get("tokenizer"),
        "device": run.get("device"),
        "trained on": "validation events too" if (config.get("data") or {}).get("validation_too") else None,
    }
    return {
        "title": dataset.path.name,
        "source": dataset.manifest.get("source", ""),
        "model": name,
        "sizes": ", ".join(sizes),
        "chips": {label: str(value) for label, value in chips.items() if value not in (None, "")},
        "figures": _figures(evaluation or {}),
    }


def section(evaluation: dict[str, Any] | None) -> dict[str, Any] | None:
    """Tables of evaluation.json; None where nothing was evaluated yet."""
    if evaluation is None:
        return None
    retrieval = _rows(evaluation, *LISTS)
    cold = [*(_cold(evaluation, name) for name in CLICKS), _cold(evaluation, *LISTS)]
    unmasked = {name + UNMASKED: label for name, label in COLUMNS["retrieval"].items()}
    return {
        "split": evaluation.get("split", "test"),
        "users": evaluation.get("users"),
        "seed": evaluation.get("seed"),
        **{name: _board(_rows(evaluation, name), COLUMNS["ranking"]) for name in CLICKS},
        "retrieval": _board(retrieval, COLUMNS["retrieval"]),
        "unmasked": _board(retrieval, unmasked),
        "cold": list(filter(None, cold)),
    }


def _rows(evaluation: dict[str, Any], *heads: str) -> list[Row]:
    """The model's heads, then every baseline that does the first head's task."""
    label = {**dict.fromkeys(CLICKS, "This model"), **{name: f"This model, {name}" for name in LISTS}}
    rows = [(label[name], True, evaluation[name]) for name in heads if name in evaluation]
    for name, table in (evaluation.get("baselines") or {}).items():
        if heads[0] in table:
            rows.append((BASELINES.get(name, name), False, table[heads[0]]))
    return rows


def _board(rows: list[Row], columns: dict[str, str]) -> dict[str, Any] | None:
    """A table with the best of each column marked and a chart of its leading column; None for no figures."""
    columns = {key: label for key, label in columns.items() if any(key in metrics for _, _, metrics in rows)}
    if not columns:
        return None
    best = {
        key: (min if key in LOWER_IS_BETTER else max)(m[key]["value"] for _, _, m in rows if key in m)
        for key in columns
    }
    table = [
        {"name": name, "ours": ours, "cells": [_cell(metrics.get(key), best[key]) for key in columns]}
        for name, ours, metrics in rows
    ]
    lead = next((key for key in columns if key.startswith(("recall@10", "gauc"))), next(iter(columns)))
    return {"columns": list(columns.values()), "rows": table, "chart": _chart(rows, lead), "lead": columns[lead]}


def _cell(interval: dict[str, Any] | None, best: float) -> dict[str, Any] | None:
    if interval is None:
        return None
    low, high = interval["ci95"]
    return {"value": interval["value"], "low": low, "high": high, "best": interval["value"] == best}


def _chart(rows: list[Row], key: str) -> dict[str, Any]:
    """Dots and whiskers in percent of a common scale."""
    shown = [(name, ours, metrics[key]) for name, ours, metrics in rows if key in metrics]
    ends = [end for _, _, interval in shown for end in interval["ci95"]]
    low, high = (0.0 if key.startswith(("recall", "ndcg")) else min(ends)), max(ends)
    margin = (high - low) * 0.06 or 1e-3
    low, high = (low if low == 0.0 else low - margin), high + margin

    def place(value: float) -> float:
        return 100 * (value - low) / (high - low)

    marks = [
        {
            "name": name,
            "ours": ours,
            "value": interval["value"],
            "dot": place(interval["value"]),
            "left": place(interval["ci95"][0]),
            "width": place(interval["ci95"][1]) - place(interval["ci95"][0]),
        }
        for name, ours, interval in shown
    ]
    return {"marks": sorted(marks, key=lambda mark: -mark["value"]), "low": low, "high": high}


def _cold(evaluation: dict[str, Any], *heads: str) -> dict[str, Any] | None:
    """Groups down, methods across, one metric."""
    sources = [
        (f"This model{', ' + name if len(heads) > 1 else ''}", True, (evaluation.get("cold") or {}).get(name))
        for name in heads
    ]
    for name, table in (evaluation.get("baselines") or {}).items():
        sources.append((BASELINES.get(name, name), False, (table.get("cold") or {}).get(heads[0])))
    sources = [source for source in sources if source[2]]
    metric, label = ("gauc", "GAUC") if heads[0] in CLICKS else ("recall@10", "Recall@10")
    rows = []
    for group, title in GROUPS.items():
        tables = [source[2].get(group) or {} for source in sources]
        size = max((table.get("events", table.get("targets", 0)) for table in tables), default=0)
        values = [table[metric]["value"] for table in tables if metric in table]
        cells = [_cell(table.get(metric), max(values, default=0.0)) for table in tables]
        rows.append({"name": title, "size": size, "cells": cells})
    if not any(cell for row in rows for cell in row["cells"]):
        return None
    methods = [(name, ours) for name, ours, _ in sources]
    return {"head": HEADS[heads[0]], "metric": label, "methods": methods, "rows": rows}


def _figures(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """The leading metric of each head with its lead over the best baseline."""
    figures = []
    for name, title in HEADS.items():
        key, label = ("gauc", "GAUC") if name in CLICKS else ("recall@10", "Recall@10")
        table = evaluation.get(name) or {}
        if key not in table:
            continue
        task = name if name in CLICKS else "retrieval"
        rivals = [
            (other[task][key]["value"], BASELINES.get(rival, rival))
            for rival, other in (evaluation.get("baselines") or {}).items()
            if key in (other.get(task) or {})
        ]
        figure = {"head": title, "label": label, **_cell(table[key], table[key]["value"]), "rival": None}
        if rivals:
            value, rival = max(rivals)
            figure |= {"rival": rival, "lead": table[key]["value"] - value}
        figures.append(figure)
    return figures
