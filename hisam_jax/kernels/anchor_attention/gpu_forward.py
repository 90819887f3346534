"""Forward kernel of anchor attention on Hopper: two warpgroups compute, a third streams keys and values in by TMA.

A program takes 128 rows of one query head, 64 to each computing warpgroup. Its steps are first the rows' own items, then
blocks of anchors: those that need a mask, then those that need none (`gpu_plan.order_of_visits`). As every row that is
not padding reads itself, no running maximum is ever that of nothing.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from hisam_jax.kernels.anchor_attention import gpu_tile as tiled
from hisam_jax.kernels.anchor_attention.core import MASKED
from hisam_jax.kernels.anchor_attention.gpu_tile import HALF, LOG2_E, NEVER, ROWS

SLOTS = 2


def attend(q_BRHD, k_BRGD, v_BRGD, anchor_k_BMGD, anchor_v_BMGD, marks_B2R, segment_BM, order_BX4, problem):
    """`(out_BRHD, lse_BHR)`; R is a multiple of `ROWS`, M of `problem.block`; `gpu_plan` says what the marks are."""
    batch, rows, heads, width = q_BRHD.shape
    out = jax.ShapeDtypeStruct(q_BRHD.shape, q_BRHD.dtype), jax.ShapeDtypeStruct((batch, heads, rows), jnp.float32)
    return plgpu.kernel(
        functools.partial(_program, problem),
        out_type=out,
        scratch_types=_scratch(width, problem.block),
        grid=(heads, rows // ROWS, batch),
        grid_names=("heads", "tiles", "batch"),
        num_threads=3,
        thread_name="warpgroup",
        compiler_params=tiled.PARAMS,
    )(q_BRHD, k_BRGD, v_BRGD, anchor_k_BMGD, anchor_v_BMGD, marks_B2R, segment_BM, order_BX4)


def _scratch(width: int, block: int) -> dict:
    both = functools.partial(plgpu.Barrier, num_arrivals=2)
    return dict(
        q_smem=tiled.matrix_scratch((2, HALF, width)),
        k_smem=tiled.matrix_scratch((SLOTS, ROWS, width)),
        v_smem=tiled.matrix_scratch((SLOTS, ROWS, width)),
        segment_smem=plgpu.SMEM((SLOTS, block), jnp.int32),
        limit_smem=plgpu.SMEM((2, HALF), jnp.int32),
        row_segment_smem=plgpu.SMEM((2, HALF), jnp.int32),
        lse_smem=plgpu.SMEM((2, HALF), jnp.float32),
        q_ready=plgpu.Barrier(num_barriers=2, num_arrivals=3),
        k_ready=both(num_barriers=SLOTS),
        v_ready=plgpu.Barrier(num_barriers=SLOTS),
        k_free=both(num_barriers=SLOTS),
        v_free=both(num_barriers=SLOTS),
        turn=both(),
    )


def _program(problem, q, k, v, anchor_k, anchor_v, marks, segment, order, out, lse, **scratch):
    at = SimpleNamespace(**{name: lax.axis_index(name) for name in ("batch", "heads", "warpgroup")})
    at.tile = q.shape[1] // ROWS - 1 - lax.axis_index("tiles")  # the longest first
    at.total = order[at.batch, at.tile, 3]
    s = SimpleNamespace(**scratch)

    @pl.when(at.warpgroup < 2)
    def _():
        plgpu.set_max_registers(232, action="increase")
        at.row = at.tile * ROWS + at.warpgroup * HALF
        _compute(problem, at, s, q, marks, order, out, lse)

    @pl.when(at.warpgroup == 2)
    def _():
        plgpu.set_max_registers(40, action="decrease")
        _stream(problem, at, s, k, v, anchor_k, anchor_v, segment, order)


def _stream(problem, at, s, k, v, anchor_k, anchor_v, segment, order) -> None:
    """The rows' own keys and values, then blocks of anchors, into slots in turn."""
    head = lax.div(at.heads, jnp.int32(problem.group))

    def fetch(source_k, source_v, first, size, block, slot):
        where = (at.batch, pl.ds(first, size), head)
        marks = segment.at[at.batch, pl.ds(block * problem.block, problem.block)]
        plgpu.copy_gmem_to_smem(source_k.at[where], s.k_smem.at[slot, pl.ds(0, size)], s.k_ready.at[slot])
        plgpu.copy_gmem_to_smem(marks, s.segment_smem.at[slot], s.k_ready.at[slot])
        plgpu.copy_gmem_to_smem(source_v.at[where], s.v_smem.at[slot, pl.ds(0, size)], s.v_ready.at[slot])

    fetch(k, v, at.tile * ROWS, ROWS, 0, 0)
    if problem.own_steps == 2:
        fetch(k, v, jnp.maximum(at.tile * ROWS - HALF, 0), HALF, 0, 1)

    @pl.loop(0, at.total)
    def _(step):
        slot = lax.rem(step + problem.own_steps, jnp.int32(SLOTS))

        @pl.when(step + problem.own_steps >= SLOTS)
        def _():
            plgpu.barrier_wait(s.k_free.at[slot])
            plgpu.barrier_wait(s.v_free.at[slot])

        block = tiled.visit(order, (at.batch, at.tile), step)
        fetch(anchor_k, anchor_v, block * problem.block, problem.block, block, slot)


