"""Retrieval, generation and the hybrid of both on the same test users."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import interval, table
from benchmarks.inference.service import demo_run
from hisam_jax.evaluation.intervals import Bootstrap, means
from hisam_jax.evaluation.targets import load_events, retrieval_targets
from hisam_jax.inference.engine import Wanted
from hisam_jax.inference.run import load_run
from hisam_jax.serving.limits import Limits
from hisam_jax.serving.release import load_release

K = 10
ASKED = {"retrieval": ("retrieval", ""), "generation": ("generation", "")}
ASKED |= {"hybrid, by retrieval": ("hybrid", "retrieval"), "hybrid, by ranking": ("hybrid", "ranking")}


def run(work: Path, quick: bool = False) -> dict[str, Any]:
    """Recall and NDCG at 10 with intervals over users, of all targets and of those on cold items."""
    trained = load_run(demo_run(work, quick))
    targets = retrieval_targets(load_events(trained.assembly.dataset), "test")
    release = load_release(trained.workdir, Limits())
    rows = np.arange(20 if quick else len(targets.user_T))
    states = release.engine.read(release.items, trained.reader.of_targets(targets, rows))
    wanted = [Wanted(np.setdiff1d(targets.seen.rows(np.array([row]))[1], targets.item_T[row])) for row in rows]
    cold_T = np.asarray(release.items.cold_I)[targets.item_T[rows]]
    found = []
    for name, (way, by) in ASKED.items():
        lists = release.engine.recommend(release.items, states, wanted, K, way, by or "retrieval")
        place_T = np.array([_place(item, targets.item_T[row]) for (item, _), row in zip(lists, rows, strict=True)])
        found.append({"way": name, "all": _metrics(place_T, targets.user_T[rows]), "cold": int(cold_T.sum())})
        if cold_T.any():
            found[-1]["on cold"] = _metrics(place_T[cold_T], targets.user_T[rows][cold_T])
    return {"seeds": [0], "users": len(rows), "rows": found}


def _place(item: np.ndarray, target: int) -> int:
    at = np.flatnonzero(item == target)
    return int(at[0]) + 1 if len(at) else 0


def _metrics(place_T: np.ndarray, user_T: np.ndarray) -> dict[str, Any]:
    hit_T = place_T > 0
    gain_T = hit_T / np.log2(np.where(hit_T, place_T, 1) + 1)
    return means({"recall@10": hit_T.astype(float), "ndcg@10": gain_T}, user_T, Bootstrap())


def markdown(result: Mapping[str, Any]) -> str:
    """One row a way."""
    rows = []
    for row in result["rows"]:
        cells = [interval(row["all"][metric]) for metric in ("recall@10", "ndcg@10")]
        rows.append([row["way"], *cells, interval(row["on cold"]["recall@10"]) if "on cold" in row else ""])
    said = (
        f"The demo model after a short training, {result['users']:,} test users, seen items left out; "
        f"{result['rows'][0]['cold']} of the targets are cold items.\n\n"
    )
    return said + table(("way", "recall@10", "ndcg@10", "recall@10 of cold items"), rows)
