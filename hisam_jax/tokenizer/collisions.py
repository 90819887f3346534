"""Items that share all their codes: measured, and resolved by a named policy. No Python loop over items."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

import numpy as np

from hisam_jax.errors import UserError

Policy = Literal["digit", "next_nearest", "sinkhorn", "none"]
POLICIES = get_args(Policy)
SPAN = 65536  # items whose costs exist at a time
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
    for level in np.unique(last_I[last_I >= 0]):
        key_I = keys_of(codes_IL)
        crowded_I = np.bincount(key_I)[key_I] > 1 if balance else count_equals(codes_IL, order_I) > 0
        rows = order_I[(crowded_I & (last_I == level))[order_I]]
        group_I = keys_of(np.delete(codes_IL, level, axis=1))
        rows = rows[np.argsort(group_I[rows], kind="stable")]
        stays_I = np.ones(len(codes_IL), bool)
        stays_I[rows] = False
        for start, stop in _spans(group_I[rows]):
            part = rows[start:stop]
            cost_NK = costs(int(level), part)
            if balance:
                cost_NK = -sinkhorn(cost_NK, group_I[part])
            held = stays_I & (group_I >= group_I[part[0]]) & (group_I <= group_I[part[-1]])
            codes_IL[part, level] = _settle(
                group_I[part], codes_IL[part, level], cost_NK, group_I[held], codes_IL[held, level]
            )
    return codes_IL


def _settle(
    group_N: np.ndarray, code_N: np.ndarray, cost_NK: np.ndarray, held_group_H: np.ndarray, held_code_H: np.ndarray
) -> np.ndarray:
    """New codes [N]: each row its cheapest free code, in rounds: all propose, the first of equal proposals wins.

    A group's codes are free but for those that `held_*` lists. Where they run out, the last rows keep their code.
    """
    code_N, size = code_N.copy(), cost_NK.shape[1]
    groups, group_N = np.unique(group_N, return_inverse=True)
    place_H = np.minimum(np.searchsorted(groups, held_group_H), len(groups) - 1)
    ours_H = (groups[place_H] == held_group_H) & (held_code_H < size)
    taken_GK = np.zeros((len(groups), size), bool)
    taken_GK[place_H[ours_H], held_code_H[ours_H]] = True
    waiting = np.flatnonzero(rank_within(group_N) < (size - taken_GK.sum(1))[group_N])
    first_C = np.empty(len(groups) * size, np.int64)
    while len(waiting):
        wish = np.where(taken_GK[group_N[waiting]], np.inf, cost_NK[waiting]).argmin(1)
        place = group_N[waiting] * size + wish
        first_C[place[::-1]] = waiting[::-1]
        won = first_C[place] == waiting
        code_N[waiting[won]] = wish[won]
        taken_GK[group_N[waiting[won]], wish[won]] = True
        waiting = waiting[~won]
    return code_N


def _spans(sorted_N: np.ndarray) -> Iterator[tuple[int, int]]:
    """(start, stop) of parts of about SPAN rows that never cut a run of equal values."""
    start = 0
    while start < len(sorted_N):
        last = sorted_N[min(start + SPAN, len(sorted_N)) - 1]
        stop = int(np.searchsorted(sorted_N, last, side="right"))
        yield start, stop
        start = stop
