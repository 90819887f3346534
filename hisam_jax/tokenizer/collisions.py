"""Items that share all their codes: measured, and resolved by a named policy. No Python loop over items."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import numpy as np

from hisam_jax.errors import UserError

Policy = Literal["digit", "next_nearest", "sinkhorn", "none"]
POLICIES = get_args(Policy)
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
        costs: what an item's level would pay for each of its codes; asked only for items that may move.
        seed: for the order among equals.
        headroom: `digit_size` is at least this many times the longest run of equals, room for new items.
    """
    if policy not in POLICIES:
        raise UserError(f"unknown policy {policy!r}", field="collisions", expected=", ".join(POLICIES))
    codes_IL = np.ascontiguousarray(codes_IL, np.int32)
    order_I = np.random.default_rng(seed).permutation(len(codes_IL))
    if policy == "none":
        return Resolved(codes_IL)
    if policy != "digit":
        codes_IL = _move(codes_IL, sizes, costs, order_I, balance=policy == "sinkhorn")
    digit_I = count_equals(codes_IL, order_I)
    if policy != "digit" and not digit_I.any():
        return Resolved(codes_IL)
    return Resolved(codes_IL, digit_I, int(np.ceil((digit_I.max(initial=0) + 1) * headroom)))


def keys_of(codes_IL: np.ndarray) -> np.ndarray:
    """Dense int64 [I]: equal for equal rows, in no particular order."""
    key_I = np.zeros(len(codes_IL), np.int64)
    for code_I in codes_IL.T.astype(np.int64):
        _, key_I = np.unique(key_I * (int(code_I.max(initial=0)) + 1) + code_I, return_inverse=True)
    return key_I


def count_equals(codes_IL: np.ndarray, order_I: np.ndarray) -> np.ndarray:
    """How many items with the same codes come before each item in `order_I`, int32 [I]."""
    key_I = keys_of(codes_IL)[order_I]
    sort_I = np.argsort(key_I, kind="stable")
    rank_I = np.empty(len(key_I), np.int32)
    rank_I[order_I[sort_I]] = rank_within(key_I[sort_I])
    return rank_I


def rank_within(sorted_I: np.ndarray) -> np.ndarray:
    """0, 1, 2, ... within each run of equal values."""
    index_I = np.arange(len(sorted_I))
    new_I = np.ones(len(sorted_I), bool)
    new_I[1:] = sorted_I[1:] != sorted_I[:-1]
    return index_I - np.maximum.accumulate(np.where(new_I, index_I, 0))


def collision(codes_IL: np.ndarray) -> dict[str, float]:
    """`rate` = (N - unique) / N and `share` = items that are not unique / N."""
    count_U = np.bincount(keys_of(codes_IL))
    items = max(len(codes_IL), 1)
    return {"rate": float((len(codes_IL) - len(count_U)) / items), "share": float(count_U[count_U > 1].sum() / items)}


def sinkhorn(cost_NK: np.ndarray, group_N: np.ndarray, temperature: float = 0.1, iterations: int = 30) -> np.ndarray:
    """Log transport plan [N, K] that uses the codes of each group equally often and gives each row mass 1.

    `group_N` is sorted. Costs are taken relative to each row's spread, so `temperature` has no unit.
    """
    spread_N1 = np.maximum(cost_NK.std(1, keepdims=True), 1e-9)
    log_NK = -(cost_NK - cost_NK.min(1, keepdims=True)) / (spread_N1 * temperature)
    start_G = np.flatnonzero(np.concatenate([[True], group_N[1:] != group_N[:-1]]))
    size_G = np.diff(np.append(start_G, len(group_N)))
    target_G1 = np.log(size_G / cost_NK.shape[1])[:, None]
    for _ in range(iterations):
        peak_GK = np.maximum.reduceat(log_NK, start_G)
        sum_GK = np.add.reduceat(np.exp(log_NK - np.repeat(peak_GK, size_G, 0)), start_G)
        log_NK = log_NK + np.repeat(target_G1 - peak_GK - np.log(sum_GK), size_G, 0)
        peak_N1 = log_NK.max(1, keepdims=True)
        log_NK = log_NK - peak_N1 - np.log(np.exp(log_NK - peak_N1).sum(1, keepdims=True))
    return log_NK


def _move(
    codes_IL: np.ndarray, sizes: Sequence[int], costs: Costs, order_I: np.ndarray, *, balance: bool
) -> np.ndarray:
    """Moves the last code that each colliding item has. `balance` deals the codes of all of them out anew."""
    codes_IL = codes_IL.copy()
    has_IL = codes_IL < np.asarray(sizes)
    last_I = np.where(has_IL.any(1), len(sizes) - 1 - has_IL[:, ::-1].argmax(1), -1)
    for level in range(len(sizes)):
        key_I = keys_of(codes_IL)
        crowded_I = np.bincount(key_I)[key_I] > 1 if balance else count_equals(codes_IL, order_I) > 0
        rows = order_I[(crowded_I & (last_I == level))[order_I]]
        if not len(rows):
            continue
        group_I = keys_of(np.delete(codes_IL, level, axis=1))
        rows = rows[np.argsort(group_I[rows], kind="stable")]
        cost_NK = costs(level, rows)
        _settle(codes_IL, group_I, rows, level, -sinkhorn(cost_NK, group_I[rows]) if balance else cost_NK)
    return codes_IL


def _settle(codes_IL: np.ndarray, group_I: np.ndarray, rows: np.ndarray, level: int, cost_NK: np.ndarray) -> None:
    """Gives each of `rows` its cheapest free code, in rounds: all propose, the first of equal proposals wins.

    `group_I` is equal for items whose other codes are equal. An item that has tried every code shares its cheapest.
    """
    prefer_NK = np.argsort(cost_NK, axis=1, kind="stable")
    size = cost_NK.shape[1]
    settled_I = np.ones(len(codes_IL), bool)
    settled_I[rows] = False
    taken = np.unique(group_I[settled_I] * (size + 1) + codes_IL[settled_I, level])
    waiting = np.arange(len(rows))
    for turn in range(size):
        wish = group_I[rows[waiting]] * (size + 1) + prefer_NK[waiting, turn]
        winner = np.zeros(len(waiting), bool)
        winner[np.unique(wish, return_index=True)[1]] = True
        winner &= ~_among(wish, taken)
        codes_IL[rows[waiting[winner]], level] = prefer_NK[waiting[winner], turn]
        taken = np.union1d(taken, wish[winner])
        waiting = waiting[~winner]
        if not len(waiting):
            return
    codes_IL[rows[waiting], level] = prefer_NK[waiting, 0]


def _among(values: np.ndarray, sorted_values: np.ndarray) -> np.ndarray:
    if not len(sorted_values):
        return np.zeros(len(values), bool)
    at = np.minimum(np.searchsorted(sorted_values, values), len(sorted_values) - 1)
    return sorted_values[at] == values
