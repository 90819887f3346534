"""Ranking metrics over scored events: AUC, GAUC and log loss, exact and tie-aware."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class UserAUC:
    """AUC within each user; only users with both classes are here.

    Attributes:
        user_V: the users' indices, ascending.
        auc_V: AUC of the user's events, ties counted half.
        impressions_V: the user's number of events, the weight in GAUC.
    """

    user_V: np.ndarray
    auc_V: np.ndarray
    impressions_V: np.ndarray


@dataclasses.dataclass(frozen=True)
class PairOrder:
    """Events sorted once so that AUC under any weights of their units costs O(E): see `weighted_auc`.

    Attributes:
        positive_P: unit of each positive, by ascending score.
        negative_N: unit of each negative, by ascending score.
        below_P: how many negatives score below each positive.
        up_to_P: how many negatives score below or equal to each positive.
    """

    positive_P: np.ndarray
    negative_N: np.ndarray
    below_P: np.ndarray
    up_to_P: np.ndarray


def pair_order(labels: np.ndarray, scores: np.ndarray, unit_E: np.ndarray | None = None) -> PairOrder:
    """Sorts events [E] by score; `unit_E` is what each one's weight belongs to, such as its user: itself by default."""
    labels, scores = _checked(labels, scores)
    unit_E = np.arange(len(labels)) if unit_E is None else unit_E
    order = np.argsort(scores, kind="stable")
    positive, negative = order[labels[order]], order[~labels[order]]
    below, up_to = (np.searchsorted(scores[negative], scores[positive], side) for side in ("left", "right"))
    return PairOrder(unit_E[positive], unit_E[negative], below, up_to)


def weighted_auc(order: PairOrder, weights_U: np.ndarray) -> float:
    """Share of (positive, negative) weight in the right order, ties half; nan where a class has no weight."""
    won = np.zeros(len(order.negative_N) + 1)
    np.cumsum(weights_U[order.negative_N], out=won[1:])
    weights_P = weights_U[order.positive_P]
    pairs = weights_P.sum(dtype=np.float64) * won[-1]
    if not pairs > 0:
        return float("nan")
    # einsum, as `@` starts the threads of BLAS, which cost more than they save at these sizes
    twice = (np.einsum("p,p->", weights_P, won[places_P]) for places_P in (order.below_P, order.up_to_P))
    return float(sum(twice) / (2 * pairs))


def auc(labels: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Area under the ROC curve of events [E]; nan (undefined, never a guess) where only one class is present."""
    weights = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    return weighted_auc(pair_order(labels, scores), weights)


def auc_by_user(labels: np.ndarray, scores: np.ndarray, users: np.ndarray) -> UserAUC:
    """AUC within each user [E] -> users with both classes [V], by the rank-sum formula with averaged ties."""
    labels, scores = _checked(labels, scores)
    user_U, user_E = np.unique(np.asarray(users), return_inverse=True)
    impressions, positives = np.bincount(user_E), np.bincount(user_E, labels)
    rank_sum = np.bincount(user_E, _ranks_within(user_E, scores) * labels)
    pairs = positives * (impressions - positives)
    valid = pairs > 0
    won = rank_sum[valid] - positives[valid] * (positives[valid] + 1) / 2
    return UserAUC(user_U[valid], won / pairs[valid], impressions[valid])


def gauc(labels: np.ndarray, scores: np.ndarray, users: np.ndarray) -> float:
    """Impression-weighted mean of AUC over users with both classes; nan where there is no such user."""
    by_user = auc_by_user(labels, scores, users)
    return float(np.average(by_user.auc_V, weights=by_user.impressions_V)) if len(by_user.auc_V) else float("nan")


def log_losses(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Binary cross-entropy of each event [E], in nats, stable for any finite logit."""
    labels, logits = _checked(labels, logits)
    return np.logaddexp(0.0, np.where(labels, -logits, logits))


def log_loss(labels: np.ndarray, logits: np.ndarray) -> float:
    """Mean binary cross-entropy in nats; nan for no events."""
    return float(np.mean(log_losses(labels, logits))) if len(labels) else float("nan")


def _checked(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.asarray(labels), np.asarray(scores, np.float64)
    if labels.shape != scores.shape or labels.ndim != 1:
        raise ValueError(f"labels {labels.shape} and scores {scores.shape}: expected two vectors of one length")
    if not np.isin(labels, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite")
    return labels.astype(bool), scores


def _ranks_within(group_E: np.ndarray, scores_E: np.ndarray) -> np.ndarray:
    """1-based ranks of the scores inside each group, ties averaged."""
    order = np.lexsort((scores_E, group_E))
    group, score, place = group_E[order], scores_E[order], np.arange(len(order))
    new_group = np.append(True, group[1:] != group[:-1])[: len(order)]
    new_tie = new_group | np.append(True, score[1:] != score[:-1])[: len(order)]
    start = np.maximum.accumulate(np.where(new_group, place, 0))
    tie = np.cumsum(new_tie) - 1
    first = np.flatnonzero(new_tie)
    last = np.append(first[1:], len(order)) - 1
    ranks = np.empty(len(order))
    ranks[order] = (first[tie] + last[tie]) / 2 - start + 1
    return ranks
