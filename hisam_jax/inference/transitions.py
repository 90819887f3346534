"""Item-to-item transitions of the training sequences: what followed an item, to blend with a model's scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import sparse

from hisam_jax.data.marks import LIKED_ABOVE
from hisam_jax.data.records import TRAIN, VALIDATION
from hisam_jax.evaluation.targets import Events
from hisam_jax.inference.histories import History
from hisam_jax.inference.scorer import Scorer
from hisam_jax.models.catalog import Catalog


@dataclasses.dataclass(frozen=True)
class TransitionConfig:
    """Chosen on the validation split of Amazon Beauty 2014, beside HMAT.

    Attributes:
        lags: how many liked items further an item still counts as a follower.
        decay: of a follower's weight with each item between.
        shrinkage: added to both items' counts; damps transitions seen a few times.
        recency: factor on a history item's vote for each later one.
        floor: added before the logarithm, so that what never followed is unlikely and not impossible.
    """

    lags: int = 10
    decay: float = 0.8
    shrinkage: float = 5.0
    recency: float = 0.6
    floor: float = 0.01


@dataclasses.dataclass(frozen=True, eq=False)
class Transitions:
    """`next_II[j, i]`: how much i follows j, `sum of decay^(lag - 1) / sqrt((n_j + s) (n_i + s))` over liked pairs.

    The counts are those of sequential rules (Ludewig and Jannach 2018, arXiv 1803.09587); the normalisation, and the
    product with a model's distribution, are ours.
    """

    next_II: sparse.csr_array
    config: TransitionConfig

    @classmethod
    def of(cls, events: Events, validation_too: bool = False, config: TransitionConfig | None = None) -> Transitions:
        """Of all users' training positives, and of those of validation where the model was trained on them."""
        config = config or TransitionConfig()
        trained_E = events.split_E <= (VALIDATION if validation_too else TRAIN)
        liked = np.flatnonzero(trained_E & events.positive_E)
        user, item, shape = events.user_E[liked], events.item_E[liked], (events.items, events.items)
        total = sparse.csr_array(shape, dtype=np.float32)
        for lag in range(1, config.lags + 1):  # one after the other: all pairs at once take some 400 bytes an event
            place = np.flatnonzero(user[:-lag] == user[lag:])
            weight = np.full(len(place), config.decay ** (lag - 1), np.float32)
            total = total + sparse.csr_array((weight, (item[place], item[place + lag])), shape)  # repeats add up
        scale_I = (np.bincount(item, minlength=events.items) + config.shrinkage) ** -0.5
        scale = sparse.diags_array(scale_I.astype(np.float32))
        return cls(sparse.csr_array(scale @ total @ scale), config)

    def log_scores(self, histories: Sequence[History]) -> np.ndarray:
        """float32 `[len(histories), I]`: log of the floor and of what the liked items of each history lead to."""
        rows, items, weights = [], [], []
        for row, history in enumerate(histories):
            liked = history.item[(history.action == 0) | (history.action > 2 * LIKED_ABOVE)]
            rows.append(np.full(len(liked), row))
            items.append(liked)
            weights.append(np.float32(self.config.recency) ** np.arange(len(liked))[::-1].astype(np.float32))
        parts = [np.concatenate(part) if part else np.zeros(0, int) for part in (weights, rows, items)]
        votes = sparse.csr_array((parts[0], (parts[1], parts[2])), (len(histories), self.next_II.shape[0]))
        return np.log((votes @ self.next_II).toarray() + np.float32(self.config.floor))


@dataclasses.dataclass(frozen=True, eq=False)
class Blended:
    """A product of experts: retrieval's scores and `weight` times the log of transitions [ours].

    Retrieval's scores are logits of a softmax over the catalogue, so that a sum is a product of distributions.
    """

    scorer: Scorer
    transitions: Transitions
    weight: float

    @property
    def catalog(self) -> Catalog:
        """The scorer's."""
        return self.scorer.catalog

    def retrieval(self, histories: Sequence[History]) -> np.ndarray:
        """float32 `[len(histories), I]`, as `Scorer.retrieval` has it."""
        return self.scorer.retrieval(histories) + self.weight * self.transitions.log_scores(histories)
