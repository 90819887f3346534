"""Items that share all their codes: measured, and resolved by a named policy. No Python loop over items."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np

from hisam_jax.errors import UserError

Policy = Literal["digit", "next_nearest", "sinkhorn", "none"]
POLICIES = get_args(Policy)
CELLS = 1 << 22  # costs that exist at a time, items times codes
Costs = Callable[[int, np.ndarray], np.ndarray]  # (level, item rows [n]) -> cost of each code of the level, [n, K]


@dataclasses.dataclass(frozen=True)
class Resolved:
    """Codes after a policy; `digit_I` counts items of equal codes, None where the policy needs none."""

    codes_IL: np.ndarray
    digit_I: np.ndarray | None = None
    digit_size: int = 0


def resolve(
    policy: Policy, codes_IL: np.ndarray, sizes: Sequence[int], costs: Costs, seed: int = 0, headroom: float = 2.0
) -> Resolved:
    """Applies `policy`; after `digit`, `next_nearest` and `sinkhorn` no two items are equal (digit included).

    `next_nearest` and `sinkhorn` move the last code that an item has; items for which no free code is left, and items
    with no code at all, are told apart by a digit. Which of equal items keeps its code is drawn from `seed`, never from
    the order of the catalogue, which can give a target away.

    Args:
        policy: one of POLICIES.
        codes_IL: int [I, L], before resolution; `sizes[l]` is the reserved code.
        sizes: codes of each level.
        costs: what an item's level would pay for each of its codes; asked only for items that can move.
        seed: for the order among equals.
        headroom: `digit_size` is at least this many times the longest run of equals, room for new items.
    """
    check_policy(policy)
    codes_IL = np.ascontiguousarray(codes_IL, np.int32)
    if policy == "none":
        return Resolved(codes_IL)
    order_I = np.random.default_rng(seed).permutation(len(codes_IL))
    if policy != "digit":
        level_I = last_level(codes_IL, sizes)
        codes_IL = relocate(codes_IL, level_I, sizes, costs, order_I, balance=policy == "sinkhorn")
    digit_I = count_equals(codes_IL, order_I)
    if policy != "digit" and not digit_I.any():
        return Resolved(codes_IL)
    return Resolved(codes_IL, digit_I, int(np.ceil((digit_I.max(initial=0) + 1) * headroom)))


def check_policy(policy: str) -> None:
    """Refuses an unknown policy with a `UserError` that lists those there are."""
    if policy not in POLICIES:
        raise UserError(f"unknown policy {policy!r}", field="collisions", expected=", ".join(POLICIES))


def keys_of(codes_IL: np.ndarray) -> np.ndarray:
    """Dense int64 [I]: equal for equal rows, in no particular order."""
    key_I, span = np.zeros(len(codes_IL), np.int64), 1
    for code_I in codes_IL.T.astype(np.int64):
        size = int(code_I.max(initial=0)) + 1
        if span * size > 2**62:
            key_I = _dense(key_I)
            span = len(codes_IL)
        key_I, span = key_I * size + code_I, span * size
    return _dense(key_I)


def order_of(key_I: np.ndarray) -> np.ndarray:
    """Stable argsort of integers >= 0. Where both fit, positions ride below the keys: sorting values is far faster."""
    items = max(len(key_I), 1)
    if int(key_I.max(initial=0)) >= 2**62 // items:
        return np.argsort(key_I, kind="stable")
    return np.sort(key_I * items + np.arange(items)[: len(key_I)]) % items


def _dense(key_I: np.ndarray) -> np.ndarray:
    order_I, dense_I = order_of(key_I), np.empty(len(key_I), np.int64)
    dense_I[order_I] = np.cumsum(_starts(key_I[order_I])) - 1
    return dense_I


def _starts(sorted_I: np.ndarray) -> np.ndarray:
    """Whether each value begins a run of equals."""
    new_I = np.ones(len(sorted_I), bool)
    new_I[1:] = sorted_I[1:] != sorted_I[:-1]
    return new_I


def count_equals(codes_IL: np.ndarray, order_I: np.ndarray) -> np.ndarray:
    """How many items with the same codes come before each item in `order_I`, int32 [I]."""
    key_I = keys_of(codes_IL)[order_I]
    sort_I = order_of(key_I)
    rank_I = np.empty(len(key_I), np.int32)
    rank_I[order_I[sort_I]] = rank_within(key_I[sort_I])
    return rank_I


def rank_within(sorted_I: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... within each run of equal values."""
    start_U = np.flatnonzero(_starts(sorted_I))
    return np.arange(len(sorted_I)) - np.repeat(start_U, np.diff(np.append(start_U, len(sorted_I))))


