"""What the GPU kernels are told beside the arrays: marks of query rows, and which blocks of keys a tile of rows visits.

Rows are the tokens of a batch entry in order: row r is slot `r % T` of item `r // T`. Tiles of rows and blocks of
anchors need not begin where items or segments do; what a tile may read of a block is decided here, in plain XLA, from
the least and greatest marks of each, so that the kernels skip what nobody reads and mask only where it is needed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import repeat

from hisam_jax.kernels.anchor_attention.core import Inputs, Rule


class Extent(NamedTuple):
    """Least and greatest segment and position of each group of rows or anchors; empty groups have least > greatest."""

    segment_low: jax.Array
    segment_high: jax.Array
    place_low: jax.Array
    place_high: jax.Array


def row_marks(x: Inputs, rule: Rule, rows: int) -> jax.Array:
    """int32 `[B, 2, rows]`: anchors below this position may be read (0: none), and the segment (0: padding)."""
    items, tokens = x.q_BNTHD.shape[1:3]
    limit_NT = jnp.broadcast_to((x.first + jnp.arange(items, dtype=jnp.int32))[:, None], (items, tokens))
    if rule.strict:
        limit_NT = limit_NT.at[:, -1].set(0)
    segment_BR = repeat(x.segment_BN.astype(jnp.int32), "b n -> b (n t)", t=tokens)
    limit_BR = jnp.where(segment_BR > 0, limit_NT.reshape(1, -1), 0)
    marks_B2R = jnp.stack([limit_BR, segment_BR], axis=1)
    return jnp.pad(marks_B2R, ((0, 0), (0, 0), (0, rows - items * tokens)))


def _extent(segment_BX: jax.Array, place_BX: jax.Array, present_BX: jax.Array, size: int) -> Extent:
    largest = jnp.iinfo(jnp.int32).max

    def least(values_BX):
        values_BX = jnp.where(present_BX, values_BX, largest)
        return values_BX.reshape(values_BX.shape[0], -1, size).min(axis=-1)

    return Extent(least(segment_BX), -least(-segment_BX), least(place_BX), -least(-place_BX))


def visits(marks_B2R: jax.Array, segment_BM: jax.Array, rule: Rule, tile: int, block: int) -> tuple:
    """bool `[B, tiles, blocks]` twice: some row may read some anchor; every reading row reads every anchor.

    Both err on the safe side: a visit that turns out empty costs time, a mask that was not needed too.
    """
    limit_BR, row_segment_BR = marks_B2R[:, 0], marks_B2R[:, 1]
    rows = _extent(row_segment_BR, limit_BR, limit_BR > 0, tile)
    place_BM = jnp.broadcast_to(jnp.arange(segment_BM.shape[1], dtype=jnp.int32), segment_BM.shape)
    anchors = _extent(segment_BM, place_BM, segment_BM > 0, block)
    rows = Extent(*(part[:, :, None] for part in rows))
    anchors = Extent(*(part[:, None, :] for part in anchors))
    first = (jnp.arange(anchors.place_low.shape[2], dtype=jnp.int32) * block)[None, None]
    some = (anchors.place_low < rows.place_high) & (anchors.segment_low <= rows.segment_high)
    some &= (anchors.segment_high >= rows.segment_low) & (rows.place_high > 0)
    every = some & (rows.segment_low == rows.segment_high) & (first + block <= rows.place_low)
    every &= (anchors.segment_low == rows.segment_low) & (anchors.segment_high == rows.segment_low)
    every &= _whole(segment_BM, block)[:, None, :]
    if rule.window is not None:
        some &= anchors.place_high >= rows.place_low - rule.window
        every &= first >= rows.place_high - rule.window
    return some, every


def _whole(segment_BM: jax.Array, block: int) -> jax.Array:
    return (segment_BM > 0).reshape(segment_BM.shape[0], -1, block).all(axis=-1)


def order_of_visits(some_BXY: jax.Array, every_BXY: jax.Array) -> jax.Array:
    """int32 `[B, X, 4]` of `(low, turn, masked, total)`: the order in which each x goes through its ys.

    The y of step j is `low + (turn + j) % total`; the first `masked` steps need a mask, the others do not.
    """
    count = some_BXY.shape[-1]
    low_BX = jnp.argmax(some_BXY, axis=-1)
    high_BX = jnp.where(some_BXY.any(axis=-1), count - jnp.argmax(some_BXY[..., ::-1], axis=-1), low_BX)
    y_Y = jnp.arange(count)
    start_BX = jnp.where(every_BXY.any(axis=-1), jnp.argmax(every_BXY, axis=-1), high_BX)
    ends_BXY = (y_Y >= start_BX[..., None]) & ~every_BXY
    stop_BX = jnp.where(ends_BXY.any(axis=-1), jnp.argmax(ends_BXY, axis=-1), count)
    stop_BX = jnp.minimum(stop_BX, high_BX)
    total_BX = high_BX - low_BX
    masked_BX = total_BX - (stop_BX - start_BX)
    return jnp.stack([low_BX, stop_BX - low_BX, masked_BX, total_BX], axis=-1).astype(jnp.int32)
