"""Lloyd's k-means over more rows than a device may hold: exact, block by block, without work that cannot matter.

A centre whose rows stayed the same stays where it is and keeps its inner product with every row. So each row remembers
the score of its own centre and an upper bound of all other scores; after a step only centres that moved are scored
again, and only rows whose own centre fell below that bound are compared with all. No triangle inequality, hence no
margin for rounding: the codes are those of plain Lloyd. The scheme is ours; its use falls to that of plain Lloyd when
every centre keeps moving.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hisam_jax.tokenizer import quantization

PART = 16384  # rows that a device sees at a time where they are streamed
TILE = 1024  # rows whose scores exist at a time
RESIDENT_BYTES = 2**31  # rows of no more bytes than this stay on the device
SEED_ROWS = 16384
SPLIT = 0.01  # share of the way to a row by which two centres of a cluster part
PRUNED_ROWS = 32768  # with fewer rows, compiling the pass over moved centres takes longer than it saves
SPARE = 16  # one row in so many of a tile is scored again at a time

Parts = list  # of [PART, D] float32: device arrays or host views, the last one padded with zero rows


class Rows(NamedTuple):
    """What is known of the rows of one part. A score is <x, c> - |c|^2 / 2, the greater the nearer."""

    code_N: jax.Array  # int32, -1 before the first step
    best_N: jax.Array  # score of the row's own centre
    rival_N: jax.Array  # no other centre's score is above this


class Clustering(NamedTuple):
    """Centres, each row's nearest of them, and the mean squared distance to it."""

    centres_KD: np.ndarray
    code_N: np.ndarray
    error: float


