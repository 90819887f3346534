"""What codes are judged against: planted factors where there are any, else categories that can bear a statistic."""

from __future__ import annotations

from collections import Counter

import numpy as np
import polars as pl

PLANTED = ("department", "kind", "category", "emblem", "style", "colour", "pattern")
LEAST_ITEMS = 10  # a label that fewer items have counts as unknown
LEAST_COVERAGE = 0.5  # share of items that need a known label
MOST_COMMON = 0.95  # a label that more items have tells nothing
MOST_LABELS = 100  # more are brands rather than categories
TAGS = 4


def attributes_of(items: pl.DataFrame, truth: pl.DataFrame | None = None) -> dict[str, np.ndarray]:
    """Name -> integer label [I], negative where unknown. Probes only, never inputs.

    Planted factors if there is `truth`. Else `category`, and where an item's categories are a set of tags, not a path
    from wide to narrow, the `TAGS` tags that come closest to half of the items, each as a label 0 or 1.
    """
    if truth is not None and (planted := [name for name in PLANTED if name in truth.columns]):
        return {name: truth[name].cast(pl.Int64).fill_null(-1).to_numpy() for name in planted}
    lists = [list(dict.fromkeys(row or [])) for row in items["categories"].to_list()]
    if _is_path(lists):
        depths = range(max(map(len, lists), default=0))
        found = next((labels for depth in depths if (labels := _position(lists, depth)) is not None), None)
        return {} if found is None else {"category": found}
    first = _position(lists, 0)
    return ({} if first is None else {"category": first}) | _tags(lists)


def _is_path(lists: list[list[str]]) -> bool:
    """Whether a category is nearly always met at the same place of its list."""
    places = Counter((name, place) for row in lists for place, name in enumerate(row))
    usual: Counter[str] = Counter()
    for (name, _), count in places.items():
        usual[name] = max(usual[name], count)
    return sum(usual.values()) >= 0.95 * sum(places.values())


def _position(lists: list[list[str]], depth: int) -> np.ndarray | None:
    """Labels [I] from the category at one place; None where too few items have one or all have the same."""
    names = [row[depth] if depth < len(row) else None for row in lists]
    counts = Counter(name for name in names if name is not None)
    kept = sorted(name for name, count in counts.items() if count >= LEAST_ITEMS)
    known = sum(counts[name] for name in kept)
    if not 2 <= len(kept) <= MOST_LABELS or known < LEAST_COVERAGE * len(lists):
        return None
    if max(counts.values()) > MOST_COMMON * known:
        return None
    number = {name: index for index, name in enumerate(kept)}
    return np.array([number.get(name, -1) for name in names], np.int64)


def _tags(lists: list[list[str]]) -> dict[str, np.ndarray]:
    counts = Counter(name for row in lists for name in row)
    able = [name for name, count in counts.items() if LEAST_ITEMS <= count <= len(lists) - LEAST_ITEMS]
    chosen = sorted(able, key=lambda name: (abs(counts[name] - len(lists) / 2), name))[:TAGS]
    known = np.array([len(row) > 0 for row in lists])
    return {name: np.where(known, [name in row for row in lists], -1).astype(np.int64) for name in chosen}
