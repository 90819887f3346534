"""The metric tables of evaluation.json: names, intervals and what is left out where a metric is undefined."""

from __future__ import annotations

import numpy as np

from hisam_jax.evaluation import intervals, retrieval
from hisam_jax.evaluation.intervals import Bootstrap, Interval

CUTOFFS = (5, 10)


def ranking_summary(
    labels: np.ndarray, scores: np.ndarray, users: np.ndarray, bootstrap: Bootstrap, logits: np.ndarray | None = None
) -> dict[str, Interval | int]:
    """`{auc, gauc, logloss, events, users}` over events [E]; an undefined metric is absent.

    Args:
        labels: 1 for positive.
        scores: any scale, higher is better.
        users: user index of each event.
        bootstrap: resampling of the users.
        logits: log-odds for `logloss`; without them it is absent.
    """
    table = {
        "auc": intervals.auc(labels, scores, users, bootstrap),
        "gauc": intervals.gauc(labels, scores, users, bootstrap),
        "logloss": None if logits is None else intervals.log_loss(labels, logits, users, bootstrap),
    }
    return _defined(table) | {"events": len(labels), "users": len(np.unique(users))}


def retrieval_values(ranks: retrieval.Ranks) -> dict[str, np.ndarray]:
    """Per-target Recall and NDCG: `recall@k`, `ndcg@k` with seen items masked, and the same with `/unmasked`."""
    return retrieval.retrieval_values(ranks.masked_T, CUTOFFS) | retrieval.retrieval_values(
        ranks.unmasked_T, CUTOFFS, "/unmasked"
    )


def retrieval_summary(ranks: retrieval.Ranks, users_T: np.ndarray, bootstrap: Bootstrap) -> dict[str, Interval | int]:
    """`{recall@5, ..., ndcg@10, the same with /unmasked, targets}`; only `targets` where there are none."""
    table = _defined(intervals.means(retrieval_values(ranks), users_T, bootstrap))
    return table | {"targets": len(users_T)}


def _defined(table: dict[str, Interval | None]) -> dict[str, Interval]:
    return {name: interval for name, interval in table.items() if interval is not None}
