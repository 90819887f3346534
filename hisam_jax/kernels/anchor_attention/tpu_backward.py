"""Backward TPU kernels: one over tiles of queries (d_q, d_k, d_v), one over blocks of anchors (their gradients).

Both compute weights again from the log-sum-exp. The second holds its scores with rows of queries along the lanes, so
that log-sum-exp, delta and positions of rows are row vectors there and both its sums are plain products.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from hisam_jax.kernels.anchor_attention import count, tpu_layout, tpu_parts
from hisam_jax.kernels.anchor_attention.core import Inputs, Rule
from hisam_jax.kernels.anchor_attention.tpu_forward import tile_specs
from hisam_jax.kernels.anchor_attention.tpu_layout import Operands, Plan
from hisam_jax.kernels.anchor_attention.tpu_parts import NN, NT, TN, dot


def backward(x: Inputs, lse_BNTH, d_out_BNTHD, delta_BNTH, rule: Rule, plan: Plan, interpret) -> tuple:
    """`(d_q, d_k, d_v, d_anchor_k, d_anchor_v)`; see `core`."""
    arrays = tpu_layout.operands(x, plan)
    d_out = tpu_layout.to_rows(d_out_BNTHD, plan)
    lse, delta = (tpu_layout.to_row_vectors(y, plan) for y in (lse_BNTH * tpu_parts.LOG2_E, delta_BNTH))
    d_q, d_k, d_v = _queries(x, plan, rule, interpret, arrays, d_out, lse, delta)
    d_anchors = _anchors(x, plan, rule, interpret, arrays, d_out, lse, delta)
    return (
        tpu_layout.from_rows(d_q, plan),
        *(tpu_layout.from_keys(y, plan) for y in (d_k, d_v)),
        *(tpu_layout.from_anchors(y, plan) for y in d_anchors),
    )


def _cost(plan: Plan, rule: Rule, own_products: int, anchor_products: int, arrays: list) -> pl.CostEstimate:
    sizes, heads = plan.sizes, plan.batch * plan.sizes.heads
    own = heads * count.local_pairs(sizes.items, sizes.tokens) * bool(own_products)
    far = heads * count.anchor_pairs(sizes.items, sizes.tokens, sizes.anchors, rule)
    return pl.CostEstimate(
        flops=2 * sizes.width * (own_products * own + anchor_products * far),
        transcendentals=own + far,
        bytes_accessed=sum(y.size * y.dtype.itemsize for y in arrays),
    )


def _queries(x, plan: Plan, rule, interpret, arrays: Operands, d_out, lse, delta):
    specs = tile_specs(plan)
    names = ["rows", "keys", "keys", "anchors", "anchors", "segment", "anchor_segment", "rows", "vector", "vector"]
    results = [jax.ShapeDtypeStruct(y.shape, y.dtype) for y in (arrays.q_BGSD, arrays.k_BGKD, arrays.v_BGKD)]
    return tpu_parts.call(
        _query_kernel,
        plan,
        grid=(plan.batch, plan.sizes.kv_heads, plan.tiles, plan.block_steps),
        in_specs=[specs[name] for name in names],
        out_specs=[specs[name] for name in ("rows", "keys", "keys")],
        out_shape=results,
        scratch=[pltpu.VMEM((plan.rows, plan.sizes.width), jnp.float32)],
        cost=_cost(plan, rule, 5, 3, [*arrays, d_out, lse, delta, *results]),
        interpret=interpret,
        name="anchor_attention_backward_queries",
    )(x.first.reshape(1), tpu_layout.spans(x, plan), *arrays, d_out, lse, delta)


def _query_kernel(
    plan, first, spans, q, k, v, anchor_k, anchor_v, segment, anchor_segment, d_out, lse, delta, d_q, d_k, d_v, acc
):
    b, _, tile, step = (pl.program_id(axis) for axis in range(4))
    block, reads, masks = tpu_parts.visit(plan, spans, b, tile, step)

    @pl.when(step == 0)
    def _():
        _own_tokens(plan, q, k, v, segment, d_out, lse, delta, d_k, d_v, acc)

    def anchors(mask):
        weights = _weights(dot(q[...], anchor_k[...], NT), tpu_parts.column(lse[...]), mask, plan)
        d_scores = weights * (dot(d_out[...], anchor_v[...], NT) - tpu_parts.column(delta[...]))
        acc[...] += dot(d_scores.astype(anchor_k.dtype), anchor_k[...], NN)

    def mask():
        rows = tpu_parts.segment_column(segment[...])
        return tpu_parts.reads_anchors(plan, first[0], tile, block, rows, anchor_segment[...], 0)

    tpu_parts.at_each_visit(reads, masks, mask, anchors)

    @pl.when(step == plan.block_steps - 1)
    def _():
        d_q[...] = (acc[...] * plan.sizes.width**-0.5).astype(d_q.dtype)


def _own_tokens(plan, q, k, v, segment, d_out, lse, delta, d_k, d_v, acc):
    """Gradients of a tile's own keys and values, whole, and the first part of its queries'."""
    segments = tpu_parts.segment_column(segment[...])
    lse_column, delta_column = tpu_parts.column(lse[...]), tpu_parts.column(delta[...])
    for items, rows, keys in tpu_parts.own_parts(plan):
        mask = tpu_parts.reads_own(plan, items, segments[rows])
        weights = _weights(dot(q[rows], k[keys], NT), lse_column[rows], mask, plan)
        d_scores = weights * (dot(d_out[rows], v[keys], NT) - delta_column[rows])
        d_v[keys] = dot(weights.astype(v.dtype), d_out[rows], TN).astype(d_v.dtype)
        d_scores = d_scores.astype(k.dtype)
        d_k[keys] = (dot(d_scores, q[rows], TN) * plan.sizes.width**-0.5).astype(d_k.dtype)
        acc[rows] = dot(d_scores, k[keys], NN)


def _weights(products, lse, mask, plan: Plan):
    """Weights of the softmax from products of queries and keys, 0 outside the mask; `lse` in units of log 2."""
    weights = jnp.exp2(products * tpu_parts.score_scale(plan) - lse)
    return weights if mask is None else jnp.where(mask, weights, 0.0)


def _anchors(x, plan: Plan, rule, interpret, arrays: Operands, d_out, lse, delta):
    width = plan.sizes.width

    def tile(b, i, j, spans):
        return tpu_parts.other_index(plan, spans, b, i, j, by_anchors=True)

    def by_tile(*shape):
        zeros = (0,) * (len(shape) - 1)
        return pl.BlockSpec((None, None, *shape), lambda b, g, i, j, first, spans: (b, g, tile(b, i, j, spans), *zeros))

    rows, vector = by_tile(plan.rows, width), by_tile(None, 1, plan.rows)
    segment = pl.BlockSpec((None, None, 1, plan.rows), lambda b, g, i, j, first, spans: (b, tile(b, i, j, spans), 0, 0))
    anchors = pl.BlockSpec((None, None, plan.tile_anchors, width), lambda b, g, i, j, first, spans: (b, g, i, 0))
    anchor_segment = pl.BlockSpec((None, None, 1, plan.tile_anchors), lambda b, g, i, j, first, spans: (b, i, 0, 0))
    inputs = [
        arrays.q_BGSD,
        d_out,
        lse,
        delta,
        arrays.row_segment_BI1R,
        arrays.anchor_k_BGMD,
        arrays.anchor_v_BGMD,
        arrays.anchor_segment_BJ1A,
    ]
    results = [jax.ShapeDtypeStruct(y.shape, y.dtype) for y in (arrays.anchor_k_BGMD, arrays.anchor_v_BGMD)]
    return tpu_parts.call(
        _anchor_kernel,
        plan,
        grid=(plan.batch, plan.sizes.kv_heads, plan.blocks, plan.tile_steps),
        in_specs=[rows, rows, vector, vector, segment, anchors, anchors, anchor_segment],
        out_specs=[anchors, anchors],
        out_shape=results,
        scratch=[pltpu.VMEM((plan.tile_anchors, width), jnp.float32)] * 2,
        cost=_cost(plan, rule, 0, 4, [*inputs, *results]),
        interpret=interpret,
        name="anchor_attention_backward_anchors",
    )(x.first.reshape(1), tpu_layout.spans(x, plan, by_anchors=True), *inputs)


def _anchor_kernel(
    plan, first, spans, q, d_out, lse, delta, segment, anchor_k, anchor_v, anchor_segment, d_k, d_v, acc_k, acc_v
):
    b, _, block, step = (pl.program_id(axis) for axis in range(4))
    tile, reads, masks = tpu_parts.visit(plan, spans, b, block, step, by_anchors=True)

    @pl.when(step == 0)
    def _():
        acc_k[...], acc_v[...] = jnp.zeros_like(acc_k), jnp.zeros_like(acc_v)

    def rows(mask):
        weights = _weights(dot(anchor_k[...], q[...], NT), lse[...], mask, plan)
        d_scores = weights * (dot(anchor_v[...], d_out[...], NT) - delta[...])
        acc_v[...] += dot(weights.astype(d_out.dtype), d_out[...], NN)
        acc_k[...] += dot(d_scores.astype(q.dtype), q[...], NN)

    def mask():
        anchors = tpu_parts.segment_column(anchor_segment[...])
        return tpu_parts.reads_anchors(plan, first[0], tile, block, segment[...], anchors, 1)

    tpu_parts.at_each_visit(reads, masks, mask, rows)

    @pl.when(step == plan.tile_steps - 1)
    def _():
        d_k[...] = (acc_k[...] * plan.sizes.width**-0.5).astype(d_k.dtype)
        d_v[...] = acc_v[...].astype(d_v.dtype)
