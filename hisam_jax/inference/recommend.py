"""`hisam recommend`: the best unseen items for a user of the dataset or for a history of item ids."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from hisam_jax.errors import UserError
from hisam_jax.inference.histories import History
from hisam_jax.inference.run import Run, load_run
from hisam_jax.inference.top_items import NO_SCORE


def recommend(
    workdir: str | os.PathLike, user: str | None = None, history: Sequence[str] | None = None, k: int = 10
) -> list[dict[str, Any]]:
    """The `k` best items that are not in the history, best first, by the retrieval head, else generation, else ranking.

    Args:
        workdir: a trained run.
        user: a user id of its dataset, or
        history: item ids, oldest first.
        k: how many.

    Returns:
        `[{"rank", "item_id", "title", "score"}]`; fewer than `k` where the catalogue or the beams end.

    Raises:
        UserError: an unknown user or item, both or neither of `user` and `history`.
    """
    if (user is None) == (history is None):
        raise UserError("both or neither given", field="user, history", expected="a user id or a history of item ids")
    if k < 1:
        raise UserError(f"value {k}", field="k", expected="1 or more")
    run = load_run(workdir)
    past, seen = _of_user(run, user) if user is not None else _of_items(run, history)
    items, scores = recommend_items(run, past, seen, k)
    table = run.assembly.dataset.items
    return [
        {
            "rank": rank,
            "item_id": table["item_id"][int(item)],
            "title": table["title"][int(item)],
            "score": float(score),
        }
        for rank, (item, score) in enumerate(zip(items, scores, strict=True), start=1)
    ]


def recommend_items(run: Run, history: History, seen: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """`(item indices, scores)`, best first, the items `seen` left out; ties go to the lower index.

    Args:
        run: a trained run.
        history: what the model reads, its window at most.
        seen: items of the whole past, which may be longer than the window.
        k: how many.
    """
    if "retrieval" in run.heads:
        scores = (run.blended or run.scorer).retrieval([history])[0]
    elif "generation" in run.heads:
        beams = max(run.assembly.configs.evaluation.beams, k)
        scores = run.scorer.generation([history], [seen], beams=beams)[1][0]
    else:
        scores = run.scorer.clicks_for(history, np.arange(run.scorer.catalog.items))
    scores = scores.astype(np.float64)
    scores[seen] = -np.inf
    order = np.argsort(-scores, kind="stable")[:k]
    order = order[scores[order] > NO_SCORE]
    return order, scores[order]


def _of_user(run: Run, user: str) -> tuple[History, np.ndarray]:
    ids = run.assembly.dataset.users["user_id"]
    row = ids.index_of(str(user))
    if row is None:
        raise UserError(f"no user {user!r}", path=run.assembly.dataset.path, field="user", expected=_near(user, ids))
    return run.reader.before(row), np.unique(run.reader.features(row)["item"])


def _of_items(run: Run, history: Sequence[str]) -> tuple[History, np.ndarray]:
    dataset = run.assembly.dataset
    item = dataset.item_index(history)
    unknown = [name for name, row in zip(history, item, strict=True) if row < 0]
    if unknown:
        expected = _near(unknown[0], dataset.items["item_id"].to_list())
        raise UserError(f"no item {unknown[0]!r}", path=dataset.path, field="history", expected=expected)
    past = History(item, np.zeros_like(item), np.zeros(len(item), np.float32))
    return past.latest(run.scorer.window), np.unique(item)


def _near(name: str, ids: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(name), list(ids), n=3, cutoff=0.0)
    return f"an id of the dataset, such as {', '.join(close)}" if close else "an id of the dataset"
