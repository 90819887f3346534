"""Residual quantisation: nearest codes, straight-through, moving-average codebooks, k-means and dead codes.

`Book` is explicit state: pure functions take it and return the next. Weights are 1 for a row that counts, else 0.
Moving averages: van den Oord et al. 2017, appendix A; dead-code re-seeding and its threshold: ours.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PRECISION = jax.lax.Precision.HIGHEST  # nearest codes need all of float32, which GPU and TPU products drop by default


class Book(NamedTuple):
    """A codebook and its moving averages."""

    vectors_KD: jax.Array
    count_K: jax.Array  # rows per batch that took each code, moving average
    total_KD: jax.Array  # their sum, moving average


class Quantized(NamedTuple):
    """Residual quantisation of N rows."""

    codes_NL: jax.Array  # int32
    sum_ND: jax.Array  # sum of all chosen vectors
    residuals_LND: jax.Array  # what each level saw
    chosen_LND: jax.Array  # what each level chose


def squared_distances(x_ND: jax.Array, vectors_KD: jax.Array) -> jax.Array:
    """||x - c||^2 [N, K], never negative."""
    cross_NK = jnp.matmul(x_ND, vectors_KD.T, precision=PRECISION)
    return jnp.maximum(jnp.sum(x_ND**2, -1)[:, None] - 2 * cross_NK + jnp.sum(vectors_KD**2, -1)[None, :], 0.0)


def nearest(x_ND: jax.Array, vectors_KD: jax.Array) -> jax.Array:
    """Index of the nearest vector, int32 [N]; the lowest of equals."""
    score_NK = jnp.matmul(x_ND, vectors_KD.T, precision=PRECISION) - 0.5 * jnp.sum(vectors_KD**2, -1)[None, :]
    return jnp.argmax(score_NK, axis=1).astype(jnp.int32)


def residual_quantize(x_ND: jax.Array, books: Sequence[jax.Array]) -> Quantized:
    """Each level of `books` ([K_l, D] each) quantises what the levels before it left over. No gradient for codes."""
    residual_ND, codes, residuals, chosen = x_ND, [], [], []
    for vectors_KD in map(jnp.asarray, books):
        code_N = nearest(jax.lax.stop_gradient(residual_ND), vectors_KD)
        picked_ND = vectors_KD[code_N]
        codes.append(code_N)
        residuals.append(residual_ND)
        chosen.append(picked_ND)
        residual_ND = residual_ND - jax.lax.stop_gradient(picked_ND)
    if not codes:
        empty = jnp.zeros((0, *x_ND.shape), x_ND.dtype)
        return Quantized(jnp.zeros((len(x_ND), 0), jnp.int32), jnp.zeros_like(x_ND), empty, empty)
    chosen_LND = jnp.stack(chosen)
    return Quantized(jnp.stack(codes, 1), chosen_LND.sum(0), jnp.stack(residuals), chosen_LND)


def look_up(vectors_KD: np.ndarray, code_N: np.ndarray) -> np.ndarray:
    """The vector of each code [N, D]; zero for the reserved code K."""
    known_N1 = (code_N < len(vectors_KD))[:, None]
    return np.where(known_N1, vectors_KD[np.minimum(code_N, len(vectors_KD) - 1)], 0).astype(np.float32)


def add_by_code(total_KD: jax.Array, x_ND: jax.Array, code_N: jax.Array) -> jax.Array:
    """`total_KD` with every row of `x_ND` added to that of its code; a code of K or more adds nothing.

    A scatter on the CPU, where a product with one-hot codes would cost as much as finding them; that product elsewhere,
    where scattered additions collide and come out differently from run to run.
    """

    def product(total_KD: jax.Array, x_ND: jax.Array, code_N: jax.Array) -> jax.Array:
        one_hot_NK = jax.nn.one_hot(code_N, len(total_KD), dtype=x_ND.dtype)
        return total_KD + jnp.matmul(one_hot_NK.T, x_ND, precision=PRECISION)

    def scatter(total_KD: jax.Array, x_ND: jax.Array, code_N: jax.Array) -> jax.Array:
        return total_KD.at[code_N].add(x_ND, mode="drop")

    return jax.lax.platform_dependent(total_KD, x_ND, code_N, cpu=scatter, default=product)


def straight_through(x_ND: jax.Array, quantized_ND: jax.Array) -> jax.Array:
    """The value of `quantized_ND` with the gradient of `x_ND`."""
    return x_ND + jax.lax.stop_gradient(quantized_ND - x_ND)


def commitment_losses(quantized: Quantized, weight_N: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(commitment, codebook): squared norm of what each level leaves, summed over levels, meaned over rows.

    The first moves the input towards the code, the second the code towards the input.
    """
    stop = jax.lax.stop_gradient
    inputs_LND, codes_LND = quantized.residuals_LND, quantized.chosen_LND
    to_code_N = jnp.sum((inputs_LND - stop(codes_LND)) ** 2, axis=(0, 2))
    to_input_N = jnp.sum((stop(inputs_LND) - codes_LND) ** 2, axis=(0, 2))
    return masked_mean(to_code_N, weight_N), masked_mean(to_input_N, weight_N)


