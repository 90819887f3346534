"""Scores of a model on evaluation targets, a block of users at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from hisam_jax.data.dataset import Dataset
from hisam_jax.data.pipeline import Batch
from hisam_jax.data.windows import event_features
from hisam_jax.evaluation.retrieval import Ranks, pessimistic_ranks, rank_targets
from hisam_jax.evaluation.targets import RankingTargets, RetrievalTargets
from hisam_jax.inference.histories import History
from hisam_jax.inference.scorer import Scorer
from hisam_jax.inference.transitions import Blended
from hisam_jax.progress import progress

_BLOCK = 512


class HistoryReader:
    """Histories of a dataset's users, read when asked for."""

    def __init__(self, dataset: Dataset, window: int):
        self._dataset, self._window = dataset, window
        self._features = functools.lru_cache(maxsize=2 * _BLOCK)(self._read)

    def _read(self, user: int) -> Batch:
        return event_features(self._dataset.sequence(user))

    def features(self, user: int) -> Batch:
        """All events of a user."""
        return self._features(int(user))

    def before(self, user: int, position: int | None = None) -> History:
        """What the model sees at `position`, or after the user's last event."""
        features = self.features(user)
        end = len(features["item"]) if position is None else int(position)
        return History.of(features, end, self._window)

    def of_targets(self, targets: RetrievalTargets, rows: np.ndarray) -> list[History]:
        """Histories before the chosen targets."""
        return [self.before(targets.user_T[row], targets.position_T[row]) for row in rows]


def retrieval_ranks(scorer: Scorer | Blended, reader: HistoryReader, targets: RetrievalTargets) -> Ranks:
    """Ranks of all targets among all items by the retrieval head, or by what it is blended with."""
    return rank_targets(
        lambda rows: scorer.retrieval(reader.of_targets(targets, rows)),
        targets.item_T,
        targets.seen,
        scorer.catalog.items,
    )


def generation_ranks(scorer: Scorer, reader: HistoryReader, targets: RetrievalTargets, *, beams: int) -> Ranks:
    """Ranks of all targets in the beams; a target that no beam reached ranks behind every item."""
    return _listed_ranks(scorer.generation, reader, targets, "beam search", beams)


def hybrid_ranks(
    scorer: Scorer, reader: HistoryReader, targets: RetrievalTargets, cold_I: np.ndarray, *, beams: int
) -> Ranks:
    """The same of the hybrid's lists; `cold_I` marks the items that join what was generated."""
    search = functools.partial(scorer.hybrid, cold_I=cold_I)
    return _listed_ranks(search, reader, targets, "hybrid", beams)


