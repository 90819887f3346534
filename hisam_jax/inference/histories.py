"""User histories as padded rows: what a trained model reads at evaluation and serving time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from hisam_jax.data.pipeline import Batch

COLUMNS = ("item", "action", "gap")
SHORTEST = 8  # items


@dataclasses.dataclass(frozen=True)
class History:
    """A user's events, oldest first, cut to what the model sees.

    Attributes:
        item, action: int32 `[n]`.
        gap: float32 `[n]`, as `data.windows.event_features` gives it.
    """

    item: np.ndarray
    action: np.ndarray
    gap: np.ndarray

    @classmethod
    def of(cls, features: Batch, end: int, window: int) -> History:
        """The last `window` events before position `end`."""
        start = max(0, end - window)
        return cls(*(features[name][start:end] for name in COLUMNS))

    def latest(self, window: int) -> History:
        """The last `window` events."""
        return History(self.item[-window:], self.action[-window:], self.gap[-window:])

    def __len__(self) -> int:
        return len(self.item)


def bucket(length: int, window: int, shortest: int = SHORTEST) -> int:
    """The padded length a history is served at, at least `shortest`: few shapes, so few compilations."""
    size = shortest
    while size < length:
        size *= 2
    return min(size, max(window, length))


def pad_histories(histories: Sequence[History], codes_IL: np.ndarray, length: int, rows: int) -> Batch:
    """One batch of `rows` rows of `length` items; short of histories it is filled with empty rows."""
    batch = {name: np.zeros((rows, length), np.float32 if name == "gap" else np.int32) for name in COLUMNS}
    batch["segment"] = np.zeros((rows, length), np.int32)
    for row, history in enumerate(histories):
        for name in COLUMNS:
            batch[name][row, : len(history)] = getattr(history, name)
        batch["segment"][row, : len(history)] = 1
    batch["codes"] = codes_IL[batch["item"]]
    return batch


def batches(
    histories: Sequence[History], codes_IL: np.ndarray, *, window: int, rows: int, shortest: int = SHORTEST
) -> Iterator[tuple[np.ndarray, Batch]]:
    """`(indices of the histories, padded batch)`, histories of like length together."""
    lengths = np.array([bucket(len(history), window, shortest) for history in histories])
    for length in np.unique(lengths):
        members = np.flatnonzero(lengths == length)
        for start in range(0, len(members), rows):
            chosen = members[start : start + rows]
            yield chosen, pad_histories([histories[i] for i in chosen], codes_IL, int(length), rows)