def masked_mean(row_N: jax.Array, weight_N: jax.Array) -> jax.Array:
    """Mean of `row_N` over rows of weight 1; 0 where there are none."""
    return jnp.sum(jnp.where(weight_N > 0, row_N, 0.0)) / jnp.maximum(jnp.sum(weight_N), 1)


def make_book(vectors_KD: jax.Array, rows_per_batch: jax.Array | float) -> Book:
    """A book whose codes are all taken equally often."""
    count_K = jnp.full(len(vectors_KD), rows_per_batch / len(vectors_KD), vectors_KD.dtype)
    return Book(vectors_KD, count_K, vectors_KD * count_K[:, None])


def ema_update(book: Book, x_ND: jax.Array, code_N: jax.Array, weight_N: jax.Array, decay: float = 0.99) -> Book:
    """One moving-average step; a code that nothing has taken for long keeps its vector."""
    one_hot_NK = jax.nn.one_hot(code_N, len(book.count_K), dtype=x_ND.dtype) * weight_N[:, None]
    count_K = decay * book.count_K + (1 - decay) * one_hot_NK.sum(0)
    sum_KD = jnp.matmul(one_hot_NK.T, jnp.where(weight_N[:, None] > 0, x_ND, 0.0), precision=PRECISION)
    total_KD = decay * book.total_KD + (1 - decay) * sum_KD
    alive_K = count_K > 1e-6
    vectors_KD = jnp.where(alive_K[:, None], total_KD / jnp.where(alive_K, count_K, 1.0)[:, None], book.vectors_KD)
    return Book(vectors_KD, count_K, total_KD)


def perplexity(count_K: jax.Array) -> jax.Array:
    """Exponential of the entropy of counts: how many codes, equally used, would be used as much. 0 without any."""
    share_K = count_K / jnp.maximum(jnp.sum(count_K), 1e-30)
    entropy = -jnp.sum(jnp.where(share_K > 0, share_K * jnp.log(jnp.where(share_K > 0, share_K, 1.0)), 0.0))
    return jnp.where(jnp.sum(count_K) > 0, jnp.exp(entropy), 0.0)


def reseed_dead(
    key: jax.Array, book: Book, x_ND: jax.Array, error_N: jax.Array, weight_N: jax.Array, threshold: float
) -> tuple[Book, jax.Array]:
    """(book, how many were dead): codes taken less than `threshold` times as often as the average get live inputs.

    Inputs are drawn in proportion to their quantisation error, so that new codes land where they are missed.
    """
    size = len(book.count_K)
    average = jnp.sum(weight_N) / size
    dead_K = (book.count_K < threshold * average) & (jnp.sum(weight_N) > 0)
    fresh_KD = x_ND[_draw(key, jnp.where(weight_N > 0, error_N + 1e-12, 0.0), size)]
    return Book(
        jnp.where(dead_K[:, None], fresh_KD, book.vectors_KD),
        jnp.where(dead_K, average, book.count_K),
        jnp.where(dead_K[:, None], fresh_KD * average, book.total_KD),
    ), jnp.sum(dead_K)


