"""The two-part form in plain XLA: local `T x T` scores beside anchor scores, one softmax, tile by tile.

Cost `O(N T (T + N))` instead of `O((N T)^2)`: items in chunks, anchors in blocks, and a loop over blocks that runs from
the window's start to the diagonal and no further. Forward keeps a running maximum, as flash attention does (Dao et al.
2022); backward recomputes scores from the log-sum-exp. Scores are held of one chunk against one block.

Here the `R = H / G` heads of a key/value head stand beside an item's tokens as `Q = R T` query rows: one product a
group serves them all.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange

from hisam_jax.kernels.anchor_attention.core import MASKED, Implementation, Inputs, Rule, dot, reads_anchor
from hisam_jax.kernels.anchor_attention.tiles import Sizes, Tiles


def tiles(sizes: Sizes) -> Tiles:
    """Chunks of some 1,024 query rows of a group, blocks of 128 anchors: measured on CPUs.

    Backward, short histories want four chunks at least, so that what lies past the diagonal is left out.
    """
    rows = sizes.tokens * (sizes.heads // sizes.kv_heads)
    items = min(128, max(8, 2 ** (max(1, 1024 // rows).bit_length() - 1)))
    return Tiles(items, 128, min(items, max(8, sizes.items // 4)), 128)


class _Chunk(NamedTuple):
    """C items; `[Z, ...]` where chunks are stacked."""

    q_BGCQD: jax.Array
    k_BGCTD: jax.Array
    v_BGCTD: jax.Array
    segment_BC: jax.Array
    item_C: jax.Array
    start: jax.Array  # blocks of anchors, from and to, that any of them may read
    stop: jax.Array


class _Anchors(NamedTuple):
    """A block of A anchors, or all M."""

    k_BGAD: jax.Array
    v_BGAD: jax.Array
    segment_BA: jax.Array
    index_A: jax.Array


def forward(x: Inputs, rule: Rule, tiles: Tiles) -> tuple[jax.Array, jax.Array]:
    """See `core`."""
    items, tokens = x.q_BNTHD.shape[1:3]
    block, anchors = _blocks(x, tiles.anchors)

    def one_chunk(chunk: _Chunk) -> tuple[jax.Array, jax.Array]:
        def one_block(index, running):
            part = _block(anchors, index, block)
            return _accumulate(running, _far_scores(chunk, part, rule, tokens), part.v_BGAD, "bgcqa,bgad->bgcqd")

        empty = jnp.full(chunk.q_BGCQD.shape[:4], 0.5 * MASKED)  # above MASKED: exp(MASKED - empty) is 0, not 1
        running = empty, jnp.zeros_like(empty), jnp.zeros(chunk.q_BGCQD.shape, jnp.float32)
        running = _accumulate(running, _local_scores(chunk, tokens), chunk.v_BGCTD, "bgcqt,bgctd->bgcqd")
        top, total, out = jax.lax.fori_loop(chunk.start, chunk.stop, one_block, running)
        out = out / jnp.maximum(total, 1e-30)[..., None]
        return out.astype(x.q_BNTHD.dtype), jnp.where(total > 0, jnp.log(total) + top, -jnp.inf)

    out, lse = jax.lax.map(one_chunk, _chunks(x, rule, _even(items, tiles.items), anchors, block))
    out = rearrange(out, "z b g c (r t) d -> b (z c) t (g r) d", t=tokens)[:, :items]
    return out, rearrange(lse, "z b g c (r t) -> b (z c) t (g r)", t=tokens)[:, :items]


def backward(x: Inputs, lse, d_out, delta, rule: Rule, tiles: Tiles) -> tuple[jax.Array, ...]:
    """See `core`."""
    items, tokens, groups, dtype = *x.q_BNTHD.shape[1:3], x.k_BNTGD.shape[3], x.q_BNTHD.dtype
    size = _even(items, tiles.backward_items)
    block, anchors = _blocks(x, tiles.backward_anchors)

    def one_chunk(sums, inputs):
        chunk, *rows = inputs

        def one_block(index, carry):
            d_q, sum_k, sum_v = carry
            part = _block(anchors, index, block)
            d_scores, d_k, d_v = _pull(_far_scores(chunk, part, rule, tokens), chunk.q_BGCQD, part.v_BGAD, rows, "bgad")
            d_q += dot("bgcqa,bgad->bgcqd", d_scores, part.k_BGAD)
            return d_q, _add_at(sum_k, d_k, index * block), _add_at(sum_v, d_v, index * block)

        d_scores, d_k, d_v = _pull(_local_scores(chunk, tokens), chunk.q_BGCQD, chunk.v_BGCTD, rows, "bgcad")
        d_q = dot("bgcqt,bgctd->bgcqd", d_scores, chunk.k_BGCTD)
        d_q, *sums = jax.lax.fori_loop(chunk.start, chunk.stop, one_block, (d_q, *sums))
        return tuple(sums), tuple(part.astype(dtype) for part in (d_q, d_k, d_v))

    rows = [_rows(part, groups, size) for part in (d_out, lse[..., None], delta[..., None])]
    sums = tuple(jnp.zeros(part.shape, jnp.float32) for part in anchors[:2])
    sums, (d_q, d_k, d_v) = jax.lax.scan(one_chunk, sums, (_chunks(x, rule, size, anchors, block), *rows))
    d_q = rearrange(d_q, "z b g c (r t) d -> b (z c) t (g r) d", t=tokens)[:, :items]
    d_k, d_v = (rearrange(part, "z b g c t d -> b (z c) t g d")[:, :items] for part in (d_k, d_v))
    count = x.anchor_k_BMGD.shape[1]
    return d_q, d_k, d_v, *(rearrange(part, "b g m d -> b m g d")[:, :count].astype(dtype) for part in sums)


IMPLEMENTATION = Implementation("xla", forward, backward, tiles)


def _padded(x: jax.Array, axis: int, multiple: int) -> jax.Array:
    return jnp.pad(x, [(0, -size % multiple if at == axis else 0) for at, size in enumerate(x.shape)])


def _rows(x_BNTHD: jax.Array, groups: int, size: int) -> jax.Array:
    """`[Z, B, G, C, Q, D]`: Z chunks of C items, the last one padded with zeros."""
    return rearrange(_padded(x_BNTHD, 1, size), "b (z c) t (g r) d -> z b g c (r t) d", c=size, g=groups)


def _even(total: int, most: int) -> int:
    """The size of the fewest parts of at most `most` that are nearly equal: 65 of at most 64 make two of 33."""
    return -(-total // -(-total // most))


def _chunks(x: Inputs, rule: Rule, size: int, anchors: _Anchors, block: int) -> _Chunk:
    q, k, v = (_rows(part, x.k_BNTGD.shape[3], size) for part in x[:3])
    segment = rearrange(_padded(x.segment_BN, 1, size), "b (z c) -> z b c", c=size)
    item_ZC = x.first + jnp.arange(len(segment) * size).reshape(-1, size)
    return _Chunk(q, k, v, segment, item_ZC, *_ranges(segment, item_ZC, rule, anchors, block))


def _blocks(x: Inputs, size: int) -> tuple[int, _Anchors]:
    """(anchors of a block, all anchors padded to whole blocks of segment 0)."""
    size = _even(x.anchor_k_BMGD.shape[1], size)
    k, v = (rearrange(_padded(part, 1, size), "b m g d -> b g m d") for part in (x.anchor_k_BMGD, x.anchor_v_BMGD))
    return size, _Anchors(k, v, _padded(x.anchor_segment_BM, 1, size), jnp.arange(k.shape[2]))


def _block(anchors: _Anchors, index: jax.Array, size: int) -> _Anchors:
    axes = _Anchors(2, 2, 1, 0)
    return jax.tree.map(lambda p, axis: jax.lax.dynamic_slice_in_dim(p, index * size, size, axis), anchors, axes)


def _ranges(segment_ZBC, item_ZC, rule: Rule, anchors: _Anchors, size: int) -> tuple[jax.Array, jax.Array]:
    """Blocks (from, to) that each chunk reads: up to the diagonal, inside the window, and of segments that it holds."""
    count = anchors.index_A.shape[0] // size
    first_J = size * jnp.arange(count)
    reads_ZJ = first_J < item_ZC[:, -1:]
    if rule.window is not None:
        reads_ZJ &= first_J + size > item_ZC[:, :1] - rule.window
    low_BJ, high_BJ = _least_and_greatest(rearrange(anchors.segment_BA, "b (j a) -> b j a", j=count))
    low_ZB, high_ZB = _least_and_greatest(segment_ZBC)
    shared_ZBJ = (high_ZB[..., None] >= low_BJ) & (low_ZB[..., None] <= high_BJ)
    reads_ZJ &= shared_ZBJ.any(1)
    start_Z, stop_Z = jnp.argmax(reads_ZJ, axis=1), count - jnp.argmax(reads_ZJ[:, ::-1], axis=1)
    return jnp.where(reads_ZJ.any(1), start_Z, count), stop_Z


def _least_and_greatest(segment: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of the last axis, padding left out; where there is nothing else, the least is above the greatest."""
    real = segment > 0
    return jnp.where(real, segment, jnp.iinfo(jnp.int32).max).min(-1), jnp.where(real, segment, 0).max(-1)


