"""Metrics by cold and warm users and items, each group with its size and its own intervals."""

from __future__ import annotations

import numpy as np

from hisam_jax.evaluation import summary
from hisam_jax.evaluation.intervals import Bootstrap, Interval
from hisam_jax.evaluation.retrieval import Ranks
from hisam_jax.evaluation.targets import Coldness, RankingTargets, RetrievalTargets

Table = dict[str, Interval | int]
GROUPS = ("cold_user", "warm_user", "zero_item", "cold_item", "warm_item")


def groups(cold: Coldness) -> dict[str, np.ndarray]:
    """Masks over scored events. The two user groups are disjoint and whole, and so are the three item groups."""
    warm_item = ~(cold.cold_item | cold.zero_item)
    masks = cold.cold_user, ~cold.cold_user, cold.zero_item, cold.cold_item, warm_item
    return dict(zip(GROUPS, masks, strict=True))


def retrieval_breakdown(ranks: Ranks, targets: RetrievalTargets, bootstrap: Bootstrap) -> dict[str, Table]:
    """`summary.retrieval_summary` of each group; an empty group says `{"targets": 0}`."""
    return {
        name: summary.retrieval_summary(
            Ranks(ranks.masked_T[mask], ranks.unmasked_T[mask]), targets.user_T[mask], bootstrap
        )
        for name, mask in groups(targets.cold).items()
    }


def ranking_breakdown(
    scores: np.ndarray, targets: RankingTargets, bootstrap: Bootstrap, logits: np.ndarray | None = None
) -> dict[str, Table]:
    """`summary.ranking_summary` of each group of events; an undefined metric is absent."""
    return {
        name: summary.ranking_summary(
            targets.label_E[mask],
            scores[mask],
            targets.user_E[mask],
            bootstrap,
            None if logits is None else logits[mask],
        )
        for name, mask in groups(targets.cold).items()
    }
