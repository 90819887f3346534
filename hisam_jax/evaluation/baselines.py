"""The baselines beside every model: popularity, item mean (plain and with a user bias), ItemKNN and transitions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from scipy.signal import lfilter

from hisam_jax.data.records import TRAIN
from hisam_jax.evaluation import cold_start, retrieval, summary
from hisam_jax.evaluation.intervals import Bootstrap
from hisam_jax.evaluation.item_knn import ItemKNNConfig, item_knn_scorer, tune_item_knn, weighted_history
from hisam_jax.evaluation.targets import Events, RankingTargets, RetrievalTargets, first_of_user, retrieval_targets
from hisam_jax.inference.transitions import Transitions

BASELINES = ("popularity", "item_knn", "transitions", "item_mean", "item_mean_user_bias", "item_mean_recent_user_bias")
ITEM_SMOOTHING = 5.0  # pseudo-events at the global mean
USER_SMOOTHING = 5.0  # pseudo-events at no bias
RECENT = 0.95  # decay of the recent user bias [ours]: on MovieLens it lifts pooled AUC and costs GAUC
_EDGE = 0.01  # mean plus bias may leave [0, 1]; log loss needs a probability


@dataclasses.dataclass(frozen=True)
class BaselineScores:
    """What the baselines gave, for tables and for paired comparisons.

    Attributes:
        ranks: baseline -> ranks of the retrieval targets.
        scores: baseline -> scores of the ranking targets [E], each after all that came before it.
        requests: baseline -> the same as candidates of one request a user, as `scoring.request_logits` has it.
        item_knn: the configuration chosen on validation.
    """

    ranks: Mapping[str, retrieval.Ranks]
    scores: Mapping[str, np.ndarray]
    requests: Mapping[str, np.ndarray]
    item_knn: ItemKNNConfig


def popularity(events: Events) -> np.ndarray:
    """Number of TRAIN positives of each item, float32 [I]."""
    chosen = events.item_E[(events.split_E == TRAIN) & events.positive_E]
    return np.bincount(chosen, minlength=events.items).astype(np.float32)


def item_mean(events: Events, smoothing: float = ITEM_SMOOTHING) -> np.ndarray:
    """Share of positives among each item's rated TRAIN events, drawn to the global share, float64 [I]."""
    train = (events.split_E == TRAIN) & events.rated_E
    count = np.bincount(events.item_E[train], minlength=events.items)
    positive = np.bincount(events.item_E[train], events.positive_E[train], minlength=events.items)
    share = positive.sum() / max(1, count.sum())
    return (positive + smoothing * share) / (count + smoothing)


def causal_user_bias(
    events: Events, mean_I: np.ndarray, smoothing: float = USER_SMOOTHING, decay: float = 1.0
) -> np.ndarray:
    """Smoothed mean of (label - item mean) over the user's rated events strictly before each event, float64 [E].

    Args:
        events: all events.
        mean_I: item means.
        smoothing: pseudo-events without bias.
        decay: an earlier event's weight shrinks by this factor with each event since; 1 is the running mean.
    """
    excess = np.where(events.rated_E, events.positive_E - mean_I[events.item_E], 0.0)
    sums = _decayed_before(excess, events, decay)
    return sums / (_decayed_before(events.rated_E.astype(np.float64), events, decay) + smoothing)


def score_baselines(
    events: Events, ranking: RankingTargets, targets: RetrievalTargets, seed: int = 0
) -> BaselineScores:
    """Scores and ranks of every baseline; item mean only where there are ratings. ItemKNN is tuned on validation."""
    scores, requests = _ranking_scores(events, ranking)
    config = tune_item_knn(events, retrieval_targets(events, "validation"), seed)
    rows_of = {"popularity": popularity(events)} | ({"item_mean": item_mean(events)} if events.rated_E.any() else {})
    ranks = {name: _rank_constant(row, targets) for name, row in rows_of.items()}
    scorers = {"item_knn": item_knn_scorer(events, targets, config), "transitions": transitions_scorer(events, targets)}
    for name, score in scorers.items():
        ranks[name] = retrieval.rank_targets(score, targets.item_T, targets.seen, events.items)
    return BaselineScores(ranks, scores, requests, config)


