"""Anchor attention on TPU: Pallas kernels for Mosaic, forward and backward, and the tile sizes that suit them."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from einops import rearrange

from hisam_jax.kernels.anchor_attention import tpu_backward, tpu_forward
from hisam_jax.kernels.anchor_attention.core import Implementation, Inputs, Rule
from hisam_jax.kernels.anchor_attention.tiles import Sizes, Tiles
from hisam_jax.kernels.anchor_attention.tpu_layout import LANES, item_unit, local_items, make_plan, round_up

ROWS = 512  # of queries in a tile
SCORES = 512 * 512  # of a tile against a block of anchors: 1 MiB in float32
MOST_ANCHORS = 2048
MOST_ROWS = 1024  # of the least tile; where one kv head serves more, it is repeated: 4352 rows overflow vector memory

_INTERPRET = contextvars.ContextVar("interpret", default=False)


@contextlib.contextmanager
def interpreted(mode=True) -> Iterator[None]:
    """Kernels traced inside run by an interpreter, on any platform: True, or a `pltpu.InterpretParams`.

    What is jitted keeps what it was traced with; jit inside.
    """
    token = _INTERPRET.set(mode)
    try:
        yield
    finally:
        _INTERPRET.reset(token)


def interpretation():
    """The mode of `interpreted` that holds here; False outside."""
    return _INTERPRET.get()


def forward(x: Inputs, rule: Rule, tiles: Tiles) -> tuple[jax.Array, jax.Array]:
    """`(out_BNTHD, lse_BNTH)`; see `core`."""
    x = _repeat_keys(x, _repeats(Sizes.of(x.q_BNTHD, x.anchor_k_BMGD)))
    plan = make_plan(x, rule, tiles.items, tiles.anchors)
    return tpu_forward.forward(x, rule, plan, interpretation())


def backward(x: Inputs, lse_BNTH, d_out_BNTHD, delta_BNTH, rule: Rule, tiles: Tiles) -> tuple:
    """`(d_q, d_k, d_v, d_anchor_k, d_anchor_v)`; see `core`."""
    repeats = _repeats(Sizes.of(x.q_BNTHD, x.anchor_k_BMGD))
    x = _repeat_keys(x, repeats)
    plan = make_plan(x, rule, tiles.backward_items, tiles.backward_anchors)
    d_q, *d_keys = tpu_backward.backward(x, lse_BNTH, d_out_BNTHD, delta_BNTH, rule, plan, interpretation())
    return d_q, *(_sum_keys(y, repeats) for y in d_keys)


def _repeats(sizes: Sizes) -> int:
    """How often kv heads are repeated so that the least tile of one of them has no more than `MOST_ROWS` rows."""
    ratio, least = sizes.heads // sizes.kv_heads, item_unit(sizes) * sizes.tokens
    if least > MOST_ROWS:
        raise NotImplementedError(f"{sizes.tokens} tokens an item: {least} rows of the least tile, {MOST_ROWS} at most")
    return next(n for n in range(1, ratio + 1) if ratio % n == 0 and least * ratio // n <= MOST_ROWS)


def _repeat_keys(x: Inputs, repeats: int) -> Inputs:
    if repeats == 1:
        return x
    return Inputs(x.q_BNTHD, *(jnp.repeat(y, repeats, axis=-2) for y in x[1:5]), *x[5:])


def _sum_keys(gradient: jax.Array, repeats: int) -> jax.Array:
    """Gradient of what `_repeat_keys` repeated, summed in float32."""
    if repeats == 1:
        return gradient
    split = rearrange(gradient, "... (g r) d -> ... g r d", r=repeats)
    return split.sum(-2, dtype=jnp.float32).astype(gradient.dtype)


def tiles(sizes: Sizes) -> Tiles:
    """Tiles of about 512 rows and 512 x 512 scores, of even size: 1 MiB of float32 scores and little padding [ours]."""
    items, anchors = _tile(sizes, ROWS, SCORES)
    return Tiles(items, anchors, items, anchors)


def _tile(sizes: Sizes, rows: int, scores: int) -> tuple[int, int]:
    unit, per_item = item_unit(sizes), sizes.heads // sizes.kv_heads // _repeats(sizes) * sizes.tokens
    step = min(local_items(sizes), max(rows // per_item // unit * unit, unit))
    items = _even(sizes.items, max(rows // per_item // step * step, step), unit)
    most = min(max(scores // (items * per_item) // LANES * LANES, LANES), MOST_ANCHORS)
    if sizes.anchors <= most:  # one block would hold all: no blocks past the diagonal to skip
        most = min(most, max(round_up(sizes.anchors // 4, LANES), 2 * LANES))
    return items, _even(sizes.anchors, most, LANES if sizes.anchors > LANES else 32 // sizes.bytes)


def _even(length: int, most: int, unit: int) -> int:
    """A size up to `most` that cuts `length` into as few parts, of about one size, in whole units."""
    parts = max(-(-length // most), 1)
    return max(round_up(-(-length // parts), unit), unit)


IMPLEMENTATION = Implementation("tpu", forward, backward, tiles)
