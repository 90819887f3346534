"""Nearest neighbours of any number of rows by brute force, in blocks of both sides with a running best k.

Exact within float32 only: candidates are ranked by inner products after the mean of the keys is taken away, which tell
no squared distances apart that differ by less than about 1e-7 of the squared distance to that mean. Of 2,000 rows of 8
columns in two clusters at +-40, 25 neighbours are all found at a spread of .1 and one in seven at a spread of .01.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from hisam_jax.errors import UserError
from hisam_jax.tokenizer import base, quantization

QUERIES, KEYS = 512, 8192  # rows of a block; scores exist for one pair of blocks at a time
MORE = 8  # candidates beyond k whose distances are computed again without cancellation
NONE = -1


def nearest_neighbours(
    query_QD: np.ndarray,
    key_ND: np.ndarray,
    k: int,
    own_Q: np.ndarray | None = None,
    *,
    query_block: int = QUERIES,
    key_block: int = KEYS,
) -> tuple[np.ndarray, np.ndarray]:
    """(key rows int32 [Q, k], squared distances float32 [Q, k]), nearest first; equals by the lowest row.

    Candidates are found by inner products; the distances of the best `k + MORE` are then taken from the differences, so
    that equal keys are exactly equal. -1 and infinity where there are fewer than k keys.

    Args:
        query_QD: rows to find neighbours of; an array or a memory map.
        key_ND: rows to find them among.
        k: how many.
        own_Q: for each query a key that is no neighbour of it (itself), or -1.
        query_block: queries at a time.
        key_block: keys at a time.

    Raises:
        UserError: a width that differs, or `k` below 1.
    """
    if query_QD.ndim != 2 or key_ND.ndim != 2 or query_QD.shape[1] != key_ND.shape[1]:
        raise UserError(f"queries {query_QD.shape}, keys {key_ND.shape}", expected="[Q, D] and [N, D]")
    if k < 1:
        raise UserError(f"{k} neighbours", field="neighbours", expected="at least 1")
    own_Q = np.full(len(query_QD), NONE, np.int32) if own_Q is None else np.asarray(own_Q, np.int32)
    mean_D = np.asarray(key_ND[:: max(len(key_ND) // 4096, 1)], np.float32).mean(0) if len(key_ND) else 0.0
    rows, distances = [np.zeros((0, k), np.int32)], [np.zeros((0, k), np.float32)]
    for start, stop in base.blocks(len(query_QD), query_block):
        query_BD = base.padded(np.asarray(query_QD[start:stop], np.float32) - mean_D, query_block)
        own_B = base.padded(own_Q[start:stop], query_block)
        row_BC = _candidates(query_BD, key_ND, mean_D, k + MORE, own_B, key_block)[: stop - start]
        found = _exact(np.asarray(query_QD[start:stop], np.float32), key_ND, row_BC, k)
        rows.append(found[0])
        distances.append(found[1])
    return np.concatenate(rows), np.concatenate(distances)


def _candidates(
    query_BD: np.ndarray, key_ND: np.ndarray, mean_D: np.ndarray | float, count: int, own_B: np.ndarray, key_block: int
) -> np.ndarray:
    best = (np.full((len(query_BD), count), -np.inf, np.float32), np.full((len(query_BD), count), NONE, np.int32))
    for start, stop in base.blocks(len(key_ND), key_block):
        # The mean leaves no distance changed; without it inner products drown what tells rows apart.
        key_BD = base.padded(np.asarray(key_ND[start:stop], np.float32) - mean_D, key_block)
        best = _merge(best, query_BD, key_BD, start, stop - start, own_B)
    return np.asarray(best[1])


@functools.partial(jax.jit, donate_argnums=0)
def _merge(
    best: tuple[jax.Array, jax.Array],
    query_BD: jax.Array,
    key_MD: jax.Array,
    first: jax.Array,
    live: jax.Array,
    own_B: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The best of those so far and one block of keys; top_k keeps the earlier of equals."""
    row_M = first + jnp.arange(len(key_MD), dtype=jnp.int32)
    score_BM = jnp.matmul(query_BD, key_MD.T, precision=quantization.PRECISION) - 0.5 * jnp.sum(key_MD**2, -1)
    barred_BM = (row_M[None] == own_B[:, None]) | (row_M >= first + live)[None]
    score_BC, at_BC = jax.lax.top_k(jnp.where(barred_BM, -jnp.inf, score_BM), min(best[0].shape[1], len(key_MD)))
    fresh_BC = jnp.where(jnp.isfinite(score_BC), row_M[at_BC], NONE)
    score_BC, row_BC = jnp.concatenate([best[0], score_BC], 1), jnp.concatenate([best[1], fresh_BC], 1)
    score_BC, at_BC = jax.lax.top_k(score_BC, best[0].shape[1])
    return score_BC, jnp.take_along_axis(row_BC, at_BC, 1)


def _exact(query_BD: np.ndarray, key_ND: np.ndarray, row_BC: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The nearest k of a few candidates, by differences; a slice of queries at a time keeps the gathered keys small."""
    rows, distances = [], []
    for start, stop in base.blocks(len(query_BD), 128):
        row_SC = row_BC[start:stop]
        if not len(key_ND):
            distance_SC = np.full(row_SC.shape, np.inf, np.float32)
        else:
            key_SCD = np.asarray(key_ND[np.maximum(row_SC, 0)], np.float32)
            square_SC = np.square(key_SCD - query_BD[start:stop, None]).sum(-1)
            distance_SC = np.where(row_SC >= 0, square_SC, np.inf).astype(np.float32)
        order_SK = np.lexsort((row_SC, distance_SC))[:, :k]
        rows.append(np.take_along_axis(row_SC, order_SK, 1))
        distances.append(np.take_along_axis(distance_SC, order_SK, 1))
    return np.concatenate(rows).astype(np.int32), np.concatenate(distances)
