"""The tree of semantic IDs to browse: what is below a prefix, and a few items as examples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hisam_jax.inference.engine import Items

LOOKED = 256  # items below a prefix, among which the most popular are its examples


class Branch(NamedTuple):
    """A prefix that has served items: its last code, how many, rows of a few."""

    code: int
    items: int
    examples: list[int]


def below(items: Items, prefix: Sequence[int], examples: int) -> tuple[Branch, list[tuple[int, int, int]]] | None:
    """`(the prefix, its children)`, a child as `(code, level, node)`, those with served items; None: there is none."""
    tree, node = items.tree, 0
    if len(prefix) > len(tree.sizes):
        return None
    for level, code in enumerate(prefix):
        start, end = (int(tree.starts[level][node + i]) for i in (0, 1))
        place = start + int(np.searchsorted(tree.codes[level][start:end], code))
        if place == end or tree.codes[level][place] != code:
            return None
        node = place
    level = len(prefix)
    whole = branch(items, prefix[-1] if prefix else -1, level - 1, node, examples)
    if not whole.items:
        return None
    return whole, _children(items, level, node) if level < len(tree.sizes) else []


def branch(items: Items, code: int, level: int, node: int, examples: int) -> Branch:
    """One prefix, described."""
    start, end = _reach(items, level, node)
    rows = items.tree.item_order[start:end]
    near = rows[:LOOKED][np.asarray(items.facts.servable_I)[rows[:LOOKED]]]
    best = near[np.argsort(-np.asarray(items.popularity_I)[near], kind="stable")][:examples]
    return Branch(code, int(items.served_before[end] - items.served_before[start]), best.tolist())


def _children(items: Items, level: int, node: int) -> list[tuple[int, int, int]]:
    tree, before = items.tree, items.served_before
    children = np.arange(*(int(tree.starts[level][node + i]) for i in (0, 1)))
    served = before[tree.reach[level][children + 1]] > before[tree.reach[level][children]]
    return [(int(tree.codes[level][child]), level, int(child)) for child in children[served]]


def _reach(items: Items, level: int, node: int) -> tuple[int, int]:
    if level < 0:
        return 0, int(items.tree.leaf_start[-1])
    reach = items.tree.reach[level]
    return int(reach[node]), int(reach[node + 1])
