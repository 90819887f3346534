"""Percentile bootstrap over users, seeded: metrics that are ratios of per-user sums, AUC, and paired differences.

Users are the units resampled, as a user's events are not independent. Everything comes as
`{"value": x, "ci95": [lo, hi]}`, or None where the metric is undefined (no users, one class only). The same seed and
users give the same resamples, so intervals of two models are on the same footing and a difference is paired.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from hisam_jax.evaluation import ranking

BLOCK_COUNTS = 1 << 22  # resampling counts drawn at once
KEPT_BYTES = 1 << 29  # of draws that the next metric finds again: a table has some 20 groups, each of a size of its own
_KEPT: dict[tuple[int, int, int], list[np.ndarray]] = {}

Interval = dict[str, float | list[float]]


@dataclasses.dataclass(frozen=True)
class Bootstrap:
    """How many resamples of the users, and their seed."""

    resamples: int = 1000
    seed: int = 0

    def counts(self, users: int) -> Iterator[np.ndarray]:
        """How often each user is drawn, in blocks [R, users] that add up to `resamples` rows."""
        draws = _kept_draws if self.resamples * users <= KEPT_BYTES else _drawn_blocks
        for block in draws(self.resamples, self.seed, users):
            yield block.astype(np.float64)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A statistic of all users, and of each resample of them [R]: kept, it serves every pair that a run is in."""

    value: float
    samples_R: np.ndarray


def _kept_draws(resamples: int, seed: int, users: int) -> list[np.ndarray]:
    """Draws of one size serve every metric and row of a table: making them costs more than an AUC of each."""
    key = resamples, seed, users
    if key not in _KEPT:
        _KEPT[key] = list(_drawn_blocks(resamples, seed, users))
        while sum(block.nbytes for blocks in _KEPT.values() for block in blocks) > KEPT_BYTES:
            del _KEPT[next(iter(_KEPT))]
    return _KEPT[key]


def _drawn_blocks(resamples: int, seed: int, users: int) -> Iterator[np.ndarray]:
    """uint8 [R, users]; 256 draws of one among as many as there are users are beyond any chance."""
    rng = np.random.default_rng([seed, users])
    block = max(1, min(resamples, BLOCK_COUNTS // max(1, users)))
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = rng.integers(users, size=(rows, users)) + users * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * users).reshape(rows, users).astype(np.uint8)


def ratios(
    numerators: Mapping[str, np.ndarray], denominator_U: np.ndarray, bootstrap: Bootstrap
) -> dict[str, Interval | None]:
    """Intervals of `sum(numerator) / sum(denominator)` over users [U], all names on the same resamples."""
    denominator_U = np.asarray(denominator_U, np.float64)
    if not len(denominator_U) or denominator_U.sum() <= 0 or not numerators:
        return dict.fromkeys(numerators)
    sums_UM = np.stack([np.asarray(column, np.float64) for column in numerators.values()], axis=1)
    values = sums_UM.sum(axis=0) / denominator_U.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        samples = [(counts @ sums_UM) / (counts @ denominator_U)[:, None] for counts in bootstrap.counts(len(sums_UM))]
    samples_RM = np.concatenate(samples)
    return {name: _interval(values[m], samples_RM[:, m]) for m, name in enumerate(numerators)}


def means(values: Mapping[str, np.ndarray], users_T: np.ndarray, bootstrap: Bootstrap) -> dict[str, Interval | None]:
    """Intervals of the mean over targets [T], users resampled with all their targets."""
    _, user_T = np.unique(users_T, return_inverse=True)
    numerators = {name: np.bincount(user_T, column) for name, column in values.items()}
    return ratios(numerators, np.bincount(user_T), bootstrap)


def difference_of_means(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], users_T: np.ndarray, bootstrap: Bootstrap
) -> dict[str, Interval | None]:
    """Paired intervals of `ours - theirs` for the names in both, over the same targets [T]."""
    return means({name: ours[name] - theirs[name] for name in ours if name in theirs}, users_T, bootstrap)


