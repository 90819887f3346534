"""The report's samples: what a user had, what came next, what was recommended."""

from __future__ import annotations

from typing import Any

from hisam_jax.data.dataset import Dataset
from hisam_jax.errors import UserError
from hisam_jax.evaluation.report_pictures import Pictures

SHOWN_HISTORY = 12


def section(samples: list[dict[str, Any]] | None, dataset: Dataset, pictures: Pictures) -> list[dict[str, Any]] | None:
    """Tiles of each sample of samples.json; None where nothing was evaluated yet."""
    return None if samples is None else [_sample(sample, dataset, pictures) for sample in samples]


def _sample(sample: dict[str, Any], dataset: Dataset, pictures: Pictures) -> dict[str, Any]:
    found = sample["recommendations"]
    for item in (*sample["history"], sample["target"], *(row["item"] for row in found)):
        if not 0 <= item < dataset.num_items:
            raise UserError(
                f"item {item} in samples.json", expected=f"an item of the {dataset.num_items} in the dataset"
            )
    hit = next((rank for rank, row in enumerate(found, 1) if row["hit"]), None)
    return {
        "user": sample["user"],
        "history": pictures.tiles(sample["history"][-SHOWN_HISTORY:]),
        "target": pictures.tile(sample["target"]),
        "found": [
            pictures.tile(row["item"], rank=rank, score=f"{row['score']:.2f}", hit=bool(row["hit"]))
            for rank, row in enumerate(found, 1)
        ],
        "hit": hit,
    }
