"""ItemKNN: every liked item of the history votes for the items most often liked together with it in training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
from scipy import sparse

from hisam_jax.data.records import TRAIN
from hisam_jax.evaluation import retrieval
from hisam_jax.evaluation.targets import Events, RetrievalTargets, history, subset_of_users

BLOCK_ELEMENTS = 1 << 24  # co-occurrence counts held at once: 64 MiB of float32
TUNING_USERS = 2000
GRID = {"recency": (1.0, 0.95, 0.9, 0.8, 0.6, 0.4), "shrinkage": (0.0, 5.0, 20.0, 100.0), "neighbours": (50, 200, 800)}


@dataclasses.dataclass(frozen=True)
class ItemKNNConfig:
    """Cosine of co-occurrence with shrinkage.

    Attributes:
        neighbours: how many items each history item votes for.
        shrinkage: added to the cosine's denominator, in co-occurrences; damps similarities seen a few times.
        recency: factor on a history item's vote for each later liked item; 1 weighs all alike.
    """

    neighbours: int = 200
    shrinkage: float = 5.0
    recency: float = 0.8


def item_similarities(events: Events, config: ItemKNNConfig) -> sparse.csr_array:
    """Similarities [I, I] from TRAIN positives: row j holds item j's nearest `neighbours`, itself excluded."""
    liked = (events.split_E == TRAIN) & events.positive_E
    shape = (len(events.start_U1) - 1, events.items)
    users_UI = sparse.csr_array((np.ones(liked.sum(), np.float32), (events.user_E[liked], events.item_E[liked])), shape)
    users_UI.data[:] = 1.0  # a repeat counts once
    by_item_IU = users_UI.T.tocsr()
    norm_I = np.sqrt(np.diff(by_item_IU.indptr)).astype(np.float32)
    block = max(1, BLOCK_ELEMENTS // events.items)
    rows = [
        _nearest((by_item_IU[start : start + block] @ users_UI).toarray(), start, norm_I, config)
        for start in range(0, events.items, block)
    ]
    return sparse.vstack(rows, format="csr")


def item_knn_scorer(
    events: Events, targets: RetrievalTargets, config: ItemKNNConfig, similarity_II: sparse.csr_array | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """A function target numbers [B] -> scores [B, I], from the liked items before each target; 0 without any."""
    similarity_II = item_similarities(events, config) if similarity_II is None else similarity_II
    history_TI = weighted_history(events, targets, config.recency)
    return lambda rows: (history_TI[rows] @ similarity_II).toarray()


def tune_item_knn(events: Events, validation: RetrievalTargets, seed: int) -> ItemKNNConfig:
    """The best configuration of GRID by masked NDCG@10 on validation targets, one field after the other.

    At most TUNING_USERS targets, drawn by `seed`, are looked at; ties keep the earlier value. No test event is read.
    """
    targets = subset_of_users(validation, TUNING_USERS, seed)
    config = ItemKNNConfig()
    if not len(targets.user_T):
        return config
    similarities: dict[tuple[float, int], sparse.csr_array] = {}

    def quality(candidate: ItemKNNConfig) -> float:
        key = (candidate.shrinkage, candidate.neighbours)
        if key not in similarities:
            similarities[key] = item_similarities(events, candidate)
        score = item_knn_scorer(events, targets, candidate, similarities[key])
        ranks = retrieval.rank_targets(score, targets.item_T, targets.seen, events.items)
        return float(retrieval.ndcg_at(ranks.masked_T, 10).mean())

    for field, values in GRID.items():
        config = max((dataclasses.replace(config, **{field: value}) for value in values), key=quality)
    return config


def _nearest(counts_BI: np.ndarray, start: int, norm_I: np.ndarray, config: ItemKNNConfig) -> sparse.csr_array:
    rows = np.arange(len(counts_BI))
    counts_BI[rows, start + rows] = 0.0
    denominator_BI = norm_I[start + rows, None] * norm_I + np.float32(config.shrinkage)
    similarity_BI = np.divide(counts_BI, denominator_BI, out=np.zeros_like(counts_BI), where=counts_BI > 0)
    if config.neighbours < similarity_BI.shape[1]:
        out = np.argpartition(similarity_BI, -config.neighbours, axis=1)[:, : -config.neighbours]
        np.put_along_axis(similarity_BI, out, 0.0, axis=1)
    return sparse.csr_array(similarity_BI)


def weighted_history(events: Events, targets: RetrievalTargets, recency: float) -> sparse.csr_array:
    """Votes [T, I] of the liked items before each target: `recency` to the number of liked items since."""
    row, event = history(events, events.start_U1[targets.user_T] + targets.position_T)
    row, event = row[events.positive_E[event]], event[events.positive_E[event]]
    count_T = np.bincount(row, minlength=len(targets.user_T))
    later = np.repeat(np.cumsum(count_T), count_T) - 1 - np.arange(len(row))
    weight = np.float32(recency) ** later.astype(np.float32)
    return sparse.csr_array((weight, (row, events.item_E[event])), (len(targets.user_T), events.items))