def _compute(problem, at, s, q, marks, order, out, lse) -> None:
    mine, wg = pl.ds(at.row, HALF), at.warpgroup
    q_smem, lse_smem = s.q_smem.at[wg], s.lse_smem.at[wg]
    plgpu.copy_gmem_to_smem(q.at[at.batch, mine, at.heads], q_smem, s.q_ready.at[wg])
    plgpu.copy_gmem_to_smem(marks.at[at.batch, 0, mine], s.limit_smem.at[wg], s.q_ready.at[wg])
    plgpu.copy_gmem_to_smem(marks.at[at.batch, 1, mine], s.row_segment_smem.at[wg], s.q_ready.at[wg])
    plgpu.barrier_wait(s.q_ready.at[wg])
    limit_R, segment_R = tiled.by_row(s.limit_smem.at[wg]), tiled.by_row(s.row_segment_smem.at[wg])

    carry = tiled.zeros(HALF, q.shape[-1]), tiled.full_by_row(MASKED), tiled.full_by_row(0.0)
    carry = _own_items(problem, at, s, q_smem, carry)
    out_RD, top_R, sum_R = _anchors(problem, at, s, q_smem, order, limit_R, segment_R, carry)

    real_R = segment_R > 0
    out_RD *= tiled.along_rows(jnp.where(real_R, 1.0 / sum_R, 0.0), out_RD.shape[1])
    q_smem[...] = out_RD.astype(q.dtype)
    lse_smem[...] = jnp.where(real_R, (top_R + jnp.log2(sum_R)) / LOG2_E, -jnp.inf)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(q_smem, out.at[at.batch, mine, at.heads])
    plgpu.copy_smem_to_gmem(lse_smem, lse.at[at.batch, at.heads, mine])
    plgpu.wait_smem_to_gmem(0)


def _softmax(scores_RC, carry, scale, reads_R=None):
    """`(weights, carry)` after the scores joined; rows that `reads_R` leaves out keep what they had.

    The running maximum is kept in bits, so that a weight is one multiply-add and one `exp2`.
    """
    out_RD, top_R, sum_R = carry
    new_R = jnp.maximum(top_R, scores_RC.max(axis=1) * scale)
    less_R = new_R
    if reads_R is not None:
        new_R = jnp.where(reads_R, new_R, top_R)
        less_R = jnp.where(reads_R, new_R, NEVER)
    weights_RC = jnp.exp2(scores_RC * scale - tiled.along_rows(less_R, scores_RC.shape[1]))
    keep_R = jnp.exp2(top_R - new_R)
    out_RD *= tiled.along_rows(keep_R, out_RD.shape[1])
    return weights_RC, (out_RD, new_R, sum_R * keep_R + weights_RC.sum(axis=1))


