"""Chunked evaluation of causal attention: a chunk of queries at a time, seeing only the prefix that it may see."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from einops import repeat

_BANDS = 8


def map_causal_chunks(
    one_chunk: Callable[[jax.Array, int, Sequence[jax.Array]], jax.Array], arrays: Sequence[jax.Array], chunk: int
) -> jax.Array:
    """Applies `one_chunk(start, end, chunk_arrays)` along axis 1 of `arrays` and joins the results.

    `start` is the chunk's first index, `end` a static bound past its last one: keys at `end` and later are in no
    chunk's past, so they need not be computed. Up to 8 bands of chunks are unrolled, each with its own `end`; the
    chunks of a band run in a loop. Scores are recomputed in the backward pass.
    """
    length = arrays[0].shape[1]
    chunk = min(chunk, length)
    count = -(-length // chunk)
    short = count * chunk - length
    padded = [jnp.pad(x, [(0, 0), (0, short)] + [(0, 0)] * (x.ndim - 2)) for x in arrays]
    per_band = -(-count // _BANDS)
    outputs = [
        _band(one_chunk, padded, first, min(first + per_band, count), chunk, length)
        for first in range(0, count, per_band)
    ]
    return jnp.concatenate(outputs, axis=1)[:, :length]


def readable(segment_BC: jax.Array, segment_BN: jax.Array, start: jax.Array, tokens: int) -> jax.Array:
    """bool `[B, C * tokens, N * tokens]`: keys of a query's own segment up to itself; padding (0) reads nothing.

    Args:
        segment_BC: of a chunk of items, the first of which is item `start`.
        segment_BN: of the items that it may see.
        start: see `map_causal_chunks`.
        tokens: of an item.
    """
    segment_BQ, segment_BS = (repeat(x, "b n -> b (n t)", t=tokens) for x in (segment_BC, segment_BN))
    mask_BQS = (segment_BQ[:, :, None] == segment_BS[:, None]) & (segment_BQ[:, :, None] > 0)
    query_Q = start * tokens + jnp.arange(segment_BQ.shape[1])
    return mask_BQS & (jnp.arange(segment_BS.shape[1])[None] <= query_Q[:, None])


def _band(one_chunk, padded, first: int, last: int, chunk: int, length: int) -> jax.Array:
    end = min(last * chunk, length)
    starts = jnp.arange(first, last) * chunk
    run = jax.checkpoint(lambda start, parts: one_chunk(start, end, parts))
    cut = [x[:, first * chunk : last * chunk] for x in padded]
    if last - first == 1:
        return run(starts[0], cut)
    split = [jnp.moveaxis(x.reshape(x.shape[0], last - first, chunk, *x.shape[2:]), 1, 0) for x in cut]
    out = jax.lax.map(lambda item: run(item[0], item[1]), (starts, split))
    return jnp.moveaxis(out, 0, 1).reshape(out.shape[1], -1, *out.shape[3:])
