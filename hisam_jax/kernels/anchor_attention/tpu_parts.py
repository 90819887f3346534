"""Parts of the TPU kernels: products, masks, and turning a row of numbers into a column."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from hisam_jax.kernels.anchor_attention.core import MASKED
from hisam_jax.kernels.anchor_attention.tpu_layout import LANES, Plan, shared

FLOOR = 0.5 * MASKED  # least maximum of a row: exp2 of a masked score below it is 0, not 1
LOG2_E = math.log2(math.e)

NN, NT, TN = ((1,), (0,)), ((1,), (1,)), ((0,), (0,))  # contracted axes of a product's sides


def dot(a: jax.Array, b: jax.Array, contract: tuple) -> jax.Array:
    """A product of two matrices, summed in float32; float32 factors are not rounded to bfloat16."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(a, b, (contract, ((), ())), precision=precision, preferred_element_type=jnp.float32)


def score_scale(plan: Plan) -> float:
    """Scores are kept in units of log 2, so that `exp2` needs no product of its own."""
    return plan.sizes.width**-0.5 * LOG2_E


def item_and_slot(plan: Plan, items: int, axis: int) -> tuple[jax.Array, jax.Array]:
    """int32 item and slot of each row of `items` items: a column for `axis` 0, a row vector for 1."""
    tokens = plan.sizes.tokens
    length = items * plan.ratio * tokens
    row = lax.broadcasted_iota(jnp.int32, (length, 1) if axis == 0 else (1, length), axis)
    return _divide(row, plan.ratio * tokens), row - tokens * _divide(row, tokens)


def _divide(x: jax.Array, by: int) -> jax.Array:
    """`x // by` for 0 <= x < 2^20: the half keeps a rounded quotient on its side of the whole number."""
    return ((x.astype(jnp.float32) + 0.5) * (1.0 / by)).astype(jnp.int32)


def reads_own(plan: Plan, items: int, segment_R1: jax.Array) -> jax.Array:
    """bool `[rows, keys]` of `items` items against their own tokens: same item, causal by slot, not padding."""
    tokens = plan.sizes.tokens
    item, slot = item_and_slot(plan, items, 0)
    key = lax.broadcasted_iota(jnp.int32, (1, items * tokens), 1)
    last = jnp.where(segment_R1 > 0, item * tokens + slot, -1)
    return (key >= item * tokens) & (key <= last)


def reads_anchors(plan: Plan, first, tile, block, row_segment, anchor_segment, axis: int) -> jax.Array:
    """bool: rows along `axis`, anchors along the other; segments are a column and a row vector accordingly."""
    item, slot = item_and_slot(plan, plan.tile_items, axis)
    item += first + tile * plan.tile_items
    shape = (1, plan.tile_anchors) if axis == 0 else (plan.tile_anchors, 1)
    anchor = block * plan.tile_anchors + lax.broadcasted_iota(jnp.int32, shape, 1 - axis)
    last = jnp.where(slot == plan.sizes.tokens - 1, 0, item) if plan.strict else item
    reads = (anchor < last) & (row_segment == anchor_segment)
    if plan.window is not None:
        reads &= anchor >= item - plan.window
    return reads


def column(row_1K: jax.Array) -> jax.Array:
    """`[K, 1]` of a float32 row vector: the diagonal of its broadcast, 128 lanes at a time."""
    parts = []
    for start in range(0, row_1K.shape[1], LANES):
        part = row_1K[:, start : start + LANES]
        parts.append(jnp.sum(jnp.where(_eye(part.shape[1]), part, 0.0), axis=1, keepdims=True))
    return jnp.concatenate(parts, axis=0) if len(parts) > 1 else parts[0]


def row(column_K1: jax.Array) -> jax.Array:
    """`[1, K]` of a float32 column; undoes `column`."""
    parts = []
    for start in range(0, column_K1.shape[0], LANES):
        part = column_K1[start : start + LANES]
        parts.append(jnp.sum(jnp.where(_eye(part.shape[0]), part, 0.0), axis=0, keepdims=True))
    return jnp.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]


def _eye(size: int) -> jax.Array:
    return lax.broadcasted_iota(jnp.int32, (size, size), 0) == lax.broadcasted_iota(jnp.int32, (size, size), 1)


def segment_column(row_1K: jax.Array) -> jax.Array:
    """int32 `column`; the two halves of a number are exact in float32."""
    high, low = row_1K >> 16, row_1K & 0xFFFF
    high, low = (column(x.astype(jnp.float32)).astype(jnp.int32) for x in (high, low))
    return (high << 16) | low


def span(scalars, index, total: int) -> tuple:
    """(start, count, mask-free start, mask-free end) of `tpu_layout.spans` at `index` of `total`."""
    return tuple(scalars[field * total + index] for field in range(4))


def span_index(plan: Plan, b, i, *, by_anchors: bool = False):
    """Position in the spans of tile (or block) `i` of batch row `b`, and how many there are."""
    many = plan.blocks if by_anchors else plan.tiles
    return (i, many) if shared(plan, by_anchors=by_anchors) else (b * many + i, plan.batch * many)


def visit(plan: Plan, scalars, b, i, step, *, by_anchors: bool = False) -> tuple:
    """(the block that this step reads, is there one, does it need a mask)."""
    start, count, whole_start, whole_end = span(scalars, *span_index(plan, b, i, by_anchors=by_anchors))
    other = start + step
    return other, step < count, (other < whole_start) | (other >= whole_end)


def at_each_visit(reads, masks, mask: Callable[[], jax.Array], work: Callable[[jax.Array | None], None]) -> None:
    """`work(mask())` where a step reads a block in part, `work(None)` where in whole, nothing where not at all."""
    pl.when(reads & masks)(lambda: work(mask()))
    pl.when(reads & ~masks)(lambda: work(None))


def own_parts(plan: Plan) -> Iterator[tuple[int, slice, slice]]:
    """(items, their rows of queries, their keys) of the parts that a tile's own tokens are scored in."""
    tokens = plan.sizes.tokens
    for start, items in plan.local:
        stop = start + items
        yield (
            items,
            slice(start * plan.ratio * tokens, stop * plan.ratio * tokens),
            slice(start * tokens, stop * tokens),
        )


def other_index(plan: Plan, scalars, b, i, step, *, by_anchors: bool = False):
    """Block to fetch at a step: steps past the range name the last one again, which fetches nothing."""
    start, count, *_ = span(scalars, *span_index(plan, b, i, by_anchors=by_anchors))
    return start + jnp.minimum(step, jnp.maximum(count - 1, 0))


def call(kernel, plan: Plan, grid, in_specs, out_specs, out_shape, scratch, cost, interpret, name) -> Any:
    """A `pallas_call` over a grid whose last axis accumulates, with `first` and the spans prefetched."""
    return pl.pallas_call(
        functools.partial(kernel, plan),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2, grid=grid, in_specs=in_specs, out_specs=out_specs, scratch_shapes=scratch
        ),
        out_shape=out_shape,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"),
        ),
        cost_estimate=cost,
        interpret=interpret,
        name=name,
    )