def _own_items(problem, at, s, q_smem, carry):
    """Keys of 64 rows at a time: the warpgroup's own, then those before them if items begin there."""
    for step in range(problem.own_steps):
        plgpu.barrier_wait(s.k_ready.at[step])
        plgpu.barrier_wait(s.v_ready.at[step])
        slot, begin = (0, at.warpgroup * HALF) if step == 0 else (1 - at.warpgroup, 0)
        keys = s.k_smem.at[slot, pl.ds(begin, HALF)]
        values = s.v_smem.at[slot, pl.ds(begin, HALF)]
        mask_RC = tiled.local_mask(at.row, at.row - step * HALF, problem.tokens, HALF)
        scores_RC = tiled.product(q_smem, tiled.transposed(keys))
        weights_RC, (out_RD, top_R, sum_R) = _softmax(jnp.where(mask_RC, scores_RC, MASKED), carry, problem.scale)
        carry = tiled.add_product(out_RD, weights_RC.astype(jnp.bfloat16), values), top_R, sum_R
    for step in range(problem.own_steps):
        plgpu.barrier_arrive(s.k_free.at[step])
        plgpu.barrier_arrive(s.v_free.at[step])
    return carry


def _anchors(problem, at, s, q_smem, order, limit_R, segment_R, carry):
    """Blocks of anchors; the two warpgroups take turns at the tensor cores, one multiplying while the other weighs."""

    def take_turn():
        plgpu.barrier_arrive(s.turn)
        plgpu.barrier_wait(s.turn)

    def step(number, carry, masked):
        slot = lax.rem(number + problem.own_steps, jnp.int32(SLOTS))
        plgpu.barrier_wait(s.k_ready.at[slot])

        def multiply(acc):
            plgpu.wgmma(acc, q_smem, tiled.transposed(s.k_smem.at[slot, pl.ds(0, problem.block)]))
            take_turn()
            return acc[...]

        scores_RC = pl.run_scoped(multiply, plgpu.ACC((HALF, problem.block), jnp.float32))
        if masked:
            block = tiled.visit(order, (at.batch, at.tile), number)
            keys_C = tiled.by_column(s.segment_smem.at[slot])
            mask_RC = tiled.anchor_mask(limit_R, segment_R, keys_C, block * problem.block, problem.window)
            scores_RC = jnp.where(mask_RC, scores_RC, MASKED)
        plgpu.barrier_arrive(s.k_free.at[slot])
        weights_RC, (out_RD, top_R, sum_R) = _softmax(scores_RC, carry, problem.scale, None if masked else limit_R > 0)
        weights_RC = weights_RC.astype(jnp.bfloat16)
        out_RD, top_R, sum_R, weights_RC = lax.optimization_barrier((out_RD, top_R, sum_R, weights_RC))
        plgpu.barrier_arrive(s.turn)
        plgpu.barrier_wait(s.v_ready.at[slot])
        plgpu.barrier_wait(s.turn)
        out_RD = tiled.add_product(out_RD, weights_RC, s.v_smem.at[slot, pl.ds(0, problem.block)])
        plgpu.barrier_arrive(s.v_free.at[slot])
        return out_RD, top_R, sum_R

    pl.when(at.warpgroup == 1)(take_turn)
    needs_mask = order[at.batch, at.tile, 2]
    carry = lax.fori_loop(0, needs_mask, functools.partial(step, masked=True), carry)
    carry = lax.fori_loop(needs_mask, at.total, functools.partial(step, masked=False), carry)
    pl.when(at.warpgroup == 0)(take_turn)
    return carry