def collision(codes_IL: np.ndarray) -> dict[str, float]:
    """`rate` = (N - unique) / N and `share` = items that are not unique / N."""
    count_U = np.bincount(keys_of(codes_IL))
    items = max(len(codes_IL), 1)
    return {"rate": float((len(codes_IL) - len(count_U)) / items), "share": float(count_U[count_U > 1].sum() / items)}


def sinkhorn(cost_NK: np.ndarray, group_N: np.ndarray, temperature: float = 0.1, iterations: int = 30) -> np.ndarray:
    """Log transport plan [N, K] that uses the codes of each group equally often and gives each row mass 1.

    `group_N` is sorted. Costs are taken relative to each row's spread, so `temperature` has no unit; the scaling form
    needs no logarithms inside the loop, and exponents are cut where float64 would still carry their products.
    """
    spread_N1 = np.maximum(cost_NK.std(1, keepdims=True, dtype=np.float64), 1e-9)
    log_NK = np.maximum((cost_NK.min(1, keepdims=True) - cost_NK) / (spread_N1 * temperature), -200.0)
    start_G = np.flatnonzero(_starts(group_N))
    size_G = np.diff(np.append(start_G, len(group_N)))
    kernel_NK, row_N1 = np.exp(log_NK), np.ones((len(group_N), 1))
    for _ in range(iterations):
        column_GK = (size_G / cost_NK.shape[1])[:, None] / np.add.reduceat(kernel_NK * row_N1, start_G)
        row_N1 = 1 / np.einsum("nk,nk->n", kernel_NK, np.repeat(column_GK, size_G, 0))[:, None]
    return log_NK + np.log(row_N1) + np.repeat(np.log(column_GK), size_G, 0)


def last_level(codes_IL: np.ndarray, sizes: Sequence[int], back: int = 0) -> np.ndarray:
    """int [I]: the level of the last code that an item has, or of the `back`-th before it; -1 where there is none."""
    level_I, left_I = np.full(len(codes_IL), -1), np.full(len(codes_IL), back)
    for level in reversed(range(len(sizes))):
        has_I = codes_IL[:, level] < sizes[level]
        level_I[has_I & (left_I == 0)] = level
        left_I -= has_I
    return level_I


