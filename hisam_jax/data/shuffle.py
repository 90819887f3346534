"""A shuffled order with random access: any place's row without a table of the others."""

from __future__ import annotations

import numpy as np

ROUNDS = 6


def shuffled(place_P: np.ndarray, size: int, seed: int) -> np.ndarray:
    """int64 `[P]`: where `0 <= place < size` go under the permutation of that size that `seed` names.

    A Feistel network over the smallest power of four that holds `size`, walked until it is inside (Black and Rogaway
    2002, "Ciphers with arbitrary finite domains"); its round functions are multiplicative hashes [ours].
    """
    half = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    keys = np.random.SeedSequence((seed, size)).generate_state(2 * ROUNDS, np.uint64).reshape(ROUNDS, 2)
    row_P = np.asarray(place_P, np.uint64).copy()
    outside_P = np.ones(len(row_P), bool)
    while outside_P.any():
        row_P[outside_P] = _network(row_P[outside_P], np.uint64(half), keys)
        outside_P = row_P >= size
    return row_P.astype(np.int64)


def _network(x_P: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left_P, right_P = x_P >> half, x_P & mask
    for add, multiply in keys:
        mixed_P = (right_P + add) * (multiply | np.uint64(1))
        mixed_P = (mixed_P ^ (mixed_P >> np.uint64(32))) * np.uint64(0x9E3779B97F4A7C15)
        left_P, right_P = right_P, left_P ^ (mixed_P >> (np.uint64(64) - half))
    return (left_P << half) | right_P
