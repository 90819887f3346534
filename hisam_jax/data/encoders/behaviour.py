"""Behaviour vectors: a truncated SVD of the PPMI matrix of items that the same users took near one another.

Positive pointwise mutual information with context smoothing and shift, and `U sqrt(S)` as vectors: Levy et al. 2015
(TACL 3, "Improving distributional similarity with lessons learned from word embeddings"). That it serves as DST's third
modality is ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import polars as pl
import scipy.sparse
from sklearn.utils.extmath import randomized_svd

from hisam_jax.data.encoders.base import Features, Fitted, absent, describe, scatter
from hisam_jax.errors import UserError
from hisam_jax.files import sha256_of

BLOCK_PAIRS = 1 << 23  # pairs held at once: 64 MiB of keys and as much again to sort them
RANK_TOLERANCE = 1e-5  # singular values, and norms of vectors, below this share of the largest are rounding


@dataclasses.dataclass(frozen=True)
class Interactions:
    """Training positives: integer user `[E]`, ascending, and item row `[E]`, oldest first within a user."""

    user_E: np.ndarray
    item_E: np.ndarray

    @classmethod
    def none(cls) -> Interactions:
        """For where nothing reads them."""
        return cls(np.zeros(0, np.int32), np.zeros(0, np.int32))


@dataclasses.dataclass(frozen=True)
class PpmiSvd:
    """Training positives -> at most `dim` numbers an item.

    An item that no user took near another one in training is absent, and so is one whose vector is all rounding. The
    matrix of pairs is never held: counts are made for a block of items at a time, and of each item only its
    `neighbours` strongest entries stay, so memory goes with events and with items x neighbours, whatever the length of
    the histories.

    Attributes:
        interactions: what is counted.
        dim: width, or the matrix's rank where that is smaller.
        window: two events of a user are near when at most this many places apart; a window as long as the longest
            history takes it whole, and then order tells nothing.
        smoothing: exponent of the context distribution, against rare partners.
        shift: k of the shifted PPMI, `max(PMI - log k, 0)`.
        neighbours: entries kept of an item's row.
        seed: of the randomised SVD.
    """

    interactions: Interactions
    dim: int = 64
    window: int = 20
    smoothing: float = 0.75
    shift: float = 1.0
    neighbours: int = 512
    seed: int = 0
    modality: ClassVar[str] = "behaviour"
    name: ClassVar[str] = "ppmi_svd"

    def __post_init__(self):
        for name, least in (("dim", 1), ("window", 1), ("neighbours", 1), ("smoothing", 0)):
            if getattr(self, name) < least:
                raise UserError(f"value {getattr(self, name)}", field=f"ppmi_svd.{name}", expected=f"{least} or more")
        if not self.shift > 0:
            raise UserError(f"value {self.shift}", field="ppmi_svd.shift", expected="more than 0; 1 for no shift")

    def fingerprint(self) -> str:
        options = dataclasses.replace(self, interactions=None)  # the events are inputs, and large
        return describe(options, 1, ("numpy", "scipy", "scikit-learn"))

    def inputs(self, items: pl.DataFrame, fit_rows: np.ndarray) -> str:
        return sha256_of(str(len(items)), self.interactions.user_E, self.interactions.item_E)

    def encode(self, items: pl.DataFrame, fit_rows: np.ndarray) -> Features:
        ppmi_II = ppmi(self.interactions, len(items), self.window, self.smoothing, self.shift, self.neighbours)
        if not ppmi_II.nnz:
            return absent(len(items))
        size = min(self.dim, len(items))
        left_ID, singular_D, _ = randomized_svd(ppmi_II, size, n_oversamples=32, n_iter=5, random_state=self.seed)
        kept = singular_D > RANK_TOLERANCE * singular_D[0]
        values_ID = (left_ID * np.sqrt(singular_D))[:, kept]
        norm_I = np.linalg.norm(values_ID, axis=1)
        known_I = norm_I > RANK_TOLERANCE * norm_I.max()
        return scatter(len(items), known_I, values_ID[known_I], fitted=Fitted(self.name))


@dataclasses.dataclass(frozen=True, eq=False)
class Remembered:
    """Vectors of items that were there when they were fitted, by id; behaviour tells nothing of any other: absent.

    Attributes:
        item_ids: `[I]`.
        values_ID: float32.
        present_I: bool.
        digest: of all of them.
    """

    item_ids: pl.Series
    values_ID: np.ndarray
    present_I: np.ndarray
    digest: str

    def inputs(self, items: pl.DataFrame) -> str:
        return sha256_of(self.digest, "\0".join(items["item_id"].to_list()))

    def encode(self, items: pl.DataFrame) -> Features:
        known = pl.DataFrame({"item_id": self.item_ids, "row": np.arange(len(self.item_ids))})
        found = items.select("item_id").join(known, on="item_id", how="left", maintain_order="left")["row"]
        row_I = found.fill_null(-1).to_numpy().astype(np.int64)
        rows = np.flatnonzero((row_I >= 0) & self.present_I[row_I])
        return scatter(len(items), rows, self.values_ID[row_I[rows]], fitted=Fitted(PpmiSvd.name))


def ppmi(
    events: Interactions, items: int, window: int, smoothing: float = 0.75, shift: float = 1.0, neighbours: int = 512
) -> scipy.sparse.csr_matrix:
    """`max(log P(i, j) / (P(i) P_s(j)) - log shift, 0)` with `P_s ~ P^smoothing`, float32 `[items, items]`.

    An item is no neighbour of itself. Symmetric as long as no item has more than `neighbours` positive entries and
    smoothing is 1.
    """
    near_I = near_counts(events, items, window)
    context_I = np.where(near_I > 0, near_I.astype(np.float64) ** smoothing, 0)
    cost_I = np.log(np.maximum(context_I / max(context_I.sum(), 1), 1e-300)) + np.log(shift)
    rows, columns, values = [], [], []
    for row_P, column_P, count_P in _counted(events, near_I, window):
        value_P = np.log(count_P) - np.log(near_I[row_P]) - cost_I[column_P]
        kept = _strongest(row_P, value_P, neighbours)
        rows.append(row_P[kept].astype(np.int32))
        columns.append(column_P[kept].astype(np.int32))
        values.append(value_P[kept].astype(np.float32))
    if not rows:
        return scipy.sparse.csr_matrix((items, items), dtype=np.float32)
    entries = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
    return scipy.sparse.csr_matrix(entries, shape=(items, items))


def near_counts(events: Interactions, items: int, window: int) -> np.ndarray:
    """int64 `[items]`: how many times each item was near another one, counted without keeping any pair."""
    user_E, item_E, total_I = events.user_E, events.item_E, np.zeros(items, np.int64)
    for gap in range(1, min(window + 1, len(user_E))):
        same_P = user_E[:-gap] == user_E[gap:]
        if not same_P.any():
            break  # no user has more events
        near_P = same_P & (item_E[:-gap] != item_E[gap:])
        for side in (item_E[:-gap], item_E[gap:]):
            total_I += np.bincount(side[near_P], minlength=items)
    return total_I


def _counted(
    events: Interactions, near_I: np.ndarray, window: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(item, near item, times) `[P]` for one block of items after the other, sorted, each pair once in all."""
    place_E = np.argsort(events.item_E, kind="stable")
    start_I1 = np.append(0, np.cumsum(np.bincount(events.item_E, minlength=len(near_I))))
    before_I = np.cumsum(near_I) - near_I
    first = np.flatnonzero(np.diff(before_I // BLOCK_PAIRS, prepend=-1))
    for start, stop in zip(first, np.append(first[1:], len(near_I)), strict=True):
        key_P = _keys(events, place_E[start_I1[start] : start_I1[stop]], len(near_I), window)
        key_P, count_P = np.unique(key_P, return_counts=True)
        if len(key_P):
            yield key_P // len(near_I), key_P % len(near_I), count_P


def _keys(events: Interactions, place_B: np.ndarray, items: int, window: int) -> np.ndarray:
    """`item * items + near item` of every event at `place_B` and every event near it."""
    keys = [np.zeros(0, np.int64)]
    for gap in range(1, window + 1):
        found = 0
        for other_B in (place_B - gap, place_B + gap):
            inside = (other_B >= 0) & (other_B < len(events.user_E))
            here_B, other_B = place_B[inside], other_B[inside]
            same = events.user_E[here_B] == events.user_E[other_B]
            item_P, near_P = events.item_E[here_B[same]], events.item_E[other_B[same]]
            keys.append((item_P.astype(np.int64) * items + near_P)[item_P != near_P])
            found += len(item_P)
        if not found:
            break
    return np.concatenate(keys)


def _strongest(row_P: np.ndarray, value_P: np.ndarray, neighbours: int) -> np.ndarray:
    """Places of the positive entries, of each row (ascending) at most the `neighbours` largest."""
    positive = np.flatnonzero(value_P > 0)
    if len(positive) == 0 or np.bincount(row_P[positive] - row_P[0]).max() <= neighbours:
        return positive
    order = positive[np.lexsort((-value_P[positive], row_P[positive]))]
    row_Q = row_P[order]
    return order[np.arange(len(order)) - np.searchsorted(row_Q, row_Q) < neighbours]
