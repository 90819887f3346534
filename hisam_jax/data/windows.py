"""Users' sequences cut into windows, and a window's events as a model reads them."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np

from hisam_jax.data import records
from hisam_jax.data.shuffle import shuffled
from hisam_jax.errors import UserError

DAMAGED = ("Riegeli/records", records.NOT_A_RECORD)  # what ArrayRecord says of a broken file, and we of a broken record

EVENT = np.dtype(  # one record an event: the packer's cost goes by the feature, and this way there is one
    [("item", "i4"), ("action", "i4"), *((name, "f4") for name in ("positive", "gap", "rank_weight", "next_weight"))]
)


@dataclasses.dataclass(frozen=True)
class WindowIndex:
    """Random access to (user, ordinal of the window within the user), users in order."""

    user_W: np.ndarray
    ordinal_W: np.ndarray

    @classmethod
    def of(cls, train_events_U: np.ndarray, window: int) -> WindowIndex:
        """`ceil(events / window)` windows for each user."""
        windows_U = -(-train_events_U.astype(np.int64) // window)
        user_W = np.repeat(np.arange(len(windows_U)), windows_U)
        first_U = np.cumsum(windows_U) - windows_U
        return cls(user_W, np.arange(len(user_W)) - first_U[user_W])

    def __len__(self) -> int:
        return len(self.user_W)

    def __getitem__(self, row: int) -> tuple[int, int]:
        return int(self.user_W[row]), int(self.ordinal_W[row])


@dataclasses.dataclass(frozen=True)
class WindowReader:
    """Windows of a prepared dataset's training events; cuts depend on seed, epoch and user, so that windows tile.

    Attributes:
        records: users' bytes by index, many at once.
        index: the windows of an epoch.
        window: most events of a window.
        seed: of the order and of the cuts.
        item_of_I: item -> what it is called in the dataset that a mixture is for, -1 unknown; None: the same.
        path: of the dataset, for an error.
        last_split: events of TRAIN to this split are trained on.
    """

    records: Any
    index: WindowIndex
    window: int
    seed: int
    item_of_I: np.ndarray | None = None
    path: str | os.PathLike | None = None
    last_split: int = records.TRAIN

    def __len__(self) -> int:
        return len(self.index)

    def read(self, place_P: np.ndarray) -> list[np.ndarray]:
        """EVENT records of the windows at each place of an order of many epochs, each shuffled anew.

        Raises:
            UserError: a record is damaged.
        """
        epoch_P, index_P = np.divmod(place_P, len(self))
        windows = []
        for epoch in np.unique(epoch_P).tolist():
            row_P = shuffled(index_P[epoch_P == epoch], len(self), self.seed + epoch)
            windows += [(epoch, *self.index[row]) for row in row_P.tolist()]
        try:
            found = self.records.__getitems__([user for _, user, _ in windows])
            return [self._cut(*window, record) for window, record in zip(windows, found, strict=True)]
        except (RuntimeError, ValueError) as error:
            if not any(sign in str(error) for sign in DAMAGED):
                raise
            what = f"a record is damaged ({str(error).splitlines()[0]})"
            hint = "it was whole when it was opened; restore it or run `hisam prepare` again, then go on"
            raise UserError(what, path=self.path, hint=hint) from error

    def _cut(self, epoch: int, user: int, ordinal: int, record: bytes) -> np.ndarray:
        sequence = records.decode(record)
        train = np.flatnonzero(sequence.split <= self.last_split)
        cuts = window_cuts(len(train), self.window, (self.seed, epoch, user))
        event = window_events(sequence, train[cuts[ordinal] : cuts[ordinal + 1]])
        return event if self.item_of_I is None else renamed(event, self.item_of_I)


def window_cuts(events: int, window: int, seed: tuple[int, ...]) -> np.ndarray:
    """Bounds `[0, ..., events]` of `ceil(events / window)` runs; the first one's length is drawn, inner ones are full.

    No draw needs more windows than the tightest tiling, so packing never pays for the randomness.
    """
    count = max(1, -(-events // window))
    if count == 1:
        return np.array([0, events])
    first = np.random.default_rng(seed).integers(events - (count - 1) * window, window + 1)
    return np.concatenate([[0], first + window * np.arange(count - 1), [events]])


def event_features(sequence: records.UserSequence) -> dict[str, np.ndarray]:
    """item, action, positive and gap of every event of a user, as a model reads them in training and serving.

    action: 0 unknown, else twice the rating, within 1..10. gap: log1p of the hours since the user's previous event, 0
    for the first one and where either has no timestamp.
    """
    hours = np.diff(sequence.timestamp, prepend=sequence.timestamp[:1]) / 3600.0
    known = (sequence.timestamp > 0) & (np.concatenate([[0], sequence.timestamp[:-1]]) > 0)
    rated = np.isfinite(sequence.rating)
    action = np.clip(np.rint(2 * np.where(rated, sequence.rating, 0)), 1, 10)
    return {
        "item": sequence.item.astype(np.int32),
        "action": np.where(rated, action, 0).astype(np.int32),
        "positive": sequence.positive.astype(np.float32),
        "gap": np.where(known, np.log1p(np.maximum(hours, 0.0)), 0.0).astype(np.float32),
    }


def window_events(sequence: records.UserSequence, chosen: np.ndarray) -> np.ndarray:
    """EVENT records of the chosen places of a sequence; the first of a window is nobody's next item."""
    event = np.zeros(len(chosen), EVENT)
    for name, values in event_features(sequence).items():
        event[name] = values[chosen]
    event["rank_weight"] = np.isfinite(sequence.rating[chosen])
    event["next_weight"][1:] = event["positive"][1:]
    return event


def renamed(event: np.ndarray, item_of_I: np.ndarray) -> np.ndarray:
    """EVENT records with their items looked up in `item_of_I`, without those that have none there."""
    item = item_of_I[event["item"]]
    event = event[item >= 0]
    event["item"] = item[item >= 0]
    event["next_weight"][:1] = 0
    return event
