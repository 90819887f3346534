"""k-means whose clusters are fitted with as many rows each: odd rows cannot keep centres to themselves.

Why: what a level leaves over lies like noise around zero in as many directions as there are features, and k-means then
spends its centres on single far rows (235 of 256 on MovieLens-1M's fourth level). The scheme is that of OneRec (arXiv
2502.18965): centre after centre takes the nearest of the rows that are left, up to its share, then moves to their mean.
Ours: k-means++ starts, a random order of the centres, and that in the end a row's code is its nearest centre, whatever
cluster it was fitted in, as new items need it.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from hisam_jax.tokenizer import clustering, quantization
from hisam_jax.tokenizer.clustering import Clustering, Parts

CENTRES = 64  # whose distances to all rows exist at a time


def balanced(key: jax.Array, parts: Parts, rows: int, centres_KD: np.ndarray, iterations: int) -> Clustering:
    """`iterations` of sharing rows out and moving centres, then each row's nearest; stops early when nothing changes.

    Args:
        key: for the order in which centres choose, the same in each iteration.
        parts: of `clustering.split`.
        rows: how many rows are no padding.
        centres_KD: float32 [K, D] to start from, K at most `rows`.
        iterations: updates of the centres.
    """
    order_K = np.asarray(jax.random.permutation(key, len(centres_KD)))
    code_N = np.full(rows, -1, np.int32)
    for _ in range(iterations):
        before_N, code_N = code_N, share_out(parts, rows, centres_KD, order_K)
        if np.array_equal(before_N, code_N):
            break
        centres_KD = _means(parts, code_N, len(centres_KD))
    return clustering.lloyd(parts, rows, centres_KD, iterations=0)


def share_out(parts: Parts, rows: int, centres_KD: np.ndarray, order_K: np.ndarray) -> np.ndarray:
    """Cluster of each row, int32 [N]: sizes differ by one at most; centres choose one by one, as `order_K` has them."""
    share_K = np.diff(np.linspace(0, rows, len(centres_KD) + 1).astype(int))
    free_N, code_N = np.arange(rows), np.empty(rows, np.int32)
    for centre, distance_N in _distances(parts, rows, centres_KD, order_K):
        taken = np.argpartition(distance_N[free_N], share_K[centre] - 1)[: share_K[centre]]
        code_N[free_N[taken]] = centre
        free_N = np.delete(free_N, taken)
    return code_N


def _distances(
    parts: Parts, rows: int, centres_KD: np.ndarray, order_K: np.ndarray
) -> Iterator[tuple[int, np.ndarray]]:
    for start in range(0, len(order_K), CENTRES):
        block = order_K[start : start + CENTRES]
        found = [np.asarray(_squared(clustering.as_input(part), centres_KD[block])) for part in parts]
        yield from zip(block, np.concatenate(found)[:rows].T, strict=True)


def _means(parts: Parts, code_N: np.ndarray, size: int) -> np.ndarray:
    total_KD = jnp.zeros((size, parts[0].shape[1]))
    for part, code_P in zip(parts, clustering.codes_of(parts, code_N, size), strict=True):
        total_KD = _add(total_KD, clustering.as_input(part), code_P)
    return np.asarray(total_KD) / np.bincount(code_N, minlength=size)[:, None].astype(np.float32)


_squared = jax.jit(quantization.squared_distances)
_add = jax.jit(quantization.add_by_code)
