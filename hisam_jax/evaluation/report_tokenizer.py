"""The report's tokenizer section: use of the codes, what they tell apart, and items that share one."""

from __future__ import annotations

from typing import Any

import numpy as np

from hisam_jax.data.dataset import Dataset
from hisam_jax.evaluation import plots
from hisam_jax.evaluation.report_pictures import Pictures
from hisam_jax.tokenizer.semantic_ids import SemanticIDTable

MODALITY_SERIES = {"shared": 0, "text": 1, "image": 2, "behaviour": 3}
BRANCHES = {"full": "all codes", "shared_only": "shared only", "specific_only": "specific only"}
GALLERY_PLACES = (0.02, 0.15, 0.4)  # among a level's codes, by how often users met them
GALLERY_ITEMS, SMALLEST_GROUP = 10, 4


def section(
    table: SemanticIDTable, diagnostics: dict[str, Any] | None, dataset: Dataset, pictures: Pictures
) -> dict[str, Any]:
    """What the template's tokenizer section takes; without diagnostics only what the table itself tells."""
    judged = diagnostics or {}
    return {
        "name": str(table.tokenizer.get("name", "")),
        "policy": table.policy,
        "checksum": table.checksum,
        "levels": _levels(table, judged),
        "collision": judged.get("collision"),
        "pace": judged.get("items_per_second"),
        "seconds": judged.get("seconds"),
        "reconstruction": _reconstruction(judged.get("reconstruction") or {}),
        "ami": _matrix(judged.get("ami") or {}, [level.name for level in table.levels]),
        "attributes": _attributes(judged.get("ami_attributes") or {}),
        "notes": [str(note) for note in judged.get("notes") or []],
        "galleries": _galleries(table, dataset, pictures),
        "judged": diagnostics is not None,
    }


def _levels(table: SemanticIDTable, judged: dict[str, Any]) -> list[dict[str, Any]]:
    about = {row["name"]: row for row in judged.get("levels", [])}
    rows = []
    for index, level in enumerate(table.levels):
        codes = table.codes_IL[:, index]
        counts = np.bincount(codes[codes < level.size], minlength=level.size)
        row = about.get(level.name, {})
        series = MODALITY_SERIES.get(level.modality, 4)
        rows.append(
            {
                "name": level.name,
                "series": series + 1,
                "size": level.size,
                "utilisation": row.get("utilisation", float((counts > 0).mean())),
                "perplexity": row.get("perplexity"),
                "dead": row.get("dead", int((counts == 0).sum())),
                "reserved": float((codes == level.size).mean()) if len(codes) else 0.0,
                "svg": plots.usage(f"usage{index}", counts, series),
            }
        )
    return rows


def _reconstruction(errors: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Error of each branch as a share of the mean item's error, 1, or of the largest error beyond it."""
    top = max([1.0, *(value for row in errors.values() for value in row.values())])
    return [
        {
            "modality": modality,
            "series": MODALITY_SERIES.get(modality, 4) + 1,
            "bars": [
                {"label": label, "value": row[branch], "share": row[branch] / top, "mean": 1 / top}
                for branch, label in BRANCHES.items()
                if branch in row
            ],
        }
        for modality, row in errors.items()
    ]


def _matrix(ami: dict[str, dict[str, float]], names: list[str]) -> dict[str, Any] | None:
    """A symmetric matrix of `{value, permuted}` cells, None on the diagonal and where nothing was measured."""
    if not ami:
        return None
    pairs = {tuple(key.split("|")): cell for key, cell in ami.items()}
    rows = [{"name": a, "cells": [pairs.get((a, b)) or pairs.get((b, a)) for b in names]} for a in names]
    return {"names": names, "rows": rows}


def _attributes(ami: dict[str, dict[str, float]]) -> dict[str, Any] | None:
    """Levels down, attributes across."""
    if not ami:
        return None
    pairs = {tuple(key.split("|", 1)): cell for key, cell in ami.items()}
    levels, labels = (list(dict.fromkeys(key[side] for key in pairs)) for side in (0, 1))
    rows = [{"name": level, "cells": [pairs.get((level, label)) for label in labels]} for level in levels]
    return {"names": labels, "rows": rows}


def _galleries(table: SemanticIDTable, dataset: Dataset, pictures: Pictures) -> list[dict[str, Any]]:
    """Items sharing one code, for the first level of each modality."""
    galleries, shown = [], set()
    for index, level in enumerate(table.levels):
        if level.modality in shown:
            continue
        shown.add(level.modality)
        groups = [
            {"code": int(code), "size": size, "tiles": pictures.tiles(_examples(table, index, code, pictures))}
            for code, size in _telling_codes(table, index, dataset)
        ]
        if groups:
            series = MODALITY_SERIES.get(level.modality, 4) + 1
            galleries.append({"level": level.name, "modality": level.modality, "series": series, "groups": groups})
    return galleries


def _telling_codes(table: SemanticIDTable, index: int, dataset: Dataset) -> list[tuple[int, int]]:
    """(code, items) of a few codes of a level, from often to seldom used, each with enough items to see a pattern."""
    codes, size = table.codes_IL[:, index], table.levels[index].size
    counts = np.bincount(codes[codes < size], minlength=size)
    weight = np.bincount(codes, dataset.items["train_count"].to_numpy() + 1e-6, minlength=size)[:size]
    able = np.flatnonzero(counts >= SMALLEST_GROUP)
    able = able[np.argsort(-weight[able], kind="stable")]
    places = np.unique((np.array(GALLERY_PLACES) * len(able)).astype(int))
    return [(int(able[place]), int(counts[able[place]])) for place in places if place < len(able)]


def _examples(table: SemanticIDTable, index: int, code: int, pictures: Pictures) -> np.ndarray:
    """Popular items of a code; of a specific code, one per shared code first, to show what cuts across them."""
    items = pictures.by_popularity(np.flatnonzero(table.codes_IL[:, index] == code))
    if index > 0:
        _, first = np.unique(table.codes_IL[items, 0], return_index=True)
        repeats = np.ones(len(items), bool)
        repeats[first] = False
        items = items[np.argsort(repeats, kind="stable")]
    return items[:GALLERY_ITEMS]
