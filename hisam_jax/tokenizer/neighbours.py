"""A few items with the items nearest to them by each group of codes, and by what each branch rebuilds: for the report.

Codes are compared by what they decode to, in standardised features: every tokenizer can do that, whatever its code
vectors are, and equal codes are at distance 0. Nothing here is larger than `CANDIDATES` items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hisam_jax.tokenizer import collisions
from hisam_jax.tokenizer.base import BRANCHES, FeatureMap, FittedTokenizer, Level, PresentMap

CANDIDATES = 20000  # items among which neighbours are looked for
RIVALS = 1000  # items among which a rebuilt item is looked for
QUERIES, NEAREST, LOOKALIKES = 6, 8, 5
SHARED = "shared"


def neighbours(
    model: FittedTokenizer,
    codes_IL: np.ndarray,
    present: PresentMap,
    weight_I: np.ndarray,
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    """`QUERIES` items, each `{item, groups{group: {items, same}}}`: rows of the nearest, and how many have its codes.

    Same codes of the group come first, then by the distance between what its codes decode to; equals in random order.
    """
    levels = model.levels
    pool = np.sort(rng.permutation(len(codes_IL))[:CANDIDATES])
    chosen = choose(codes_IL[pool], levels, {m: values[pool] for m, values in present.items()}, weight_I[pool])
    found = [{"item": int(pool[row]), "groups": {}} for row in chosen]
    for group in dict.fromkeys(level.modality for level in levels):
        own = [index for index, level in enumerate(levels) if level.modality == group]
        key_P, first, decoded = _decoded(model, codes_IL[pool], group)
        has_P = (codes_IL[pool][:, own] < [levels[index].size for index in own]).any(1)
        for row, entry in zip(chosen, found, strict=True):
            if has_P[row]:
                near, same = nearest(int(row), key_P, decoded, has_P, rng)
                entry["groups"][group] = {"items": pool[near].tolist(), "same": same}
    return found


def choose(codes_PL: np.ndarray, levels: Sequence[Level], present: PresentMap, weight_P: np.ndarray) -> np.ndarray:
    """Rows of `QUERIES` items that most views show and users know: the heaviest, each of another first code."""
    views_P = np.sum([np.asarray(values) for values in present.values()], axis=0)
    order = np.lexsort((-weight_P, -views_P))
    able = order[codes_PL[order, 0] < levels[0].size]
    _, first = np.unique(codes_PL[able, 0], return_index=True)
    different = able[np.sort(first)]
    repeats = np.setdiff1d(able, different)
    return np.concatenate([different, repeats])[:QUERIES]


def nearest(
    row: int, key_P: np.ndarray, decoded_KF: np.ndarray | None, has_P: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, int]:
    """(rows of the `NEAREST` others, how many others have the same codes, shown or not).

    Args:
        row: whose neighbours.
        key_P: number of each row's codes, a row of `decoded_KF`.
        decoded_KF: what codes decode to; None where they decode to nothing, and only equal codes are near.
        has_P: which rows have codes at all.
        rng: for the order among equals.
    """
    same_P = key_P == key_P[row]
    if decoded_KF is None:
        distance_P = np.where(same_P, 0.0, np.inf)
    else:
        distance_K = np.square(decoded_KF - decoded_KF[key_P[row]]).sum(1)
        distance_P = np.where(same_P, -1.0, distance_K[key_P])
    distance_P = np.where(has_P, distance_P, np.inf)
    distance_P[row] = np.inf
    order = np.lexsort((rng.random(len(key_P)), distance_P))
    order = order[np.isfinite(distance_P[order])][:NEAREST]
    return order, int(same_P.sum()) - 1


def _decoded(
    model: FittedTokenizer, codes_PL: np.ndarray, group: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """(number of each row's codes of the group, first row of each number, what the codes decode to)."""
    reserved = np.array([level.size for level in model.levels], np.int32)
    mine = np.array([level.modality == group for level in model.levels])
    alone_PL = np.where(mine, codes_PL, reserved).astype(np.int32)
    _, first, key_P = np.unique(collisions.keys_of(alone_PL), return_index=True, return_inverse=True)
    rebuilt = model.reconstruct(alone_PL[first], "shared_only" if group == SHARED else "specific_only")
    parts = list(rebuilt.values()) if group == SHARED else [rebuilt[m] for m in (group,) if m in rebuilt]
    if not parts:
        return key_P, first, None
    return key_P, first, np.concatenate([part / part.shape[1] ** 0.5 for part in parts], axis=1)


def lookalikes(
    model: FittedTokenizer,
    features: FeatureMap,
    present: PresentMap,
    codes_IL: np.ndarray,
    queries: Sequence[int],
    rng: np.random.Generator,
) -> dict[str, Any]:
    """What each branch rebuilds, told by the real items that look most like it, for `queries` and in the mean.

    Returns:
        `items`: `[{item, modality, full, shared_only, specific_only, place}]`, each branch the rows of the `LOOKALIKES`
        items whose standardised features have the greatest cosine with what it rebuilds (a short code rebuilds too
        close to the mean for a distance to be of use), `place` the item's own among all, from 1, by branch;
        `rank`: modality -> branch -> `{median, first}`, the middle of all items' own places and the share in the first;
        `rivals`: modality -> the number of items compared, `RIVALS` and the queries at most.
    """
    report: dict[str, Any] = {"items": [], "rank": {}, "rivals": {}}
    for m in model.reconstruct(codes_IL[:1], "full"):
        rows = np.flatnonzero(present[m])
        wanted = [item for item in queries if present[m][item]]
        pool = np.union1d(rng.permutation(rows)[:RIVALS], wanted).astype(np.int64)
        if len(pool) < 2:
            continue
        target_PF = _unit(model.targets({name: values[pool] for name, values in features.items()})[m])
        rebuilt = {branch: _unit(model.reconstruct(codes_IL[pool], branch)[m]) for branch in BRANCHES}
        # A branch without codes rebuilds nothing, which nothing looks like.
        similar = {branch: guess_PF @ target_PF.T for branch, guess_PF in rebuilt.items() if guess_PF.any()}
        report["rank"][m] = {branch: _rank(score_PP) for branch, score_PP in similar.items()}
        report["rivals"][m] = len(pool)
        for item in wanted:
            at = int(np.searchsorted(pool, item))
            told = {branch: score_PP[at] for branch, score_PP in similar.items() if np.ptp(score_PP[at]) > 0}
            best = {b: pool[np.argsort(-score_P, kind="stable")[:LOOKALIKES]].tolist() for b, score_P in told.items()}
            place = {b: int((score_P > score_P[at]).sum()) + 1 for b, score_P in told.items()}
            report["items"].append({"item": int(item), "modality": m, **best, "place": place})
    return report


def _rank(score_PP: np.ndarray) -> dict[str, float]:
    """Median place of the diagonal in its row, from 1, and how often it is the first; equals rank in the middle."""
    own_P1 = np.diagonal(score_PP)[:, None]
    above_P = (score_PP > own_P1).sum(1) + ((score_PP == own_P1).sum(1) - 1) / 2
    return {"median": float(np.median(above_P)) + 1, "first": float((above_P < 0.5).mean())}


def _unit(x_NF: np.ndarray) -> np.ndarray:
    return x_NF / np.maximum(np.linalg.norm(x_NF, axis=1, keepdims=True), 1e-9)
