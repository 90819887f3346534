"""Pairs of items that QARM's adapter is taught to bring together (arXiv 2411.11739), of training positives alone.

User2Item [stated]: each positive event with that one of the user's latest 50 earlier positives which is most similar in
a trained space of item ids. The space is ours: the truncated SVD of the PPMI matrix of items that users took near one
another (`data.encoders.behaviour`), by cosine. Item2Item [stated]: neighbours by Swing.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl

from hisam_jax.data.dataset import Dataset
from hisam_jax.data.encoders.behaviour import Interactions, PpmiSvd
from hisam_jax.data.records import TRAIN
from hisam_jax.tokenizer.swing import NONE, swing

BLOCK = 65536  # events at a time


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Trigger and target item rows int32 [P], and the user that a pair is of, NONE for Item2Item."""

    trigger_P: np.ndarray
    target_P: np.ndarray
    user_P: np.ndarray

    def __len__(self) -> int:
        return len(self.trigger_P)


def training_positives(dataset: Dataset) -> Interactions:
    """The positive events of the training split, user after user, oldest first."""
    users, items = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    for sequence in dataset.sequences():
        item = sequence.item[(sequence.split == TRAIN) & (sequence.positive != 0)]
        users.append(np.full(len(item), sequence.user, np.int32))
        items.append(item)
    return Interactions(np.concatenate(users), np.concatenate(items))


def id_vectors(events: Interactions, items: int, width: int = 64, seed: int = 0) -> np.ndarray:
    """Unit vectors float32 [I, D] of the id space, zero for items that no user took near another one."""
    encoder = PpmiSvd(events, dim=width, seed=seed)
    values_ID = encoder.encode(pl.DataFrame({"row": np.arange(items)}), np.ones(items, bool)).values
    return values_ID / np.maximum(np.linalg.norm(values_ID, axis=1, keepdims=True), 1e-12)


def user_pairs(events: Interactions, vector_ID: np.ndarray, latest: int = 50) -> Pairs:
    """User2Item pairs: one for each event that has an earlier one, of another item, with a vector; latest of equals.

    Args:
        events: positives, oldest first within a user.
        vector_ID: unit rows, zero where an item has none.
        latest: earlier positives that are looked at.
    """
    known_I, parts = np.any(vector_ID, axis=1), []
    for start in range(0, len(events.user_E), BLOCK):
        target = np.arange(start, min(start + BLOCK, len(events.user_E)))
        trigger = _most_similar(events, vector_ID, known_I, target, latest)
        has = trigger >= 0
        target, trigger = target[has], trigger[has]
        parts.append((events.item_E[trigger], events.item_E[target], events.user_E[target]))
    columns = zip(*parts, strict=True) if parts else [[np.zeros(0)]] * 3
    return Pairs(*(np.concatenate(column).astype(np.int32) for column in columns))


def _most_similar(
    events: Interactions, vector_ID: np.ndarray, known_I: np.ndarray, target_B: np.ndarray, latest: int
) -> np.ndarray:
    """The place [B] of each event's trigger, or NONE."""
    first = max(target_B[0] - latest, 0)
    user, item = (column[first : target_B[-1] + 1] for column in (events.user_E, events.item_E))
    vector, here_B = vector_ID[item], target_B - first
    best_B, trigger_B = np.full(len(target_B), -np.inf, np.float32), np.full(len(target_B), NONE, np.int64)
    for back in range(1, latest + 1):
        row_B = np.flatnonzero(here_B >= back)
        to_B = here_B[row_B]
        at_B = to_B - back
        same_B = user[at_B] == user[to_B]
        if not same_B.any():
            break  # no user here has so many events
        row_B = row_B[same_B & (item[at_B] != item[to_B]) & known_I[item[at_B]] & known_I[item[to_B]]]
        score_B = np.einsum("bd,bd->b", vector[here_B[row_B]], vector[here_B[row_B] - back])
        better = score_B > best_B[row_B]
        best_B[row_B[better]], trigger_B[row_B[better]] = score_B[better], target_B[row_B[better]] - back
    return trigger_B


def item_pairs(events: Interactions, items: int, neighbours: int, users: int, seed: int = 0) -> Pairs:
    """Item2Item pairs: every item with its `neighbours` nearest by `swing`."""
    found_IK, _ = swing(events, items, neighbours, users=users, seed=seed)
    trigger, place = np.nonzero(found_IK >= 0)
    target = found_IK[trigger, place]
    return Pairs(trigger.astype(np.int32), target, np.full(len(target), NONE, np.int32))