def auc(
    labels: np.ndarray, scores: np.ndarray, users: np.ndarray, bootstrap: Bootstrap, other: np.ndarray | None = None
) -> Interval | None:
    """Interval of pooled AUC over events [E]; with `other` scores, of AUC(scores) - AUC(other), paired."""
    sides = [[drawn_auc(labels, side, users, bootstrap)] for side in (scores, other) if side is not None]
    return of_means(*sides)


def drawn_auc(labels: np.ndarray, scores: np.ndarray, users: np.ndarray, bootstrap: Bootstrap) -> Drawn:
    """Pooled AUC of events [E], each user weighed as often as drawn."""
    user_U, user_E = np.unique(users, return_inverse=True)
    order = ranking.pair_order(labels, scores, user_E)
    return drawn(functools.partial(ranking.weighted_auc, order), len(user_U), bootstrap)


def gauc(
    labels: np.ndarray, scores: np.ndarray, users: np.ndarray, bootstrap: Bootstrap, other: np.ndarray | None = None
) -> Interval | None:
    """Interval of GAUC over events [E]; with `other` scores, of the paired difference."""
    return mean_gauc(labels, (scores,), users, bootstrap, () if other is None else (other,))


def mean_gauc(
    labels: np.ndarray,
    ours: Sequence[np.ndarray],
    users: np.ndarray,
    bootstrap: Bootstrap,
    theirs: Sequence[np.ndarray] = (),
) -> Interval | None:
    """Interval of the mean GAUC of several runs' scores of events [E], less that of `theirs`, if any, paired."""
    sides = [[ranking.auc_by_user(labels, scores, users) for scores in side] for side in (ours, theirs)]
    areas = [np.mean([found.auc_V for found in side], axis=0) for side in sides if side]
    weight_V = sides[0][0].impressions_V
    return ratios({"gauc": (areas[0] - areas[1] if theirs else areas[0]) * weight_V}, weight_V, bootstrap)["gauc"]


def log_loss(
    labels: np.ndarray, logits: np.ndarray, users: np.ndarray, bootstrap: Bootstrap, other: np.ndarray | None = None
) -> Interval | None:
    """Interval of the mean log loss over events [E], in nats; with `other` logits, of the paired difference."""
    losses = ranking.log_losses(labels, logits)
    losses = losses if other is None else losses - ranking.log_losses(labels, other)
    return means({"log_loss": losses}, users, bootstrap)["log_loss"]


def drawn(statistic: Callable[[np.ndarray], float], users: int, bootstrap: Bootstrap) -> Drawn:
    """A statistic of how often each user is drawn [U]; without any sample where that of all users is undefined."""
    value = statistic(np.ones(users)) if users else np.nan
    if np.isnan(value):
        return Drawn(np.nan, np.empty(0))
    return Drawn(value, np.array([statistic(row) for counts in bootstrap.counts(users) for row in counts]))


def of_means(ours: Sequence[Drawn], theirs: Sequence[Drawn] = ()) -> Interval | None:
    """Interval of the mean over several runs of the same users, less that of `theirs`, if any, paired."""
    (value, samples_R), *other = [
        (np.mean([one.value for one in side]), np.mean([one.samples_R for one in side], axis=0))
        for side in (ours, theirs)
        if side
    ]
    for their_value, theirs_R in other:
        value, samples_R = value - their_value, samples_R - theirs_R
    return None if np.isnan(value) else _interval(value, samples_R)


def _interval(value: float, samples_R: np.ndarray) -> Interval:
    """Percentile interval; resamples in which the metric is undefined (one class drawn) are left out."""
    defined = samples_R[np.isfinite(samples_R)]
    low, high = np.quantile(defined, (0.025, 0.975)) if len(defined) else (value, value)
    return {"value": float(value), "ci95": [float(low), float(high)]}
