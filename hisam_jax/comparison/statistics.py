"""Metrics of a row over its seeds, and paired differences between rows: bootstrap over users, seeds averaged first.

A user's value is the mean over a row's seeds, so that an interval says how far another draw of users would move the
row's mean; how far another seed moves it is said beside, as the spread of the seeds.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import numpy as np

from hisam_jax.comparison.predictions import LISTS, LOGITS, Frame, Scores
from hisam_jax.evaluation import intervals, ranking, summary
from hisam_jax.evaluation.intervals import Bootstrap, Drawn, Interval
from hisam_jax.evaluation.retrieval import Ranks
from hisam_jax.evaluation.targets import first_of_user

Table = dict[str, Interval]
RANKING = ("gauc", "auc")  # the leading one first


def metric_names() -> dict[str, list[str]]:
    """List or way of scoring -> its metrics: `{"retrieval": ["recall@5", ...], ..., "ranking": ["gauc", "auc"]}`."""
    of_lists = list(summary.retrieval_values(Ranks(np.ones(1, int), np.ones(1, int))))
    return {name: of_lists for name in LISTS} | {name: list(RANKING) for name in LOGITS}


def metrics(seeds: Sequence[Scores], frame: Frame, bootstrap: Bootstrap, group: str | None = None) -> Table:
    """`{"retrieval/recall@10": {"value", "ci95", "seeds"}, ..., "ranking/gauc": ...}` of all that every seed scored.

    Args:
        seeds: at least one.
        frame: what was scored.
        bootstrap: resampling of the users.
        group: of targets and events; None: all.
    """
    of_T = _targets(frame, group)
    found: Table = {}
    for name in lists_of(seeds):
        by_seed = [_values(scores.ranks[name], of_T) for scores in seeds]
        means = intervals.means(_mean(by_seed), frame.user_T[of_T], bootstrap)
        found |= {f"{name}/{metric}": value for metric, value in means.items() if value}
        for metric in means if len(seeds) > 1 else ():
            if means[metric]:
                found[f"{name}/{metric}"]["seeds"] = [float(values[metric].mean()) for values in by_seed]
    for name in logits_of(seeds):
        found |= _ranking(name, frame, bootstrap, group, seeds)
    return found


def differences(
    ours: Sequence[Scores], theirs: Sequence[Scores], frame: Frame, bootstrap: Bootstrap, group: str | None = None
) -> Table:
    """Paired `ours - theirs` of every metric that both have.

    A list that theirs lacks is held against their retrieval, or else the list of theirs that leads, as a model of one
    head is whole with it; its differences say so by `list`.
    """
    of_T = _targets(frame, group)
    found: Table = {}
    their_lists = lists_of(theirs)
    for name in lists_of(ours) if their_lists else ():
        other = next(other for other in (name, "retrieval", their_lists[0]) if other in their_lists)
        sides = [scores.ranks[name] for scores in ours], [scores.ranks[other] for scores in theirs]
        pair = [_mean([_values(ranks, of_T) for ranks in side]) for side in sides]
        table = intervals.difference_of_means(*pair, frame.user_T[of_T], bootstrap)
        said = {} if other == name else {"list": other}
        found |= {f"{name}/{metric}": {**value, **said} for metric, value in table.items() if value}
    for name in logits_of([*ours, *theirs]):
        found |= _ranking(name, frame, bootstrap, group, ours, theirs)
    return found


def lists_of(seeds: Sequence[Scores]) -> list[str]:
    """The lists that every seed has, the leading one first."""
    return [name for name in seeds[0].ranks if all(name in scores.ranks for scores in seeds)]


def logits_of(seeds: Sequence[Scores]) -> list[str]:
    """The ways in which every seed scored the rated events."""
    return [name for name in seeds[0].logits if all(name in scores.logits for scores in seeds)]


def significant(difference: Interval) -> bool:
    """Whether the paired interval excludes zero."""
    low, high = difference["ci95"]
    return low > 0 or high < 0


def _targets(frame: Frame, group: str | None) -> np.ndarray:
    return np.ones(len(frame.user_T), bool) if group is None else frame.of_T[group]


def _events(frame: Frame, group: str | None, name: str) -> np.ndarray:
    """Rated events of a group; where a user's are candidates of one request, the user is the same for all of them."""
    if group is None:
        return np.ones(len(frame.rated_E), bool)
    of_user = name == "request" and group in ("cold_user", "warm_user")
    return frame.of_E[group][first_of_user(frame.rated_E)] if of_user else frame.of_E[group]


def _values(ranks: Ranks, of_T: np.ndarray) -> dict[str, np.ndarray]:
    return summary.retrieval_values(Ranks(ranks.masked_T[of_T], ranks.unmasked_T[of_T]))


def _mean(by_seed: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.mean([values[name] for values in by_seed], axis=0) for name in by_seed[0]}


def _ranking(
    name: str,
    frame: Frame,
    bootstrap: Bootstrap,
    group: str | None,
    ours: Sequence[Scores],
    theirs: Sequence[Scores] = (),
) -> Table:
    of_E = _events(frame, group, name)
    labels, users = frame.label_E[of_E], frame.rated_E[of_E]
    if not len(labels) or labels.all() or not labels.any():
        return {}
    logits = [[scores.logits[name][of_E] for scores in side] for side in (ours, theirs)]
    areas = [[_drawn_auc(scores, name, frame, group, bootstrap) for scores in side] for side in (ours, theirs)]
    results = {
        "gauc": intervals.mean_gauc(labels, logits[0], users, bootstrap, logits[1]),
        "auc": intervals.of_means(*areas),
    }
    found = {metric: result for metric, result in results.items() if result}
    if len(ours) > 1 and not theirs:
        by_seed = {
            "gauc": [ranking.gauc(labels, scores, users) for scores in logits[0]],
            "auc": [one.value for one in areas[0]],
        }
        found = {metric: result | {"seeds": by_seed[metric]} for metric, result in found.items()}
    return {f"{name}/{metric}": result for metric, result in found.items()}


def _drawn_auc(scores: Scores, name: str, frame: Frame, group: str | None, bootstrap: Bootstrap) -> Drawn:
    """A run's AUC in every resample, drawn once for all its pairs: it costs thousands of passes over the events."""
    kept = _DRAWN.setdefault(scores, {})
    key = name, frame, group, bootstrap
    if key not in kept:
        of_E = _events(frame, group, name)
        kept[key] = intervals.drawn_auc(
            frame.label_E[of_E], scores.logits[name][of_E], frame.rated_E[of_E], bootstrap
        )  # fmt: skip
    return kept[key]


_DRAWN: weakref.WeakKeyDictionary[Scores, dict[tuple, Drawn]] = weakref.WeakKeyDictionary()
