"""The report's tokenizer section: use of the codes, what they tell apart, how they were learnt, pictures of them."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from hisam_jax.data.dataset import Dataset
from hisam_jax.evaluation import plots, report_neighbours
from hisam_jax.evaluation.report_neighbours import BRANCHES, tone
from hisam_jax.evaluation.report_pictures import Pictures
from hisam_jax.tokenizer.adjusted_information import LEAST_HEADROOM
from hisam_jax.tokenizer.semantic_ids import SemanticIDTable

Cells = dict[str, dict[str, float]]
LOSSES = {  # metric -> its name and its place in the palette
    "reconstruction": ("all codes", 5),
    "shared_reconstruction": ("shared only", 0),
    "alignment": ("alignment", 3),
    "commitment": ("commitment", 4),
}
CHARTS = (
    ("Rebuilding the features", "error, mean item 1", ("reconstruction", "shared_reconstruction")),
    ("Alignment and commitment", "loss", ("alignment", "commitment")),
    ("Perplexity of the codes", "codes, evenly used", ("perplexity/",)),
    ("Codes in use", "share of the level", ("used/",)),
    ("Spread of what is quantised", "squared distance from the mean", ("spread/",)),
    ("What specific codes repeat of shared ones", "nats", ("mi/", "mi_codes/")),
)


class _Line(NamedTuple):
    """One curve of a chart."""

    name: str
    points: tuple[list[float], list[float]]
    tone: int  # place in the palette
    dashed: bool


def section(
    table: SemanticIDTable, diagnostics: dict[str, Any] | None, dataset: Dataset, pictures: Pictures
) -> dict[str, Any]:
    """What the template's tokenizer section takes; without diagnostics only what the table itself tells."""
    judged = diagnostics or {}
    items = len(table.item_ids)
    return {
        "name": str(table.tokenizer.get("name", "")),
        "policy": table.policy,
        "checksum": table.checksum,
        "levels": _levels(table, judged),
        "collision": judged.get("collision"),
        "prefixes": _prefixes(judged.get("prefixes") or [], table, items),
        "pace": judged.get("items_per_second"),
        "seconds": judged.get("seconds"),
        "reconstruction": _reconstruction(judged.get("reconstruction") or {}),
        "ami": _matrix(judged.get("ami") or {}, [level.name for level in table.levels]),
        "groups": _groups(judged, table),
        "attributes": _attributes(judged.get("ami_attributes") or {}, table),
        "probes": _probes(judged.get("probes") or {}),
        "cross_modal": _cross_modal(judged.get("cross_modal") or {}),
        "curves": _curves(judged.get("history") or []),
        "notes": [str(note) for note in judged.get("notes") or []],
        "alarms": judged.get("alarms") or [],
        "nearest": report_neighbours.nearest(judged, pictures, items),
        "lookalikes": report_neighbours.lookalikes(judged, pictures, items),
        "galleries": report_neighbours.galleries(table, dataset, pictures),
        "judged": diagnostics is not None,
    }


def _levels(table: SemanticIDTable, judged: dict[str, Any]) -> list[dict[str, Any]]:
    about = {row["name"]: row for row in judged.get("levels", [])}
    rows = []
    for index, level in enumerate(table.levels):
        codes = table.codes_IL[:, index]
        counts = np.bincount(codes[codes < level.size], minlength=level.size)
        row = about.get(level.name, {})
        rows.append(
            {
                "name": level.name,
                "series": tone(level.modality),
                "size": level.size,
                "utilisation": row.get("utilisation", float((counts > 0).mean())),
                "perplexity": row.get("perplexity"),
                "dead": row.get("dead", int((counts == 0).sum())),
                "reserved": float((codes == level.size).mean()) if len(codes) else 0.0,
                "svg": plots.usage(f"usage{index}", counts, tone(level.modality) - 1),
            }
        )
    return rows


def _prefixes(counts: list[int], table: SemanticIDTable, items: int) -> list[dict[str, Any]]:
    """Nodes of the prefix tree at each depth, as a share of the items."""
    return [
        {"label": level.name, "count": count, "share": count / max(items, 1), "series": tone(level.modality)}
        for level, count in zip(table.levels, counts, strict=False)
    ]