def kmeans_plus_plus(key: jax.Array, x_ND: jax.Array, weight_N: jax.Array, size: int) -> jax.Array:
    """`size` rows of weight 1: each the best of a few drawn in proportion to their squared distance from those before.

    The greedy form of k-means++ (Arthur and Vassilvitskii 2007); drawing one at a time leaves whole clusters without a
    centre. When every row is already taken the rest repeat taken rows.
    """
    trials = 2 + int(math.log(size))
    live_N = (weight_N > 0).astype(x_ND.dtype)
    keys = jax.random.split(key, size)
    squares_N = jnp.sum(x_ND**2, -1)

    def draw(index: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        chosen_K, distance_N = carry
        pick_T = _draw(keys[index], (distance_N + 1e-20) * live_N, trials)
        fresh_TN = squares_N[pick_T][:, None] + squares_N[None] - 2 * x_ND[pick_T] @ x_ND.T
        fresh_TN = jnp.clip(fresh_TN, 0.0, distance_N[None])
        best = jnp.argmin(fresh_TN @ live_N)
        return chosen_K.at[index].set(pick_T[best]), fresh_TN[best]

    first = _draw(keys[0], live_N, 1)[0]
    start = (jnp.zeros(size, jnp.int32).at[0].set(first), jnp.sum((x_ND - x_ND[first]) ** 2, -1))
    chosen_K, _ = jax.lax.fori_loop(1, size, draw, start)
    return x_ND[chosen_K]


def _draw(key: jax.Array, mass_N: jax.Array, count: int) -> jax.Array:
    """`count` rows, each in proportion to its mass, by one cumulative sum: far cheaper than Gumbel noise per row."""
    ceiling_N = jnp.cumsum(mass_N)
    row = jnp.searchsorted(ceiling_N, jax.random.uniform(key, (count,)) * ceiling_N[-1], side="right")
    return jnp.minimum(row, len(mass_N) - 1).astype(jnp.int32)


def lloyd_step(
    x_ND: jax.Array, weight_N: jax.Array, vectors_KD: jax.Array, block: int = 4096
) -> tuple[jax.Array, jax.Array]:
    """(new centres, inertia of the old ones); empty clusters take the worst served rows; `block` divides N."""
    size, width = vectors_KD.shape

    def accumulate(carry, part):
        total_KD, count_K, inertia = carry
        part_x, part_w = part
        code = nearest(part_x, vectors_KD)
        error = jnp.sum((part_x - vectors_KD[code]) ** 2, -1) * part_w
        live = jnp.where(part_w > 0, code, size)
        count_K = count_K.at[live].add(part_w, mode="drop")
        return (add_by_code(total_KD, part_x, live), count_K, inertia + error.sum()), error

    parts = (x_ND.reshape(-1, block, width), weight_N.reshape(-1, block))
    start = (jnp.zeros_like(vectors_KD), jnp.zeros(size, x_ND.dtype), jnp.zeros((), x_ND.dtype))
    (total_KD, count_K, inertia), error = jax.lax.scan(accumulate, start, parts)
    worst_K = jax.lax.top_k(error.reshape(-1), min(size, len(x_ND)))[1]
    empty_K = count_K == 0
    spare_KD = x_ND[worst_K[jnp.minimum(jnp.cumsum(empty_K) - 1, len(worst_K) - 1)]]
    return jnp.where(empty_K[:, None], spare_KD, total_KD / jnp.maximum(count_K, 1)[:, None]), inertia


@functools.partial(jax.jit, static_argnums=(3, 4))
def kmeans(key: jax.Array, x_ND: jax.Array, weight_N: jax.Array, size: int, iterations: int = 10) -> jax.Array:
    """Centres [size, D] by k-means++ (on at most 16,384 rows) and Lloyd."""
    key_rows, key_seeds = jax.random.split(key)
    seen = min(len(x_ND), 16384)
    log_w_N = jnp.where(weight_N > 0, 0.0, -jnp.inf) + jax.random.gumbel(key_rows, (len(x_ND),))
    rows = jax.lax.top_k(log_w_N, seen)[1]
    return lloyd(x_ND, weight_N, kmeans_plus_plus(key_seeds, x_ND[rows], weight_N[rows], size), iterations)


@functools.partial(jax.jit, static_argnums=3)
def lloyd(x_ND: jax.Array, weight_N: jax.Array, centres_KD: jax.Array, iterations: int) -> jax.Array:
    """Centres after `iterations` of Lloyd; distances exist for one block of rows at a time.

    Pure JAX of fixed shapes with weights, so that it runs inside compiled code; all rows lie on the device, and an
    empty cluster takes a worst served row. `clustering.lloyd` is the other one: steered from the host, it streams rows,
    skips work that cannot matter and splits clusters, which compiled code of fixed shapes cannot.
    """
    block = min(4096, max(len(x_ND), 1))
    missing = -len(x_ND) % block
    x_ND = jnp.pad(x_ND, ((0, missing), (0, 0)))
    weight_N = jnp.pad(weight_N.astype(x_ND.dtype), (0, missing))
    step = lambda _, centres: lloyd_step(x_ND, weight_N, centres, block)[0]  # noqa: E731
    return jax.lax.fori_loop(0, iterations, step, centres_KD)


def residual_kmeans(
    key: jax.Array, x_ND: jax.Array, weight_N: jax.Array, sizes: Sequence[int], iterations: int = 10
) -> list[jax.Array]:
    """Centres of each level, each fitted to what the levels before it leave over."""
    books = []
    for depth, size in enumerate(sizes):
        centres_KD = kmeans(jax.random.fold_in(key, depth), x_ND, weight_N, size, iterations)
        books.append(centres_KD)
        x_ND = leftover(x_ND, centres_KD)
    return books


@jax.jit
def leftover(x_ND: jax.Array, vectors_KD: jax.Array) -> jax.Array:
    """What remains of each row after its nearest vector is taken away."""
    return x_ND - vectors_KD[nearest(x_ND, vectors_KD)]
