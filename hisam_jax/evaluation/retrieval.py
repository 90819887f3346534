"""Full-ranking retrieval metrics for one relevant item a list: pessimistic ranks, Recall and NDCG.

Seen items (every item of the history, liked or not) leave the masked list. A target that was itself seen before, a
repeat purchase, stays in it: the question asked is where that item stands, and a list without it has no answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

BLOCK_SCORES = 1 << 24  # scores held at once: 64 MiB of float32


@dataclasses.dataclass(frozen=True)
class Ranks:
    """1-based ranks of the targets [T] in the whole catalogue, with seen items left out (masked) and left in."""

    masked_T: np.ndarray
    unmasked_T: np.ndarray


@dataclasses.dataclass(frozen=True)
class SeenItems:
    """Distinct items of each target's history as CSR: those of target t are `items[indptr[t]:indptr[t + 1]]`."""

    indptr: np.ndarray
    items: np.ndarray

    def rows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(row number within `rows`, item) of every seen item of the targets `rows` [R]."""
        counts = self.indptr[rows + 1] - self.indptr[rows]
        ends = np.cumsum(counts)
        offsets = np.arange(counts.sum()) - np.repeat(ends - counts, counts)
        return np.repeat(np.arange(len(rows)), counts), self.items[np.repeat(self.indptr[rows], counts) + offsets]


def pessimistic_ranks(scores_BI: np.ndarray, target_B: np.ndarray, seen: tuple[np.ndarray, np.ndarray]) -> Ranks:
    """Rank = 1 + number of other items that score at least as much: ties (items sharing an ID) count against it.

    Args:
        scores_BI: scores of the whole catalogue; -inf for what a model cannot reach, never nan.
        target_B: the relevant item of each row.
        seen: (row, item) of the seen items, distinct, as from `SeenItems.rows`.
    """
    if np.isnan(scores_BI).any():
        raise ValueError("a score is nan")
    own_B1 = np.take_along_axis(scores_BI, target_B[:, None], axis=1)
    unmasked = np.count_nonzero(scores_BI >= own_B1, axis=1)
    row, item = seen
    ahead = (scores_BI[row, item] >= own_B1[row, 0]) & (item != target_B[row])
    return Ranks(unmasked - np.bincount(row, ahead, minlength=len(target_B)).astype(np.int64), unmasked)


def rank_targets(score: Callable[[np.ndarray], np.ndarray], target_T: np.ndarray, seen: SeenItems, items: int) -> Ranks:
    """Ranks of all targets, a block at a time so that memory stays bounded.

    Args:
        score: target numbers [B] -> scores [B, items].
        target_T: the relevant items.
        seen: the histories' items.
        items: catalogue size.
    """
    block = max(1, BLOCK_SCORES // items)
    masked, unmasked = np.zeros(len(target_T), np.int64), np.zeros(len(target_T), np.int64)
    for start in range(0, len(target_T), block):
        rows = np.arange(start, min(start + block, len(target_T)))
        ranks = pessimistic_ranks(score(rows), target_T[rows], seen.rows(rows))
        masked[rows], unmasked[rows] = ranks.masked_T, ranks.unmasked_T
    return Ranks(masked, unmasked)


def recall_at(ranks_T: np.ndarray, k: int) -> np.ndarray:
    """1 where the one relevant item is among the first k [T]."""
    return (np.asarray(ranks_T) <= k).astype(np.float64)


def ndcg_at(ranks_T: np.ndarray, k: int) -> np.ndarray:
    """1 / log2(1 + rank) where the one relevant item is among the first k, else 0 [T]; the ideal gain is 1."""
    ranks = np.asarray(ranks_T, np.float64)
    return np.where(ranks <= k, 1 / np.log2(1 + ranks), 0.0)


def retrieval_values(ranks_T: np.ndarray, cutoffs: tuple[int, ...], suffix: str = "") -> dict[str, np.ndarray]:
    """Recall and NDCG of every target at every cutoff: `{"recall@5": [T], ...}`, `suffix` after each name."""
    values = {f"recall@{k}{suffix}": recall_at(ranks_T, k) for k in cutoffs}
    return values | {f"ndcg@{k}{suffix}": ndcg_at(ranks_T, k) for k in cutoffs}
