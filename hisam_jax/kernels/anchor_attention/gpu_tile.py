"""What the GPU kernels share: scratch, products of one warpgroup, masks of one tile of scores.

A warpgroup of 128 threads holds 64 rows of scores (the m of `wgmma`) in registers; `by_row` and `by_column` load the
vectors that go with them.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from hisam_jax.kernels.anchor_attention.core import MASKED

HALF = 64
ROWS = 2 * HALF
LOG2_E = float(np.log2(np.e))
NEVER = -MASKED  # subtracted in an exponent, it leaves zero

# Lane semantics on both versions of jax: layouts are said, not inferred.
PARAMS = plgpu.CompilerParams(approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Lane)


def launch(program: Callable, out_type, scratch: dict, grid: tuple[int, int, int], warpgroups: int, name: str):
    """A kernel over (heads, tiles, batch), as its programs call the axes of their grid."""
    return plgpu.kernel(
        program,
        out_type=out_type,
        scratch_types=scratch,
        grid=grid,
        grid_names=("heads", "tiles", "batch"),
        num_threads=warpgroups,
        thread_name="warpgroup",
        compiler_params=PARAMS,
        kernel_name=f"anchor_attention_{name}",
    )


def matrix_scratch(shape) -> plgpu.SMEM:
    """bfloat16 shared memory in the tiled, swizzled form that TMA writes and `wgmma` reads."""
    return plgpu.SMEM(shape, jnp.bfloat16, transforms=(plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128)))


def float_scratch(shape) -> plgpu.SMEM:
    """float32 shared memory in a form that TMA reads."""
    return plgpu.SMEM(shape, jnp.float32, transforms=(plgpu.TilingTransform((8, 32)), plgpu.SwizzleTransform(128)))


def by_row(ref) -> jax.Array:
    """A vector of 64 in shared memory, one value a row of scores."""
    return plgpu.layout_cast(ref[...], plgpu.Layout.WGMMA.reduce(1))


def by_column(ref) -> jax.Array:
    """A vector in shared memory, one value a column of scores."""
    return plgpu.layout_cast(ref[...], plgpu.Layout.WGMMA.reduce(0))


def along_rows(vector_R: jax.Array, columns: int) -> jax.Array:
    """The vector repeated over columns."""
    return lax.broadcast_in_dim(vector_R, (vector_R.shape[0], columns), [0])


def along_columns(vector_C: jax.Array, rows: int) -> jax.Array:
    """The vector repeated over rows."""
    return lax.broadcast_in_dim(vector_C, (rows, vector_C.shape[0]), [1])


def zeros(rows: int, columns: int) -> jax.Array:
    """float32, laid out as an accumulator."""
    return plgpu.layout_cast(jnp.zeros((rows, columns), jnp.float32), plgpu.Layout.WGMMA)


def full_by_row(value: float, dtype=jnp.float32) -> jax.Array:
    """One value for each of 64 rows."""
    return plgpu.layout_cast(jnp.full((HALF,), value, dtype), plgpu.Layout.WGMMA.reduce(1))


def numbers(shape, axis: int) -> jax.Array:
    """int32 index along an axis of a tile of scores."""
    return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=plgpu.Layout.WGMMA)


def product(a, b) -> jax.Array:
    """`a @ b` in float32; `b` and, unless in registers, `a` in shared memory."""

    def run(acc):
        plgpu.wgmma(acc, a, b)
        return acc[...]

    return pl.run_scoped(run, plgpu.ACC((a.shape[0], b.shape[1]), jnp.float32))


# The interpreter of jax 0.12 has neither `pl.run_state` nor operands of `wgmma` in registers: see `add_product`.
in_place = contextvars.ContextVar("in_place", default=True)


def add_product(acc_RC: jax.Array, a, b) -> jax.Array:
    """`acc + a @ b`, in the accumulator's own registers; `a` in registers too."""
    if not in_place.get():
        return acc_RC + jnp.dot(a, b[...], preferred_element_type=jnp.float32)
    return pl.run_state(lambda acc: plgpu.wgmma(acc, a, b))(plgpu.ACC.init(acc_RC))


def transposed(ref):
    """The matrix in shared memory seen from its other side."""
    return ref.transpose((1, 0))


def visit(order, at, step) -> jax.Array:
    """Which block or tile a step takes; `order` is a `gpu_plan.order_of_visits` in global memory."""
    low, turn, total = order[(*at, 0)], order[(*at, 1)], order[(*at, 3)]
    place = turn + step
    return low + jnp.where(place >= total, place - total, place)


def local_mask(query_first, key_first, tokens: int, columns: int, *, queries_in: str = "rows") -> jax.Array:
    """bool tile of scores: query and key belong to one item and the key is not later.

    Args:
        query_first, key_first: number of the first query row and the first key row of the tile.
        tokens: of an item.
        columns: of the tile; it has 64 rows.
        queries_in: whether the tile's `rows` or its `columns` are queries.
    """
    row, column = numbers((HALF, columns), 0), numbers((HALF, columns), 1)
    if queries_in == "rows":
        query, key = query_first + row, key_first + column
        return (key <= query) & (key >= query - lax.rem(query, jnp.int32(tokens)))
    query, key = query_first + column, key_first + row  # what is divided is a row's, of which a thread has two
    return (query >= key) & (query < key - lax.rem(key, jnp.int32(tokens)) + tokens)


def anchor_mask(limit, row_segment, anchor, segment, window: int | None) -> jax.Array:
    """bool tile of scores from tiles of the rows' marks and of the anchors' positions and segments."""
    mask = (anchor < limit) & (row_segment == segment)
    if window is not None:
        mask &= anchor >= limit - window
    return mask


def key_gradients(problem, keys, values, queries, mask_CR, carry):
    """`(d_k_CD, d_v_CD)` after 64 queries joined; d_k still wants the scale.

    Args:
        keys, values: 64 keys in shared memory.
        queries: `q_smem`, `d_out_smem`, `lse_smem` in bits and `delta_smem` of the queries.
        mask_CR: which key (row) is read by which query (column); None for what the log-sum-exp leaves.
        carry: gradients so far.
    """
    d_k_CD, d_v_CD = carry
    scores_CR = product(keys, transposed(queries.q_smem))
    weights_CR = jnp.exp2(scores_CR * problem.scale - along_columns(by_column(queries.lse_smem), HALF))
    if mask_CR is not None:
        weights_CR = jnp.where(mask_CR, weights_CR, 0.0)
    d_v_CD = add_product(d_v_CD, weights_CR.astype(jnp.bfloat16), queries.d_out_smem)
    d_weights_CR = product(values, transposed(queries.d_out_smem))
    d_scores_CR = weights_CR * (d_weights_CR - along_columns(by_column(queries.delta_smem), HALF))
    return add_product(d_k_CD, d_scores_CR.astype(jnp.bfloat16), queries.q_smem), d_v_CD
