"""The report's data section: how much there is, how it is spread, what was refused."""

from __future__ import annotations

from typing import Any

import numpy as np

from hisam_jax.data.dataset import Dataset
from hisam_jax.data.readers.base import REASONS
from hisam_jax.evaluation import plots


def section(dataset: Dataset) -> dict[str, Any]:
    """What the template's data section takes."""
    manifest = dataset.manifest
    events = dataset.users["events"].to_numpy()
    trained = dataset.items["train_count"].to_numpy()
    users, items = manifest["users"], manifest["items"]
    return {
        "tiles": [
            {"label": "users", "value": users},
            {"label": "items", "value": items},
            {"label": "interactions", "value": manifest["interactions"]},
            {"label": "events a user (median)", "value": manifest["history"]["median"]},
        ],
        "density": manifest["interactions"] / max(1, users * items),
        "longest": manifest["history"]["max"],
        "histogram": plots.histogram("history", events[events > 0], "events of a user", "users"),
        "popularity": plots.rank_size("popularity", trained, "training events of an item", "rank of the item"),
        "cold": _cold(manifest, users, items, trained),
        "modalities": [{"name": name, **about} for name, about in manifest["modalities"].items()],
        "split": {name: str(manifest["split"].get(name, "")) for name in ("protocol", "checksum", "seed")},
        "tie_break": manifest.get("tie_break"),
        "rejected": _rejected(manifest["rejected"]),
    }


def _cold(manifest: dict[str, Any], users: int, items: int, trained: np.ndarray) -> list[dict[str, Any]]:
    rows = [
        ("cold users", "fewer than 10 events", manifest["cold"]["users"], users),
        ("cold items", "fewer than 10 training events", manifest["cold"]["items"], items),
        ("items never trained on", "no training event at all", int((trained == 0).sum()), items),
    ]
    return [
        {"label": label, "what": what, "count": count, "share": count / max(1, whole)}
        for label, what, count, whole in rows
    ]


def _rejected(reasons: dict[str, int]) -> list[dict[str, Any]]:
    rows = [
        {
            "reason": reason.replace("_", " "),
            "expected": REASONS[reason][1] if reason in REASONS else "",
            "count": count,
        }
        for reason, count in sorted(reasons.items(), key=lambda pair: -pair[1])
    ]
    return [row for row in rows if row["count"]]
