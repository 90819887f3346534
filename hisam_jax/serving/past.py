"""Events as a model reads them: rows, actions and the log of the hours between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hisam_jax.inference.histories import COLUMNS, History
from hisam_jax.serving.store import Event

NOTHING = History(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))


def history_of(events: Sequence[Event], row: Mapping[str, int], time: int = 0) -> tuple[History, int]:
    """`(history, time of its last event)` of the events whose items have rows.

    Args:
        events: oldest first.
        row: item id -> row.
        time: of the event before the first, 0 unknown.
    """
    item, action, gap = [], [], []
    for event in events:
        if event.item in row:
            item.append(row[event.item])
            action.append(event.action)
            gap.append(log_hours(time, event.time))
            time = event.time
    return History(np.array(item, np.int32), np.array(action, np.int32), np.array(gap, np.float32)), time


def joined(parts: Sequence[History]) -> History:
    """One history after the other."""
    return History(*(np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS))


def log_hours(before: int, now: int) -> float:
    """log1p of the hours between two times, 0 where either is unknown or the later comes first."""
    return float(np.log1p(max(now - before, 0) / 3600.0)) if before > 0 and now > 0 else 0.0
