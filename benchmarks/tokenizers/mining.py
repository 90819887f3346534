"""QARM's pairs of items, mined from the training interactions of real data: how long does it take?"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.common import table
from benchmarks.tokenizers.datasets import SETS, prepared
from hisam_jax.data.dataset import Dataset
from hisam_jax.progress import progress
from hisam_jax.tokenizer import pairs
from hisam_jax.tokenizer.qarm_codes import QarmConfig

STEPS = {"read": "read", "id_space": "id space", "user2item": "User2Item", "item2item": "Item2Item by Swing"}
INTRODUCTION = """\
Training positives alone. The id space is the truncated SVD of a PPMI matrix; User2Item takes the most similar of a
user's latest 50 earlier positives for each event; Swing keeps 10 items for each. Seconds.
"""


def run(data: Path, datasets: Path, quick: bool = False) -> dict[str, Any]:
    """Seconds of each step and numbers of pairs, one row a data set."""
    names = list(SETS)[:1] if quick else list(SETS)
    return {
        "seeds": [0],
        "rows": [mine(name, prepared(name, data, datasets)) for name in progress(names, description="mining")],
    }


def mine(name: str, folder: Path) -> dict[str, Any]:
    """One prepared dataset's row."""
    dataset, cfg, seconds = Dataset.load(folder), QarmConfig(), {}

    def timed(step: str, function: Callable, *arguments: Any) -> Any:
        started = time.perf_counter()
        found = function(*arguments)
        seconds[step] = time.perf_counter() - started
        return found

    events, items = timed("read", pairs.training_positives, dataset), len(dataset.items)
    space_ID = timed("id_space", pairs.id_vectors, events, items)
    of_users = timed("user2item", pairs.user_pairs, events, space_ID, cfg.latest)
    of_items = timed("item2item", pairs.item_pairs, events, items, cfg.swing_neighbours, cfg.swing_users)
    counts = {"events": len(events.item_E), "items": items, "user2item": len(of_users), "item2item": len(of_items)}
    return {"name": name, "counts": counts, "seconds": seconds}


def markdown(result: Mapping[str, Any]) -> str:
    """One row a data set."""
    rows = []
    for row in result["rows"]:
        counts = [f"{row['counts'][name]:,}" for name in ("events", "items", "user2item", "item2item")]
        spent = [f"{row['seconds'][step]:.1f}" for step in STEPS]
        name = SETS[row["name"]].title if row["name"] in SETS else row["name"]
        rows.append([name, *counts, *spent, f"{sum(row['seconds'].values()):.1f}"])
    header = ("data", "positives", "items", "User2Item pairs", "Item2Item pairs", *STEPS.values(), "all")
    return INTRODUCTION + "\n" + table(header, rows)