def _listed_ranks(
    search: Callable[..., tuple[np.ndarray, np.ndarray]], reader: HistoryReader, targets: RetrievalTargets, name: str,
    beams: int,
) -> Ranks:  # fmt: skip
    count = len(targets.item_T)
    masked, unmasked = np.empty(count, np.int64), np.empty(count, np.int64)
    blocks = [np.arange(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]
    for rows in progress(blocks, total=len(blocks), description=name, unit="block"):
        seen = targets.seen.rows(rows)
        other = seen[1] != targets.item_T[rows][seen[0]]  # a target seen before stays in the list, see `retrieval`
        of_row = np.split(seen[1][other], np.searchsorted(seen[0][other], np.arange(1, len(rows))))
        free, cut = search(reader.of_targets(targets, rows), of_row, beams=beams)
        unmasked[rows] = pessimistic_ranks(free, targets.item_T[rows], seen).unmasked_T
        masked[rows] = pessimistic_ranks(cut, targets.item_T[rows], seen).masked_T
    return Ranks(masked, unmasked)


LISTS = ("retrieval", "generation")  # the heads that are judged by ranked lists


def ranks_of(
    head: str, scorer: Scorer | Blended, reader: HistoryReader, targets: RetrievalTargets, beams: int,
    cold_I: np.ndarray | None = None,
) -> Ranks:  # fmt: skip
    """Ranks of all targets by one of `LISTS`, the `blend`, or the `hybrid` with its `cold_I`. Processes share them.

    `beams` does not count for retrieval.
    """
    rows = share(len(targets.user_T))
    part = targets.take(rows)
    if head in ("retrieval", "blend"):
        ranks = retrieval_ranks(scorer, reader, part)
    elif head == "hybrid":
        ranks = hybrid_ranks(scorer, reader, part, cold_I, beams=beams)
    else:
        ranks = generation_ranks(scorer, reader, part, beams=beams)
    return Ranks(*(merged(rows, found, len(targets.user_T)) for found in (ranks.masked_T, ranks.unmasked_T)))


def share(count: int) -> np.ndarray:
    """The rows of `count` that this process works on: a run of them, as even as can be."""
    return np.array_split(np.arange(count), jax.process_count())[jax.process_index()]


def merged(rows: np.ndarray, values: np.ndarray, count: int) -> np.ndarray:
    """Every process's values at its own rows; numbers of at most 32 bits."""
    whole = np.zeros(count, values.dtype)
    whole[rows] = values
    if jax.process_count() == 1:
        return whole
    return multihost_utils.process_allgather(whole).sum(0).astype(values.dtype)


def ranking_logits(scorer: Scorer, reader: HistoryReader, targets: RankingTargets) -> np.ndarray:
    """Click logits of all rated events [E], each with at least half a window of history where there is one."""
    window, out = scorer.window, np.empty(len(targets.user_E), np.float64)
    jobs: list[tuple[np.ndarray, int, int]] = []
    for events in _by_user(targets):
        jobs += windows_of(events, targets.position_E[events], window)
    jobs = [jobs[job] for job in share(len(jobs))]
    for first in range(0, len(jobs), _BLOCK):
        block = jobs[first : first + _BLOCK]
        histories = [
            History.of(reader.features(targets.user_E[events[0]]), end, end - start) for events, start, end in block
        ]
        for (events, start, _), logits in zip(block, scorer.clicks_along(histories), strict=True):
            out[events] = logits[targets.position_E[events] - start]
    scored = np.concatenate([events for events, _, _ in jobs]) if jobs else np.zeros(0, np.int64)
    return merged(scored, out[scored], len(out))


def request_logits(scorer: Scorer, reader: HistoryReader, targets: RankingTargets) -> np.ndarray:
    """Click logits [E] of each user's rated events as candidates of one request, made when the first of them came.

    All of a user's candidates follow the same history after the same time, as candidates that a service ranks do; of
    what came after the first of them nothing is read.
    """
    out, requests = np.empty(len(targets.user_E), np.float64), _by_user(targets)
    requests = [requests[index] for index in share(len(requests))]
    for first in range(0, len(requests), _BLOCK):
        block = requests[first : first + _BLOCK]
        users = [(targets.user_E[events[0]], targets.position_E[events[0]]) for events in block]
        histories = [reader.before(*user) for user in users]
        gaps = [reader.features(user)["gap"][position] for user, position in users]
        candidates = [targets.item_E[events] for events in block]
        for events, logits in zip(block, scorer.clicks_after(histories, candidates, gaps), strict=True):
            out[events] = logits
    scored = np.concatenate(requests) if requests else np.zeros(0, np.int64)
    return merged(scored, out[scored], len(out))


def _by_user(targets: RankingTargets) -> list[np.ndarray]:
    """Each user's rows of the targets."""
    starts = np.flatnonzero(np.diff(targets.user_E, prepend=-1))
    return np.split(np.arange(len(targets.user_E)), starts[1:]) if len(starts) else []


def windows_of(events: np.ndarray, position: np.ndarray, window: int) -> list[tuple[np.ndarray, int, int]]:
    """`(events, start, end)`: runs of one user's scored events and the window `[start, end)` each run is scored in."""
    jobs, last = [], len(events)
    while last > 0:
        end = int(position[last - 1]) + 1
        start = max(0, end - window)
        covered = position[:last] >= (start + window // 2 if start else 0)
        first = int(np.argmax(covered))
        jobs.append((events[first:last], start, end))
        last = first
    return jobs