def relocate(
    codes_IL: np.ndarray,
    level_I: np.ndarray,
    sizes: Sequence[int],
    costs: Costs,
    order_I: np.ndarray,
    *,
    capacity: int = 1,
    balance: bool = False,
) -> np.ndarray:
    """Moves one code of each item whose codes too many others share, to the cheapest that has room.

    Items move one after another, in `order_I`. Where nothing has room they keep their code. With `balance` all items
    that share their codes are dealt out anew, equally over the codes; `capacity` is then what that takes.

    Args:
        codes_IL: int32 [I, L].
        level_I: the level that may move, -1 for an item that must stay.
        sizes: codes of each level.
        costs: asked for blocks of at most CELLS values.
        order_I: the first of equal items stay.
        capacity: how many items may share all codes.
        balance: see above.
    """
    codes_IL = codes_IL.copy()
    for level in np.unique(level_I[level_I >= 0]):
        size = sizes[level]
        rows = order_I[codes_IL[order_I, level] < size]
        group_R = keys_of(np.delete(codes_IL[rows], level, axis=1))
        sort_R = order_of(group_R)
        rows, group_R = rows[sort_R], group_R[sort_R]
        bucket_R = group_R * size + codes_IL[rows, level]
        rank_R, total_R = _rank_and_total(bucket_R)
        moves_R = (total_R > 1 if balance else rank_R >= capacity) & (level_I[rows] == level)
        members_G = np.bincount(group_R)
        capacity_G = -(-members_G // size) if balance else np.full(len(members_G), capacity)
        room_G = capacity_G * size - _occupied(bucket_R[~moves_R], size, capacity_G)
        mover_M = np.flatnonzero(moves_R)
        mover_M = mover_M[rank_within(group_R[mover_M]) < room_G[group_R[mover_M]]]
        for part in np.array_split(mover_M, range(CELLS // size or 1, len(mover_M), CELLS // size or 1)):
            if not len(part):
                break
            cost_NK = costs(int(level), rows[part])
            groups, group_N = np.unique(group_R[part], return_inverse=True)
            if balance:
                cost_NK = -sinkhorn(cost_NK, group_N)
            lo, hi = np.searchsorted(group_R, [groups[0], groups[-1] + 1])
            used_GK = _used(bucket_R[lo:hi][~moves_R[lo:hi]], groups, size)
            code_N = _settle(cost_NK, group_N, used_GK, capacity_G[groups])
            codes_IL[rows[part], level] = code_N
            bucket_R[part], moves_R[part] = group_R[part] * size + code_N, False
    return codes_IL


def _rank_and_total(bucket_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How many equal values come before each, and how many there are."""
    sort_R = order_of(bucket_R)
    rank_R, total_R = np.empty((2, len(bucket_R)), np.int64)
    start_U = np.flatnonzero(_starts(bucket_R[sort_R]))
    count_U = np.diff(np.append(start_U, len(sort_R)))
    rank_R[sort_R] = np.arange(len(sort_R)) - np.repeat(start_U, count_U)
    total_R[sort_R] = np.repeat(count_U, count_U)
    return rank_R, total_R


def _occupied(bucket_H: np.ndarray, size: int, capacity_G: np.ndarray) -> np.ndarray:
    """Room that is taken in each group, int [G]; a bucket that holds more than its capacity takes no more than that."""
    bucket_U, count_U = np.unique(bucket_H, return_counts=True)
    group_U = bucket_U // size
    taken_G = np.bincount(group_U, np.minimum(count_U, capacity_G[group_U]), minlength=len(capacity_G))
    return taken_G.astype(np.int64)


def _used(bucket_H: np.ndarray, groups: np.ndarray, size: int) -> np.ndarray:
    """Items that hold each code of each of `groups`, int [G, K]."""
    group_H, code_H = np.divmod(bucket_H, size)
    place_H = np.searchsorted(groups, group_H)
    ours_H = groups[place_H] == group_H
    cell_H = place_H[ours_H] * size + code_H[ours_H]
    return np.bincount(cell_H, minlength=len(groups) * size).reshape(len(groups), size)


def _settle(cost_NK: np.ndarray, group_N: np.ndarray, used_GK: np.ndarray, capacity_G: np.ndarray) -> np.ndarray:
    """Codes [N]: the rows of a group one after another, each its cheapest code with room; all groups side by side."""
    turn_N = rank_within(group_N)
    by_turn = np.argsort(turn_N, kind="stable")
    cost_NK, group_N = cost_NK[by_turn], group_N[by_turn]
    code_N, start = np.empty(len(group_N), np.int64), 0
    for count in np.bincount(turn_N):
        rows, start = slice(start, start + count), start + count
        group_T = group_N[rows]
        full_TK = used_GK[group_T] >= capacity_G[group_T, None]
        code_N[by_turn[rows]] = code_T = np.where(full_TK, np.inf, cost_NK[rows]).argmin(1)
        used_GK[group_T, code_T] += 1
    return code_N