def _reconstruction(errors: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Error of each branch as a share of the mean item's error, 1, or of the largest error beyond it."""
    top = max([1.0, *(value for row in errors.values() for value in row.values())])
    return [
        {
            "modality": modality,
            "series": tone(modality),
            "bars": [
                {"label": label, "value": row[branch], "share": row[branch] / top, "mean": 1 / top}
                for branch, label in BRANCHES.items()
                if branch in row
            ],
        }
        for modality, row in errors.items()
    ]


def _matrix(ami: Cells, names: list[str]) -> dict[str, Any] | None:
    """A symmetric matrix of `{value, permuted}` cells, None on the diagonal and where nothing was measured."""
    if not ami:
        return None
    pairs = {tuple(key.split("|")): cell for key, cell in ami.items()}
    rows = [{"name": a, "cells": [_sound(pairs.get((a, b)) or pairs.get((b, a))) for b in names]} for a in names]
    return {"names": names, "rows": rows}


def _groups(judged: dict[str, Any], table: SemanticIDTable) -> dict[str, Any] | None:
    """All codes of a group as one, where that is more than a level and not too fine to tell anything."""
    names = list(dict.fromkeys(level.modality for level in table.levels))
    joint = {name for name in names if sum(level.modality == name for level in table.levels) > 1}
    cells = judged.get("ami_joint") or {}
    told = [cell for key, cell in cells.items() if joint & set(key.split("|")) and _sound(cell)]
    return _matrix(cells, names) if told else None


def _attributes(ami: Cells, table: SemanticIDTable) -> dict[str, Any] | None:
    """Levels and groups down, attributes across; a group of one level would repeat it."""
    groups = [level.modality for level in table.levels]
    return _across({k: c for k, c in ami.items() if groups.count(k.partition("|")[0]) != 1})


def _probes(probes: Cells) -> dict[str, Any] | None:
    """Groups down, attributes across: accuracy, coloured by how far it is from chance to certain."""
    cells = {
        key: {
            "value": row["accuracy"],
            "permuted": row["permuted"],
            "heat": (row["accuracy"] - row["chance"]) / (1 - row["chance"]),
        }
        for key, row in probes.items()
    }
    return _across(cells)


def _across(cells: Cells) -> dict[str, Any] | None:
    if not cells:
        return None
    pairs = {tuple(key.split("|", 1)): cell for key, cell in cells.items()}
    names, labels = (list(dict.fromkeys(key[side] for key in pairs)) for side in (0, 1))
    rows = [{"name": name, "cells": [_sound(pairs.get((name, label))) for label in labels]} for name in names]
    return {"names": labels, "rows": rows}


def _sound(cell: dict[str, float] | None) -> dict[str, float] | None:
    """The cell; None where codes are too fine for it to mean anything."""
    return None if cell is None or cell.get("headroom", 1.0) < LEAST_HEADROOM else cell


def _cross_modal(ways: dict[str, Any]) -> list[dict[str, Any]]:
    """Recall at 1 and 10 of finding the other view, by latent and by shared codes."""
    keys = ("latent_recall@1", "latent_recall@10", "codes_recall@1", "codes_recall@10")
    return [
        {"way": way.replace("->", " \u2192 "), "who": who, "count": row["items"], "cells": [row[key] for key in keys]}
        for way, found in ways.items()
        for who, row in (("fitted on", found), ("held out", found.get("held_out")))
        if row and all(key in row for key in keys)
    ]


def _curves(history: list[dict[str, float]]) -> list[dict[str, str]]:
    """Charts of the tokenizer's own training; none of one that is not trained by steps."""
    if not any("loss" in row for row in history):
        return []
    keys = list(dict.fromkeys(key for row in history for key in row))
    drawn = []
    for index, (title, label, wanted) in enumerate(CHARTS):
        lines = [line for key in keys if key.startswith(wanted) and (line := _line(history, key))]
        if lines:
            series = {line.name: line.points for line in lines}
            tones, dashed = {line.name: line.tone for line in lines}, {line.name for line in lines if line.dashed}
            drawn.append({"title": title, "svg": plots.lines(f"tokenizer{index}", series, label, tones, dashed)})
    return drawn


def _line(history: list[dict[str, float]], key: str) -> _Line | None:
    """How the metric `key` is drawn: in the colour of its group, deeper levels and independent estimates dashed."""
    points = _curve(history, key)
    if points is None:
        return None
    if key in LOSSES:
        name, place = LOSSES[key]
        return _Line(name, points, place, False)
    kind, _, about = key.partition("/")
    group, _, depth = about.rpartition("|")[2].partition("/")
    if kind in ("mi", "mi_codes"):
        return _Line(f"{group}, {'bound' if kind == 'mi' else 'codes'}", points, tone(group) - 1, kind == "mi_codes")
    return _Line(about, points, tone(group) - 1, depth not in ("", "0"))


def _curve(history: list[dict[str, float]], key: str) -> tuple[list[float], list[float]] | None:
    points = [(row["step"], row[key]) for row in history if isinstance(row.get(key), (int, float)) and "step" in row]
    points = [point for point in points if math.isfinite(point[1])]
    return tuple(map(list, zip(*points, strict=True))) if points else None
