"""Events as sorted columns: the order in time with its seeded tie-break, duplicates, the k-core."""

from __future__ import annotations

import dataclasses

import numpy as np

from hisam_jax.data.identity import mix


@dataclasses.dataclass(frozen=True)
class Events:
    """Events sorted by user, then oldest first.

    Attributes:
        user, item: int32 [n].
        time: uint32 [n], seconds since 1970, or the place in the source where there are no timestamps.
        rating: float32 [n], or None where the source has none.
    """

    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    rating: np.ndarray | None

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: np.ndarray) -> Events:
        """The events of a mask or of row indices, in their order."""
        rating = None if self.rating is None else self.rating[rows]
        return Events(self.user[rows], self.item[rows], self.time[rows], rating)

    def offsets(self, num_users: int) -> np.ndarray:
        """int64 [num_users + 1]: user u's events are rows `offsets[u]:offsets[u + 1]`."""
        return np.concatenate([[0], np.cumsum(np.bincount(self.user, minlength=num_users))])


def time_order(
    user: np.ndarray, item: np.ndarray, time: np.ndarray, user_digests: np.ndarray, item_digests: np.ndarray
) -> np.ndarray:
    """int64 [n]: rows by user, then time; among a user's equal times, by a seeded hash of user and item."""
    key = user.astype(np.uint64) << np.uint64(32) | time.astype(np.uint64)
    rows = np.argsort(key)
    key = key[rows]
    equal = np.concatenate([[False], key[1:] == key[:-1]])
    tied = np.flatnonzero(equal | np.concatenate([equal[1:], [False]]))  # runs of ties, each in one piece
    among = rows[tied]
    coin = mix(user_digests[user[among]], item_digests[item[among]])
    rows[tied] = among[np.lexsort((item[among], coin, key[tied]))]
    return rows


def drop_duplicates(events: Events) -> tuple[Events, int]:
    """Keeps one of a user's events on the same item at the same time (the highest rating), and counts the others."""
    same = np.concatenate(
        [
            [False],
            (events.user[1:] == events.user[:-1])
            & (events.item[1:] == events.item[:-1])
            & (events.time[1:] == events.time[:-1]),
        ]
    )
    if not same.any():
        return events, 0
    rating = events.rating
    if rating is not None:
        rating = np.maximum.reduceat(rating, np.flatnonzero(~same))
    kept = events.take(~same)
    return dataclasses.replace(kept, rating=rating), int(same.sum())


def k_core(user: np.ndarray, item: np.ndarray, min_user: int, min_item: int) -> np.ndarray:
    """bool [n]: the largest set in which every user has `min_user` events and every item `min_item`."""
    alive = np.ones(len(user), bool)
    if min_user <= 1 and min_item <= 1:
        return alive
    left = -1
    while left != len(user):
        left = len(user)
        busy = np.bincount(user) >= min_user if left else np.zeros(0, bool)
        known = np.bincount(item) >= min_item if left else np.zeros(0, bool)
        keep = busy[user] & known[item]
        alive[alive] = keep
        user, item = user[keep], item[keep]
    return alive


def renumber(codes: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """int32: codes among the `kept` (bool by code) only; the order of the codes stays."""
    return (np.cumsum(kept, dtype=np.int32) - 1)[codes]
