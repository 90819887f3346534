"""Codes and costs of a catalogue that lies on disk: read in spans, and let go of again.

Pages of a memory-mapped file count as the memory of the process that reads them until something else needs the room.
Letting go of them after each span keeps the peak at a span's size, whatever the catalogue's.
"""

from __future__ import annotations

import numpy as np

from hisam_jax.tokenizer.base import FeatureMap, FittedTokenizer, PresentMap, blocks, release
from hisam_jax.tokenizer.collisions import Costs
from hisam_jax.tokenizer.random_codes import RandomCodes

SPAN = 65536  # items read at a time


def assign(
    model: FittedTokenizer, features: FeatureMap, present: PresentMap, rows: np.ndarray | None = None
) -> np.ndarray:
    """Codes int32 [I, L] of all items, or of `rows` in their order; at most SPAN items' features in memory."""
    if rows is None and isinstance(model, RandomCodes):
        return model.assign(features, present)  # which numbers the rows of one call
    items = len(next(iter(features.values()))) if rows is None else len(rows)
    parts = [np.empty((0, len(model.levels)), np.int32)]
    for start, stop in blocks(items, SPAN):
        chosen = slice(start, stop) if rows is None else rows[start:stop]
        parts.append(model.assign(*({m: v[chosen] for m, v in part.items()} for part in (features, present))))
        release(features)
    return np.concatenate(parts)


def costs_of(model: FittedTokenizer, features: FeatureMap, present: PresentMap) -> Costs:
    """What `collisions` asks for: `(level, rows) -> float32 [n, K]`."""

    def costs(level: int, rows: np.ndarray) -> np.ndarray:
        chosen = ({m: v[rows] for m, v in part.items()} for part in (features, present))
        found = model.costs(*chosen, level)
        release(features)
        return found

    return costs
