"""What is scored: retrieval targets and rated events of a split, each with the history before it.

No item index, catalogue key or order of appearance is ever a feature: indices only address tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TypeVar

import numpy as np

from hisam_jax.data.dataset import COLD_ITEM_EVENTS, COLD_USER_EVENTS, Dataset
from hisam_jax.data.records import TEST, TRAIN, VALIDATION, UserSequence
from hisam_jax.evaluation.retrieval import SeenItems

SPLITS = {"validation": VALIDATION, "test": TEST}


@dataclasses.dataclass(frozen=True)
class Events:
    """All events, user after user, oldest first within a user.

    Attributes:
        user_E: user index, ascending.
        item_E: item index.
        position_E: 0-based place in the user's sequence, so also the length of the history before the event.
        positive_E: bool.
        rated_E: bool, whether a rating was given.
        split_E: split code.
        start_U1: first event of each user; user u has the events `start_U1[u]:start_U1[u + 1]`.
        train_count_I: training interactions of each item.
    """

    user_E: np.ndarray
    item_E: np.ndarray
    position_E: np.ndarray
    positive_E: np.ndarray
    rated_E: np.ndarray
    split_E: np.ndarray
    start_U1: np.ndarray
    train_count_I: np.ndarray

    @property
    def items(self) -> int:
        """Catalogue size."""
        return len(self.train_count_I)


@dataclasses.dataclass(frozen=True)
class Coldness:
    """Marks per scored event. Items are cold with 1 to 9 training events, zero with none, else warm."""

    cold_user: np.ndarray
    cold_item: np.ndarray
    zero_item: np.ndarray

    def take(self, rows: np.ndarray) -> Coldness:
        """The marks of the chosen events."""
        return Coldness(self.cold_user[rows], self.cold_item[rows], self.zero_item[rows])


@dataclasses.dataclass(frozen=True)
class RetrievalTargets:
    """One target a user: the user's first positive event of the split. The history is every event before it.

    Attributes:
        user_T: user index, ascending.
        item_T: the item to find.
        position_T: its place in the user's sequence = history length.
        seen: distinct items of the history, whatever their rating.
        cold: cold-start marks.
    """

    user_T: np.ndarray
    item_T: np.ndarray
    position_T: np.ndarray
    seen: SeenItems
    cold: Coldness

    def take(self, rows: np.ndarray) -> RetrievalTargets:
        """The chosen targets, in that order."""
        row, item = self.seen.rows(rows)
        seen = SeenItems(np.append(0, np.cumsum(np.bincount(row, minlength=len(rows)))), item)
        return RetrievalTargets(self.user_T[rows], self.item_T[rows], self.position_T[rows], seen, self.cold.take(rows))


@dataclasses.dataclass(frozen=True)
class RankingTargets:
    """Every rated event of the split.

    Attributes:
        user_E: user index, ascending.
        position_E: place in the user's sequence = history length.
        item_E: item index.
        label_E: bool, rated positive.
        cold: cold-start marks.
    """

    user_E: np.ndarray
    position_E: np.ndarray
    item_E: np.ndarray
    label_E: np.ndarray
    cold: Coldness

    @property
    def several(self) -> bool:
        """Whether any user has more than one event, as one request asks for."""
        return len(np.unique(self.user_E)) < len(self.user_E)

    def asked_at_once(self) -> RankingTargets:
        """The same as candidates of one request a user: a user is as cold as the first of them finds the user."""
        cold_user = self.cold.cold_user[first_of_user(self.user_E)]
        return dataclasses.replace(self, cold=dataclasses.replace(self.cold, cold_user=cold_user))

    def take(self, rows: np.ndarray) -> RankingTargets:
        """The chosen events, in that order."""
        columns = (column[rows] for column in (self.user_E, self.position_E, self.item_E, self.label_E))
        return RankingTargets(*columns, self.cold.take(rows))


def first_of_user(user_E: np.ndarray) -> np.ndarray:
    """The place of each user's first event among events [E] that are ordered by user."""
    return np.searchsorted(user_E, user_E)


