"""Which events are trained on and which are held out: three protocols, each on events sorted by user and time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import polars as pl

from hisam_jax.data.identity import digests
from hisam_jax.data.records import HISTORY, TEST, TRAIN, VALIDATION
from hisam_jax.errors import UserError

PROTOCOLS = ("leave_one_out", "per_user_time", "chronological")
AFTER_TEST = 255  # negatives after the last positive under leave-one-out: no use to anyone, dropped
_CHECKSUM_ROWS = 1 << 22
Rows = tuple[np.ndarray, np.ndarray | None, np.ndarray]  # item, time, split


def leave_one_out(offsets: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """uint8 [n]: a user's last positive is TEST, the one before it VALIDATION (with >= 3 positives), else TRAIN.

    Negatives between the two are HISTORY, those after TEST are AFTER_TEST; with 2 positives there is TEST only, and a
    user with fewer is TRAIN as a whole.
    """
    seen = np.concatenate([[0], np.cumsum(positive, dtype=np.int32)])
    total = seen[offsets[1:]] - seen[offsets[:-1]]
    lengths = np.diff(offsets)
    later = np.repeat(seen[offsets[1:]], lengths) - seen[1:]  # the user's positives after this event
    total = np.repeat(total, lengths)
    liked = positive.astype(bool)
    split = np.full(len(positive), TRAIN, np.uint8)
    split[(later == 0) & (total >= 2)] = AFTER_TEST
    split[(later == 0) & (total >= 2) & liked] = TEST
    split[(later == 1) & (total >= 3)] = HISTORY
    split[(later == 1) & (total >= 3) & liked] = VALIDATION
    return split


def per_user_time(offsets: np.ndarray) -> np.ndarray:
    """uint8 [n]: a user's last tenth (rounded half up: none below 5 events) is TEST, the tenth before it VALIDATION."""
    lengths = np.diff(offsets)
    tenth = np.repeat((lengths + 5) // 10, lengths)
    from_end = np.repeat(offsets[1:], lengths) - np.arange(offsets[-1])  # 1 for a user's last event
    return np.where(from_end <= tenth, TEST, np.where(from_end <= 2 * tenth, VALIDATION, TRAIN)).astype(np.uint8)


def chronological(time: np.ndarray, cuts: Mapping[str, int]) -> np.ndarray:
    """uint8 [n]: events from `cuts['test']` on are TEST, those before it from `cuts['validation']` on VALIDATION."""
    split = np.where(time >= cuts["test"], TEST, np.where(time >= cuts["validation"], VALIDATION, TRAIN))
    return split.astype(np.uint8)


def chronological_cuts(moments: np.ndarray, counts: np.ndarray, path: Path | None = None) -> dict[str, int]:
    """Two cuts in time for everybody, as near to the last tenths of all events as equal times allow.

    Args:
        moments: the distinct times, ascending.
        counts: events at each.
        path: what a message names.

    Raises:
        UserError: too few distinct times to cut.
    """
    if len(moments) < 3:
        raise UserError(
            f"{len(moments)} distinct times in all",
            path=path,
            field="timestamp",
            expected="at least 3 to cut the events by time",
            hint="take another protocol",
        )
    tail = np.cumsum(counts[::-1])[::-1]  # events at or after each moment
    tenth = (int(tail[0]) + 5) // 10
    test = 2 + int(np.argmin(np.abs(tail[2:] - tenth)))  # two moments at least stay before the test
    validation = 1 + int(np.argmin(np.abs(tail[1:test] - tail[test] - tenth)))
    return {"validation": int(moments[validation]), "test": int(moments[test])}


def split_checksum(
    user_ids: pl.Series,
    item_ids: pl.Series,
    offsets: np.ndarray,
    item: np.ndarray,
    time: np.ndarray | None,
    split: np.ndarray,
) -> str:
    """SHA-256 over (user id, item id, timestamp or place, split), users in the order of their ids, oldest first.

    Args:
        offsets, item, time, split: of events sorted by user and time; `time` None where there are no timestamps.
    """
    lengths = np.diff(offsets)

    def rows_of(users: np.ndarray) -> Rows:
        n = lengths[users]
        rows = np.repeat(offsets[users], n) + _places(n)
        return item[rows], None if time is None else time[rows], split[rows]

    return checksum_of_rows(user_ids, item_ids, lengths, rows_of)


def checksum_of_rows(
    user_ids: pl.Series, item_ids: pl.Series, lengths: np.ndarray, rows_of: Callable[[np.ndarray], Rows]
) -> str:
    """`split_checksum` of events that are fetched user by user, wherever they lie.

    Args:
        lengths: int [U], events of each user.
        rows_of: users (int64 [m]) -> item, time (or None) and split of their events, oldest first, end to end.
    """
    users, items = digests(user_ids, 0, "checksum"), digests(item_ids, 0, "checksum")
    digest, order = hashlib.sha256(), user_ids.arg_sort().to_numpy()
    block = np.cumsum(lengths[order], dtype=np.int64) // _CHECKSUM_ROWS
    for chosen in np.split(order, np.flatnonzero(np.diff(block)) + 1):
        n = lengths[chosen]
        item, time, split = rows_of(chosen)
        table = np.empty(len(item), [("user", "<u8"), ("item", "<u8"), ("time", "<i8"), ("split", "u1")])
        table["user"], table["item"] = np.repeat(users[chosen], n), items[item]
        table["time"], table["split"] = _places(n) if time is None else time, split
        digest.update(table.tobytes())
    return digest.hexdigest()


def _places(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ... within each user."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
