"""Forward TPU kernel: a tile's own tokens at its first step, then the anchor blocks that it may read, one softmax."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from hisam_jax.kernels.anchor_attention import count, tpu_layout, tpu_parts
from hisam_jax.kernels.anchor_attention.core import MASKED, Inputs, Rule
from hisam_jax.kernels.anchor_attention.tpu_layout import Plan
from hisam_jax.kernels.anchor_attention.tpu_parts import FLOOR, NN, NT, dot


def forward(x: Inputs, rule: Rule, plan: Plan, interpret) -> tuple[jax.Array, jax.Array]:
    """`(out_BNTHD, lse_BNTH)`; see `core`."""
    specs = tile_specs(plan)
    work = count.forward_work(plan.batch, plan.sizes, rule)
    shape = (plan.batch, plan.sizes.kv_heads, plan.tiles)
    out, lse = tpu_parts.call(
        _kernel,
        plan,
        grid=(*shape, plan.block_steps),
        in_specs=[specs[name] for name in ("rows", "keys", "keys", "anchors", "anchors", "segment", "anchor_segment")],
        out_specs=[specs["rows"], specs["vector"]],
        out_shape=[
            jax.ShapeDtypeStruct((*shape[:2], plan.tiles * plan.rows, plan.sizes.width), x.q_BNTHD.dtype),
            jax.ShapeDtypeStruct((*shape, 1, plan.rows), jnp.float32),
        ],
        scratch=[pltpu.VMEM((plan.rows, size), jnp.float32) for size in (1, 1, plan.sizes.width)],
        cost=pl.CostEstimate(flops=work.flops, transcendentals=work.exponentials, bytes_accessed=work.bytes),
        interpret=interpret,
        name="anchor_attention_forward",
    )(x.first.reshape(1), tpu_layout.spans(x, plan), *tpu_layout.operands(x, plan))
    lse = jnp.where(x.segment_BN[:, :, None, None] > 0, tpu_layout.from_row_vectors(lse, plan), -jnp.inf)
    return tpu_layout.from_rows(out, plan), lse


def tile_specs(plan: Plan) -> dict[str, pl.BlockSpec]:
    """Blocks of a grid (batch, kv head, tile of queries, step over anchor blocks)."""
    width = plan.sizes.width

    def block(b, i, j, spans):
        return tpu_parts.other_index(plan, spans, b, i, j)

    def own(b, g, i, j, first, spans):
        return b, g, i, 0

    return {
        "rows": pl.BlockSpec((None, None, plan.rows, width), own),
        "keys": pl.BlockSpec((None, None, plan.keys, width), own),
        "anchors": pl.BlockSpec(
            (None, None, plan.tile_anchors, width), lambda b, g, i, j, first, spans: (b, g, block(b, i, j, spans), 0)
        ),
        "vector": pl.BlockSpec((None, None, None, 1, plan.rows), lambda b, g, i, j, first, spans: (b, g, i, 0, 0)),
        "segment": pl.BlockSpec((None, None, 1, plan.rows), lambda b, g, i, j, first, spans: (b, i, 0, 0)),
        "anchor_segment": pl.BlockSpec(
            (None, None, 1, plan.tile_anchors), lambda b, g, i, j, first, spans: (b, block(b, i, j, spans), 0, 0)
        ),
    }


def _kernel(plan, first, spans, q, k, v, anchor_k, anchor_v, segment, anchor_segment, out, lse, top, total, acc):
    b, _, tile, step = (pl.program_id(axis) for axis in range(4))
    block, reads, masks = tpu_parts.visit(plan, spans, b, tile, step)

    @pl.when(step == 0)
    def _():
        _own_tokens(plan, q, k, v, segment, top, total, acc)

    def anchors(mask):
        scores = dot(q[...], anchor_k[...], NT) * tpu_parts.score_scale(plan)
        if mask is not None:
            scores = jnp.where(mask, scores, MASKED)
        _add(scores, anchor_v[...], top, total, acc)

    def mask():
        rows = tpu_parts.segment_column(segment[...])
        return tpu_parts.reads_anchors(plan, first[0], tile, block, rows, anchor_segment[...], 0)

    tpu_parts.at_each_visit(reads, masks, mask, anchors)

    @pl.when(step == plan.block_steps - 1)
    def _():
        out[...] = (acc[...] / jnp.maximum(total[...], 1e-30)).astype(out.dtype)
        lse[...] = tpu_parts.row((top[...] + jnp.log2(jnp.maximum(total[...], 1e-30))) * math.log(2.0))


def _own_tokens(plan, q, k, v, segment, top, total, acc):
    """Starts the softmax with the tile's own tokens, some items at a time."""
    segments = tpu_parts.segment_column(segment[...])
    for items, rows, keys in tpu_parts.own_parts(plan):
        scores = dot(q[rows], k[keys], NT) * tpu_parts.score_scale(plan)
        scores = jnp.where(tpu_parts.reads_own(plan, items, segments[rows]), scores, MASKED)
        highest = jnp.maximum(jnp.max(scores, axis=1, keepdims=True), FLOOR)
        weights = jnp.exp2(scores - highest)
        top[rows], total[rows] = highest, jnp.sum(weights, axis=1, keepdims=True)
        acc[rows] = dot(weights.astype(v.dtype), v[keys], NN)


def _add(scores, values, top, total, acc):
    """One step of the running softmax."""
    before = top[...]
    highest = jnp.maximum(before, jnp.max(scores, axis=1, keepdims=True))
    weights, keep = jnp.exp2(scores - highest), jnp.exp2(before - highest)
    top[...] = highest
    total[...] = keep * total[...] + jnp.sum(weights, axis=1, keepdims=True)
    acc[...] = keep * acc[...] + dot(weights.astype(values.dtype), values, NN)