def load_events(dataset: Dataset) -> Events:
    """Reads every user's sequence once."""
    return events_from_sequences(dataset.sequences(), dataset.num_users, dataset.num_items)


def events_from_sequences(sequences: Iterable[UserSequence], users: int, items: int) -> Events:
    """Concatenates sequences that come in ascending user order."""
    parts = [(s.user, s.item, s.positive != 0, np.isfinite(s.rating), s.split) for s in sequences]
    owner, columns = [part[0] for part in parts], list(zip(*(part[1:] for part in parts), strict=True))
    if np.any(np.diff(owner) <= 0):
        raise ValueError("sequences are not in ascending user order")
    item, positive, rated, split = (np.concatenate(column) for column in columns) if parts else [np.zeros(0, int)] * 4
    lengths = np.zeros(users, np.int64)
    lengths[owner] = [len(part[1]) for part in parts]
    start = np.append(0, np.cumsum(lengths))
    return Events(
        user_E=np.repeat(np.arange(users), lengths),
        item_E=item,
        position_E=np.arange(len(item)) - np.repeat(start[:-1], lengths),
        positive_E=positive.astype(bool),
        rated_E=rated.astype(bool),
        split_E=split,
        start_U1=start,
        train_count_I=np.bincount(item[split == TRAIN], minlength=items),
    )


def retrieval_targets(events: Events, split: str) -> RetrievalTargets:
    """Each user's first positive event of `split`, 'validation' or 'test'; the only one under leave-one-out."""
    chosen = np.flatnonzero((events.split_E == SPLITS[split]) & events.positive_E)
    _, first = np.unique(events.user_E[chosen], return_index=True)
    target_T = chosen[first]
    return RetrievalTargets(
        user_T=events.user_E[target_T],
        item_T=events.item_E[target_T],
        position_T=events.position_E[target_T],
        seen=_seen_before(events, target_T),
        cold=_coldness(events, target_T),
    )


def ranking_targets(events: Events, split: str) -> RankingTargets:
    """Every rated event of `split` ('validation' or 'test'); none where the source has no ratings."""
    chosen = np.flatnonzero((events.split_E == SPLITS[split]) & events.rated_E)
    return RankingTargets(
        user_E=events.user_E[chosen],
        position_E=events.position_E[chosen],
        item_E=events.item_E[chosen],
        label_E=events.positive_E[chosen],
        cold=_coldness(events, chosen),
    )


Targets = TypeVar("Targets", RetrievalTargets, RankingTargets)


def subset_of_users(targets: Targets, users: int, seed: int) -> Targets:
    """The targets of at most `users` users, drawn by `seed`; 0 keeps all."""
    owner = targets.user_T if isinstance(targets, RetrievalTargets) else targets.user_E
    everyone = np.unique(owner)
    if not users or len(everyone) <= users:
        return targets
    drawn = np.random.default_rng(seed).permutation(everyone)[:users]
    return targets.take(np.flatnonzero(np.isin(owner, drawn)))


def history(events: Events, target_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(row in `target_T`, event) of every event before each target event of the same user, oldest first."""
    length_T = events.position_E[target_T]
    ends = np.cumsum(length_T)
    offset = np.arange(length_T.sum()) - np.repeat(ends - length_T, length_T)
    return np.repeat(np.arange(len(target_T)), length_T), np.repeat(target_T - length_T, length_T) + offset


def _seen_before(events: Events, target_T: np.ndarray) -> SeenItems:
    row, event = history(events, target_T)
    distinct = np.unique(row.astype(np.int64) * events.items + events.item_E[event])
    counts = np.bincount(distinct // events.items, minlength=len(target_T))
    return SeenItems(np.append(0, np.cumsum(counts)), (distinct % events.items).astype(np.int64))


def _coldness(events: Events, chosen_T: np.ndarray) -> Coldness:
    count_T = events.train_count_I[events.item_E[chosen_T]]
    return Coldness(
        cold_user=events.position_E[chosen_T] < COLD_USER_EVENTS,
        cold_item=(count_T > 0) & (count_T < COLD_ITEM_EVENTS),
        zero_item=count_T == 0,
    )