def _add_at(total_BGMD: jax.Array, part_BGAD: jax.Array, place: jax.Array) -> jax.Array:
    before = jax.lax.dynamic_slice_in_dim(total_BGMD, place, part_BGAD.shape[2], 2)
    return jax.lax.dynamic_update_slice_in_dim(total_BGMD, before + part_BGAD, place, 2)


def _local_scores(chunk: _Chunk, tokens: int) -> jax.Array:
    """Float32 `[B, G, C, Q, T]`, scaled; `MASKED` where nothing may be read."""
    scores = dot("bgcqd,bgctd->bgcqt", chunk.q_BGCQD, chunk.k_BGCTD) * chunk.q_BGCQD.shape[-1] ** -0.5
    causal_QT = jnp.arange(tokens) <= (jnp.arange(scores.shape[3]) % tokens)[:, None]
    return jnp.where(causal_QT & (chunk.segment_BC > 0)[:, None, :, None, None], scores, MASKED)


def _far_scores(chunk: _Chunk, part: _Anchors, rule: Rule, tokens: int) -> jax.Array:
    """Float32 `[B, G, C, Q, A]`, scaled; `MASKED` where nothing may be read."""
    scores = dot("bgcqd,bgad->bgcqa", chunk.q_BGCQD, part.k_BGAD) * chunk.q_BGCQD.shape[-1] ** -0.5
    reads_BCA = reads_anchor(rule, chunk.item_C[:, None], part.index_A) & (chunk.segment_BC > 0)[..., None]
    reads_BCQA = (reads_BCA & (chunk.segment_BC[..., None] == part.segment_BA[:, None]))[:, :, None]
    if rule.strict:
        reads_BCQA &= (jnp.arange(scores.shape[3]) % tokens < tokens - 1)[:, None]
    return jnp.where(reads_BCQA[:, None], scores, MASKED)


def _accumulate(running, scores, values, product: str):
    """One step of the running softmax: (maximum, sum, weighted sum) with some more scores and their values."""
    top, total, out = running
    higher = jnp.maximum(top, scores.max(-1))
    weights, shrink = jnp.exp(scores - higher[..., None]), jnp.exp(top - higher)
    out = out * shrink[..., None] + dot(product, weights.astype(values.dtype), values)
    return higher, total * shrink + weights.sum(-1), out


def _pull(scores, q_BGCQD, values, rows, keys: str) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(gradient of unscaled scores in q's dtype, of keys, of values; float32) of what these scores weigh."""
    d_out, lse, delta = rows
    dtype = q_BGCQD.dtype
    weights = jnp.exp(scores - lse)
    d_scores = weights * (dot(f"bgcqd,{keys}->bgcqa", d_out, values) - delta) * q_BGCQD.shape[-1] ** -0.5
    weights, d_scores = weights.astype(dtype), d_scores.astype(dtype)
    d_keys, d_values = (dot(f"bgcqa,bgcqd->{keys}", *pair) for pair in ((d_scores, q_BGCQD), (weights, d_out)))
    return d_scores, d_keys, d_values
