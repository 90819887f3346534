"""The report's pictures of codes: items that share one, the nearest by each group, and what each branch rebuilds."""

from __future__ import annotations

from typing import Any

import numpy as np

from hisam_jax.data.dataset import Dataset
from hisam_jax.evaluation.report_pictures import Pictures
from hisam_jax.tokenizer.semantic_ids import SemanticIDTable

TONES = {"shared": 1, "text": 2, "image": 3, "behaviour": 4}  # of the style sheet; others take the fifth
OTHER_TONE = 5
BRANCHES = {"full": "all codes", "shared_only": "shared only", "specific_only": "specific only"}
GALLERY_PLACES = (0.02, 0.15, 0.4)  # among a level's codes, by how often users met them
GALLERY_ITEMS, SMALLEST_GROUP = 10, 4
NEAREST, LOOKALIKES, LOOKALIKE_QUERIES = 8, 4, 3


def tone(group: str) -> int:
    """The number of a group's colour."""
    return TONES.get(group, OTHER_TONE)


def nearest(judged: dict[str, Any], pictures: Pictures, items: int) -> list[dict[str, Any]]:
    """`{query, bands[{name, note, tone, tiles}]}` of each item that diagnostics.json has the neighbours of."""
    shown = []
    for entry in judged.get("neighbours") or []:
        groups = entry["groups"]
        if not _inside([entry["item"], *(item for near in groups.values() for item in near["items"])], items):
            continue  # diagnostics of another table
        bands = [
            {
                "name": f"by {name} codes",
                "note": f"{near['same'] or 'none'} with the same",
                "tone": tone(name),
                "tiles": [
                    pictures.tile(item, rank="=" if place < near["same"] else None)
                    for place, item in enumerate(near["items"][:NEAREST])
                ],
            }
            for name, near in groups.items()
        ]
        shown.append({"query": pictures.tile(entry["item"]), "bands": bands})
    return shown


def lookalikes(judged: dict[str, Any], pictures: Pictures, items: int) -> list[dict[str, Any]]:
    """`{modality, tone, rows, usual}` of each modality: the real items most like what each branch rebuilds."""
    told = judged.get("lookalikes") or {}
    sections: dict[str, list[dict[str, Any]]] = {}
    for entry in told.get("items", []):
        modality, rows = entry["modality"], sections.setdefault(entry["modality"], [])
        branches = {branch: entry[branch] for branch in BRANCHES if branch in entry}
        found = [entry["item"], *(item for near in branches.values() for item in near)]
        if len(rows) == LOOKALIKE_QUERIES or not _inside(found, items):
            continue
        bands = [
            {
                "name": BRANCHES[branch],
                "note": _place(entry.get("place", {}).get(branch)),
                "tone": tone(modality if branch == "specific_only" else "shared") if branch != "full" else 6,
                "tiles": [pictures.tile(item, hit=item == entry["item"]) for item in near[:LOOKALIKES]],
            }
            for branch, near in branches.items()
        ]
        rows.append({"query": pictures.tile(entry["item"]), "bands": bands})
    return [
        {"modality": m, "tone": tone(m), "rows": rows, "usual": _usual(told, m)} for m, rows in sections.items() if rows
    ]


def galleries(table: SemanticIDTable, dataset: Dataset, pictures: Pictures) -> list[dict[str, Any]]:
    """Items sharing one code, for the first level of each modality."""
    shown, seen = [], set()
    for index, level in enumerate(table.levels):
        if level.modality in seen:
            continue
        seen.add(level.modality)
        groups = [
            {"code": int(code), "size": size, "tiles": pictures.tiles(_examples(table, index, code, pictures))}
            for code, size in _telling_codes(table, index, dataset)
        ]
        if groups:
            about = {"level": level.name, "modality": level.modality, "series": tone(level.modality)}
            shown.append(about | {"groups": groups})
    return shown


def _inside(rows: list[int], items: int) -> bool:
    return all(0 <= row < items for row in rows)


def _place(place: int | None) -> str:
    return "" if place is None else "itself first" if place == 1 else f"itself at place {place}"


def _usual(told: dict[str, Any], modality: str) -> str:
    """The middle of all items' own places, by branch."""
    ranks, rivals = told.get("rank", {}).get(modality), told.get("rivals", {}).get(modality)
    if not ranks or not rivals:
        return ""
    places = ", ".join(f"{ranks[b]['median']:.0f} by {name}" for b, name in BRANCHES.items() if b in ranks)
    return f"Among {rivals} items an item itself stands in the middle at place {places}."


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
