"""What `hisam evaluate` wrote beside what the running service answers, on the same users, over HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks.common import table
from benchmarks.inference.service import demo_run, serving
from hisam_jax.evaluation.targets import load_events, retrieval_targets
from hisam_jax.inference.run import load_run
from hisam_jax.progress import progress

USERS, K = 600, 10


def run(work: Path, quick: bool = False) -> dict[str, Any]:
    """Recall and NDCG at 10 by both, and users whose place in the list differs."""
    folder = demo_run(work, quick)
    trained = load_run(folder)
    targets = retrieval_targets(load_events(trained.assembly.dataset), "test")
    rows = np.arange(min(len(targets.user_T), 20 if quick else USERS))
    predictions = np.load(folder / "predictions.npz")
    found = {}
    with serving(folder, "--deadline", "30") as address, httpx.Client(base_url=address, timeout=60) as client:
        for way in ("retrieval", "generation"):
            served = [
                _place(client, trained, targets, row, way) for row in progress(rows, description=way, unit="user")
            ]
            ranks = predictions[f"{way}_masked"][rows]
            evaluated = np.where(ranks <= K, ranks, 0)
            found[way] = {
                "users": len(rows),
                "evaluated": _metrics(evaluated),
                "served": _metrics(np.array(served)),
                "differ": int((evaluated != np.array(served)).sum()),
                "longer": int((targets.position_T[rows] > trained.scorer.window).sum()),
            }
    return {"ways": found, "window": trained.scorer.window}


def _place(client: httpx.Client, trained, targets, row: int, way: str) -> int:
    """The target's place in the answer, 0 where it is not there."""
    dataset = trained.assembly.dataset
    ids, sequence = dataset.items["item_id"], dataset.sequence(int(targets.user_T[row]))
    history = [
        {"item": ids[int(item)], "time": int(time), **({"rating": float(rating)} if np.isfinite(rating) else {})}
        for item, time, rating in zip(sequence.item, sequence.timestamp, sequence.rating, strict=True)
    ][: int(targets.position_T[row])]
    target = ids[int(targets.item_T[row])]
    hide = sorted({event["item"] for event in history} - {target})
    body = {"history": history, "k": K, "way": way, "hide": hide, "repeat": True}
    answer = client.post("/recommend", json=body)
    answer.raise_for_status()
    items = [one["item"] for one in answer.json()["items"]]
    return items.index(target) + 1 if target in items else 0


def _metrics(place_T: np.ndarray) -> dict[str, float]:
    hit = place_T > 0
    return {"recall@10": float(hit.mean()), "ndcg@10": float(np.mean(hit / np.log2(np.where(hit, place_T, 1) + 1)))}


def markdown(result: Mapping[str, Any]) -> str:
    """One row a way and metric."""
    rows = []
    for way, found in result["ways"].items():
        for metric in found["evaluated"]:
            both = [f"{found[side][metric]:.6f}" for side in ("evaluated", "served")]
            rows.append([way, metric, *both, f"{found['users']:,}", found["differ"], found["longer"]])
    said = (
        f"The demo model, each test user's history sent with the request. A model reads {result['window']} items: of "
        "users with more, the service reads two windows under an attention window, evaluation the latest one.\n\n"
    )
    heads = ("way", "metric", "evaluate", "service", "users", "places that differ", "users with more than the window")
    return said + table(heads, rows)