def transitions_scorer(events: Events, targets: RetrievalTargets) -> Callable[[np.ndarray], np.ndarray]:
    """A function target numbers [B] -> scores [B, I]: what followed the liked items before each target in training.

    The transitions of `evaluation.blend` without a model, by the same settings, which Beauty's validation chose.
    """
    transitions = Transitions.of(events)
    history_TI = weighted_history(events, targets, transitions.config.recency)
    return lambda rows: (history_TI[rows] @ transitions.next_II).toarray()


def baseline_tables(
    given: BaselineScores, ranking: RankingTargets, targets: RetrievalTargets, bootstrap: Bootstrap
) -> dict[str, dict]:
    """Each baseline's `{ranking, request, retrieval, cold{...}, config}`; what does not apply is absent."""
    tables: dict[str, dict] = {}
    kinds = ("ranking", given.scores, ranking), ("request", given.requests, ranking.asked_at_once())
    for kind, found, judged in kinds:
        for name, scores in found.items():
            logits, table = log_odds(scores), tables.setdefault(name, {"cold": {}})
            table[kind] = summary.ranking_summary(ranking.label_E, scores, ranking.user_E, bootstrap, logits)
            table["cold"][kind] = cold_start.ranking_breakdown(scores, judged, bootstrap, logits)
    for name, ranks in given.ranks.items():
        table = tables.setdefault(name, {"cold": {}})
        table["retrieval"] = summary.retrieval_summary(ranks, targets.user_T, bootstrap)
        table["cold"]["retrieval"] = cold_start.retrieval_breakdown(ranks, targets, bootstrap)
    tables["item_knn"]["config"] = dataclasses.asdict(given.item_knn)
    return tables


def _ranking_scores(events: Events, ranking: RankingTargets) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Scores of the targets, a user's bias being what it was before each; and before the first of the user's."""
    if not len(ranking.item_E):
        return {}, {}
    mean_I = item_mean(events)
    place_E = events.start_U1[ranking.user_E] + ranking.position_E
    first_E = place_E[first_of_user(ranking.user_E)]
    mean_E = mean_I[ranking.item_E]
    scores, requests = {"item_mean": mean_E}, {"item_mean": mean_E}
    for name, decay in (("item_mean_user_bias", 1.0), ("item_mean_recent_user_bias", RECENT)):
        bias_E = causal_user_bias(events, mean_I, decay=decay)
        scores[name], requests[name] = mean_E + bias_E[place_E], mean_E + bias_E[first_E]
    return scores, requests if ranking.several else {}


def _decayed_before(values_E: np.ndarray, events: Events, decay: float) -> np.ndarray:
    """Sum of a user's earlier values, each times `decay` to the number of events between; 0 at a user's first event."""
    running = lfilter([0.0, 1.0], [1.0, -decay], values_E)  # over all users; then less what entered a user
    first_E = events.start_U1[events.user_E]
    return running - running[first_E] * decay ** (np.arange(len(values_E)) - first_E)


def _rank_constant(scores_I: np.ndarray, targets: RetrievalTargets) -> retrieval.Ranks:
    def score(rows: np.ndarray) -> np.ndarray:
        return np.broadcast_to(scores_I, (len(rows), len(scores_I)))

    return retrieval.rank_targets(score, targets.item_T, targets.seen, len(scores_I))


def log_odds(scores: np.ndarray) -> np.ndarray:
    """Of scores taken for probabilities."""
    probability = np.clip(scores, _EDGE, 1 - _EDGE)
    return np.log(probability) - np.log1p(-probability)
