"""Sorted events with their marks: what was liked, what is held out, and what is counted of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from hisam_jax.data import splits
from hisam_jax.data.dataset import COLD_USER_EVENTS
from hisam_jax.data.encoders import Interactions
from hisam_jax.data.preparation import Events
from hisam_jax.data.records import SPLIT_NAMES, TEST, TRAIN, UserSequence

LIKED_ABOVE = 3  # a rating greater than this is a positive


@dataclasses.dataclass(frozen=True)
class Marked:
    """The events of users 0 to U - 1, each with its marks; whole users, so that any cut by user marks alike.

    Attributes:
        events: what stays of the events.
        offsets: int64 [U + 1]; user u's events are rows `offsets[u]:offsets[u + 1]`.
        positive: uint8 [n].
        split: uint8 [n].
        after_test: how many events were left out as of no use to anyone.
    """

    events: Events
    offsets: np.ndarray
    positive: np.ndarray
    split: np.ndarray
    after_test: int

    def lengths(self) -> np.ndarray:
        """int32 [U]: events of each user."""
        return np.diff(self.offsets).astype(np.int32)

    def split_counts(self) -> dict[str, int]:
        """Name of a split -> its events."""
        return dict(zip(SPLIT_NAMES, np.bincount(self.split, minlength=4).tolist(), strict=True))

    def train_by_user(self) -> np.ndarray:
        """int32 [U]: training events of each user."""
        users = self.events.user[self.split == TRAIN]
        return np.bincount(users, minlength=len(self.offsets) - 1).astype(np.int32)

    def train_by_item(self, num_items: int) -> np.ndarray:
        """int32 [num_items]: training events of each item."""
        return np.bincount(self.events.item[self.split == TRAIN], minlength=num_items).astype(np.int32)

    def cold_users(self) -> int:
        """Users with few events before their first test event, or at all without one."""
        before = np.diff(self.offsets)
        tests = np.flatnonzero(self.split == TEST)
        users, first = np.unique(self.events.user[tests], return_index=True)
        before[users] = tests[first] - self.offsets[users]
        return int((before < COLD_USER_EVENTS).sum())

    def liked_in_training(self) -> Interactions:
        """Training positives."""
        chosen = (self.split == TRAIN) & (self.positive != 0)
        return Interactions(self.events.user[chosen], self.events.item[chosen])

    def sequences(self, has_timestamps: bool, first_user: int = 0) -> Iterator[UserSequence]:
        """One sequence a user, in their order; `first_user` is the index of user 0 in the whole dataset."""
        events, offsets = self.events, self.offsets.tolist()
        for user, (start, stop) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
            rows, n = slice(start, stop), stop - start
            yield UserSequence(
                user=first_user + user,
                item=events.item[rows],
                timestamp=events.time[rows] if has_timestamps else np.zeros(n, np.int64),
                rating=np.full(n, np.nan, np.float32) if events.rating is None else events.rating[rows],
                positive=self.positive[rows],
                split=self.split[rows],
            )


def mark(events: Events, num_users: int, protocol: str, cuts: Mapping[str, int]) -> Marked:
    """Marks events sorted by user and time; `cuts` are those of `splits.chronological_cuts`, else empty."""
    rating = events.rating
    positive = np.ones(len(events), np.uint8) if rating is None else (rating > LIKED_ABOVE).astype(np.uint8)
    offsets = events.offsets(num_users)
    if protocol == "leave_one_out":
        split = splits.leave_one_out(offsets, positive)
    else:
        split = splits.chronological(events.time, cuts) if cuts else splits.per_user_time(offsets)
    stay = split != splits.AFTER_TEST
    events, positive, split = events.take(stay), positive[stay], split[stay]
    return Marked(events, events.offsets(num_users), positive, split, int((~stay).sum()))