def split(x_ND: np.ndarray, resident_bytes: int = RESIDENT_BYTES) -> Parts:
    """`x_ND` (an array or a memory map) in parts: on the device where they fit in `resident_bytes`, else views."""
    size = min(PART, -(-max(len(x_ND), 1) // TILE) * TILE)
    parts = [x_ND[start : start + size] for start in range(0, len(x_ND), size)]
    if parts and len(parts[-1]) < size:
        short_ND = np.asarray(parts[-1], np.float32)
        parts[-1] = np.concatenate([short_ND, np.zeros((size - len(short_ND), x_ND.shape[1]), np.float32)])
    fits = 4 * x_ND.shape[0] * x_ND.shape[1] <= resident_bytes
    return [jax.device_put(np.ascontiguousarray(part, np.float32)) for part in parts] if fits else parts


def subtract(parts: Parts, rows: int, clustering: Clustering) -> None:
    """Replaces each part by what its rows' centres leave over; `rows` is how many are no padding."""
    size = len(clustering.centres_KD)
    for index, (part, code_P) in enumerate(zip(parts, codes_of(parts, clustering.code_N[:rows], size), strict=True)):
        left = _minus(as_input(part), clustering.centres_KD, code_P)
        parts[index] = left if isinstance(part, jax.Array) else np.asarray(left)


def codes_of(parts: Parts, code_N: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Each part's codes; those of padding are `size`, which is no centre's."""
    for index, part in enumerate(parts):
        code_P = code_N[index * len(part) : (index + 1) * len(part)]
        yield np.concatenate([code_P, np.full(len(part) - len(code_P), size, np.int32)])


def as_input(part: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    """A part as compiled code takes it; what is on the device stays there."""
    return part if isinstance(part, jax.Array) else np.asarray(part, np.float32)


@jax.jit
def _minus(x_ND: jax.Array, centres_KD: jax.Array, code_N: jax.Array) -> jax.Array:
    return x_ND - jnp.take(centres_KD, code_N, axis=0, mode="fill", fill_value=0)


def seeds(key: jax.Array, parts: Parts, rows: int, size: int) -> np.ndarray:
    """First centres [size, D] by k-means++ on `SEED_ROWS` rows at random."""
    key_rows, key_seeds = jax.random.split(key)
    generator = np.random.default_rng(np.asarray(jax.random.key_data(key_rows)))
    chosen = np.sort(generator.choice(rows, min(rows, SEED_ROWS), replace=False))
    whole = len(parts[0])
    x_SD = np.concatenate([np.asarray(part)[chosen[chosen // whole == i] % whole] for i, part in enumerate(parts)])
    return np.asarray(_seeds(key_seeds, x_SD.astype(np.float32), size))


_seeds = jax.jit(
    lambda key, x_SD, size: quantization.kmeans_plus_plus(key, x_SD, jnp.ones(len(x_SD)), size), static_argnums=2
)


def lloyd(parts: Parts, rows: int, centres_KD: np.ndarray, iterations: int) -> Clustering:
    """`iterations` of Lloyd from `centres_KD`, then each row's nearest; stops early when no row changes.

    Empty clusters get half of those of the greatest error. Of equally near centres a row takes the lowest. Unlike
    `quantization.lloyd`, which serves compiled code, it is steered from the host: it streams rows and knows no weights.

    Args:
        parts: of `split`.
        rows: how many rows are no padding.
        centres_KD: float32 [K, D].
        iterations: updates of the centres.
    """
    centres_KD, size = np.array(centres_KD, np.float32), len(centres_KD)
    moved_K, code_N, square_N = np.ones(size, bool), np.full(rows, -1, np.int32), None
    known = [_unknown(len(part)) for part in parts]
    for iteration in range(iterations + 1):
        known, total_KD = _pass(parts, rows, known, centres_KD, moved_K)
        before_N, code_N = code_N, _joined(known, 0, rows)
        if iteration == iterations:
            break
        changed_N, count_K = code_N != before_N, np.bincount(code_N, minlength=size)
        moved_K = np.zeros(size, bool)
        moved_K[code_N[changed_N]] = True
        moved_K[before_N[changed_N & (before_N >= 0)]] = True
        mean_KD = np.asarray(total_KD) / np.maximum(count_K, 1)[:, None].astype(np.float32)
        centres_KD = np.where((moved_K & (count_K > 0))[:, None], mean_KD, centres_KD)
        if (count_K == 0).any():
            square_N = squares(parts, rows) if square_N is None else square_N
            error_N = square_N - 2 * _joined(known, 1, rows)
            moved_K[_refill(parts, centres_KD, count_K == 0, code_N, error_N)] = True
        if not moved_K.any():
            break
    square_N = squares(parts, rows) if square_N is None else square_N
    error_N = np.maximum(square_N.astype(np.float64) - 2 * _joined(known, 1, rows), 0)
    return Clustering(centres_KD, code_N, float(error_N.mean()) if rows else 0.0)


def _refill(
    parts: Parts, centres_KD: np.ndarray, empty_K: np.ndarray, code_N: np.ndarray, error_N: np.ndarray
) -> np.ndarray:
    """Splits the clusters of the greatest error for empty centres (in place); returns which centres moved.

    Donor and empty centre part along the line to the donor's worst row. That row itself would be no centre: among many
    columns of noise a row is nearer to the mean of its cluster than to any other row.
    """
    error_N = np.maximum(error_N, 0)
    total_K = np.bincount(code_N, error_N, minlength=len(centres_KD))
    least, moved = 1e-6 * max(float(error_N.mean()), 1e-30), []
    for code in np.flatnonzero(empty_K):
        donor = int(total_K.argmax())
        rows = np.flatnonzero(code_N == donor)
        row = rows[error_N[rows].argmax()] if len(rows) else 0
        if not len(rows) or error_N[row] <= least:
            break
        apart_D = SPLIT * (np.asarray(parts[row // len(parts[0])][row % len(parts[0])]) - centres_KD[donor])
        centres_KD[code], centres_KD[donor] = centres_KD[donor] + apart_D, centres_KD[donor] - apart_D
        total_K[donor] /= 2
        error_N[row] = 0  # another split of this donor goes another way
        moved += [code, donor]
    return np.asarray(moved, np.int64)


def squares(parts: Parts, rows: int) -> np.ndarray:
    """|x|^2 of every row, float32 [N]."""
    return np.concatenate([np.asarray(_square(part)) for part in parts] or [np.zeros(0, np.float32)])[:rows]


_square = jax.jit(lambda x_ND: jnp.sum(jnp.square(x_ND.astype(jnp.float32)), -1))


def _unknown(size: int) -> Rows:
    return Rows(np.full(size, -1, np.int32), np.full(size, -np.inf, np.float32), np.full(size, np.inf, np.float32))


def _joined(known: Sequence[Rows], field: int, rows: int) -> np.ndarray:
    return np.concatenate([np.asarray(part[field]) for part in known] or [np.zeros(0, np.int32)])[:rows]


def _pass(
    parts: Parts, rows: int, known: Sequence[Rows], centres_KD: np.ndarray, moved_K: np.ndarray
) -> tuple[list[Rows], jax.Array]:
    """One assignment of all rows, and the sum [K, D] of the rows of each centre."""
    moved, size = np.flatnonzero(moved_K), len(centres_KD)
    count = -(-len(moved) // max(size // 4, 1)) * max(size // 4, 1)  # few different shapes to compile
    few = count < size and rows >= PRUNED_ROWS
    moved_M = np.concatenate([moved, np.full(count - len(moved), size)]).astype(np.int32) if few else None
    total_KD, after = jnp.zeros(centres_KD.shape), []
    for index, part in enumerate(parts):
        live = min(rows - index * len(part), len(part))
        row, total_KD = _assign_part(part, live, known[index], centres_KD, moved_M, moved_K, total_KD)
        after.append(row)
    return after, total_KD


@jax.jit
def _assign_part(
    x_ND: jax.Array,
    live: jax.Array,
    known: Rows,
    centres_KD: jax.Array,
    moved_M: jax.Array | None,
    moved_K: jax.Array,
    total_KD: jax.Array,
) -> tuple[Rows, jax.Array]:
    size = len(centres_KD)
    half_K = 0.5 * jnp.sum(centres_KD**2, -1)
    if moved_M is not None:
        fresh_MD = jnp.take(centres_KD, moved_M, axis=0, mode="fill", fill_value=0)
        half_M = jnp.take(half_K, moved_M, mode="fill", fill_value=jnp.inf)

    def tile(total_KD: jax.Array, part: tuple[jax.Array, jax.Array, Rows]) -> tuple[jax.Array, Rows]:
        x_TD, live_T, before = part
        x_TD = x_TD.astype(jnp.float32)
        if moved_M is None:
            after = _score_all(x_TD, centres_KD, half_K)
        else:
            after = _score_moved(x_TD, before, fresh_MD, half_M, moved_M, moved_K)
            after = _score_doubtful(x_TD, after, live_T & (after.best_N <= before.rival_N), centres_KD, half_K)
        return quantization.add_by_code(total_KD, x_TD, jnp.where(live_T, after.code_N, size)), after

    tiles = jax.tree.map(lambda v: v.reshape(-1, TILE, *v.shape[1:]), (x_ND, jnp.arange(len(x_ND)) < live, known))
    total_KD, after = jax.lax.scan(tile, total_KD, tiles)
    return jax.tree.map(lambda v: v.reshape(-1, *v.shape[2:]), after), total_KD


def _scores(x_TD: jax.Array, centres_KD: jax.Array, half_K: jax.Array) -> jax.Array:
    return jnp.matmul(x_TD, centres_KD.T, precision=quantization.PRECISION) - half_K


def _top_two(score_TK: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(index of the best, the lowest of equals; its score; the next score)."""
    index_T = jnp.argmax(score_TK, axis=1).astype(jnp.int32)
    others_TK = jnp.where(jnp.arange(score_TK.shape[1]) == index_T[:, None], -jnp.inf, score_TK)
    return index_T, jnp.max(score_TK, axis=1), jnp.max(others_TK, axis=1)


def _score_all(x_TD: jax.Array, centres_KD: jax.Array, half_K: jax.Array) -> Rows:
    return Rows(*_top_two(_scores(x_TD, centres_KD, half_K)))


def _score_moved(
    x_TD: jax.Array, before: Rows, fresh_MD: jax.Array, half_M: jax.Array, moved_M: jax.Array, moved_K: jax.Array
) -> Rows:
    """The best of a row's own centre and those that moved; right unless it falls below what the others may have."""
    index_T, best_T, next_T = _top_two(_scores(x_TD, fresh_MD, half_M))
    challenger_T = moved_M[index_T]
    own_T = jnp.where(moved_K[before.code_N], -jnp.inf, before.best_N)
    keeps_T = (own_T > best_T) | ((own_T == best_T) & (before.code_N < challenger_T))
    rival_T = jnp.maximum(before.rival_N, jnp.where(keeps_T, best_T, jnp.maximum(next_T, own_T)))
    return Rows(jnp.where(keeps_T, before.code_N, challenger_T), jnp.maximum(own_T, best_T), rival_T)


def _score_doubtful(
    x_TD: jax.Array, after: Rows, doubtful_T: jax.Array, centres_KD: jax.Array, half_K: jax.Array
) -> Rows:
    """`after`, its doubtful rows compared with all centres, a few gathered at a time."""
    few = len(x_TD) // SPARE

    def settle(carry: tuple[Rows, jax.Array]) -> tuple[Rows, jax.Array]:
        rows, doubtful_T = carry
        row_S = jnp.nonzero(doubtful_T, size=few, fill_value=len(x_TD))[0]
        again = _score_all(jnp.take(x_TD, row_S, axis=0, mode="clip"), centres_KD, half_K)
        rows = jax.tree.map(lambda old, new: old.at[row_S].set(new, mode="drop"), rows, again)
        return rows, doubtful_T.at[row_S].set(False, mode="drop")

    return jax.lax.while_loop(lambda carry: jnp.any(carry[1]), settle, (after, doubtful_T))[0]
