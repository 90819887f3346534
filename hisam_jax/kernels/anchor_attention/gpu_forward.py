"""Forward kernel of anchor attention on Hopper: two warpgroups compute, a third streams keys and values in by TMA.

A program takes 128 rows of one query head, 64 to each computing warpgroup. Its steps are first the rows' own items,
then blocks of anchors: those that need a mask, then those that need none (`gpu_plan.order_of_visits`). As every row
that is not padding reads itself, no running maximum is ever that of nothing.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from hisam_jax.kernels.anchor_attention import gpu_stream as stream
from hisam_jax.kernels.anchor_attention import gpu_tile as tiled
from hisam_jax.kernels.anchor_attention.core import MASKED
from hisam_jax.kernels.anchor_attention.gpu_tile import HALF, LOG2_E, NEVER, ROWS


def attend(q_BRHD, k_BRGD, v_BRGD, anchor_k_BMGD, anchor_v_BMGD, marks_B2R, segment_BM, order_BX4, problem):
    """`(out_BRHD, lse_BHR)`; R is a multiple of `ROWS`, M of `problem.block`; `gpu_plan` says what the marks are."""
    batch, rows, heads, width = q_BRHD.shape
    out = jax.ShapeDtypeStruct(q_BRHD.shape, q_BRHD.dtype), jax.ShapeDtypeStruct((batch, heads, rows), jnp.float32)
    program, grid = functools.partial(_program, problem), (heads, rows // ROWS, batch)
    kernel = tiled.launch(program, out, _scratch(problem, width), grid, 3, "forward")
    return kernel(q_BRHD, k_BRGD, v_BRGD, anchor_k_BMGD, anchor_v_BMGD, marks_B2R, segment_BM, order_BX4)


def _scratch(problem, width: int) -> dict:
    return dict(
        **stream.scratch(problem, width),
        q_smem=tiled.matrix_scratch((2, HALF, width)),
        marks_smem=plgpu.SMEM((2, 2, HALF), jnp.int32),
        lse_smem=plgpu.SMEM((2, HALF), jnp.float32),
        q_ready=plgpu.Barrier(num_barriers=2, num_arrivals=3),
        turn=plgpu.Barrier(num_arrivals=2),
    )


def _program(problem, q, k, v, anchor_k, anchor_v, marks, segment, order, out, lse, **scratch):
    at, s = stream.place(q.shape[1], order), SimpleNamespace(**scratch)

    @pl.when(at.warpgroup < 2)
    def _():
        plgpu.set_max_registers(232, action="increase")
        _compute(problem, at, s, q, marks, order, out, lse)

    @pl.when(at.warpgroup == 2)
    def _():
        plgpu.set_max_registers(40, action="decrease")
        stream.fill(problem, at, s, k, v, anchor_k, anchor_v, segment, order)


def _compute(problem, at, s, q, marks, order, out, lse) -> None:
    mine, wg = pl.ds(at.row, HALF), at.warpgroup
    q_smem, lse_smem = s.q_smem.at[wg], s.lse_smem.at[wg]
    plgpu.copy_gmem_to_smem(q.at[at.batch, mine, at.heads], q_smem, s.q_ready.at[wg])
    for number in range(2):
        plgpu.copy_gmem_to_smem(marks.at[at.batch, number, mine], s.marks_smem.at[wg, number], s.q_ready.at[wg])
    plgpu.barrier_wait(s.q_ready.at[wg])
    limit_R, segment_R = (tiled.by_row(s.marks_smem.at[wg, number]) for number in range(2))

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
    for keys, values, mask_RC in stream.own_items(problem, at, s):
        scores_RC = tiled.product(q_smem, tiled.transposed(keys))
        weights_RC, (out_RD, top_R, sum_R) = _softmax(jnp.where(mask_RC, scores_RC, MASKED), carry, problem.scale)
        carry = tiled.add_product(out_RD, weights_RC.astype(jnp.bfloat16), values), top_R, sum_R
    return carry


def _anchors(problem, at, s, q_smem, order, limit_R, segment_R, carry):
    """Blocks of anchors; the two warpgroups take turns at the tensor cores, one multiplying while the other weighs."""

    def take_turn():
        plgpu.barrier_arrive(s.turn)
        plgpu.barrier_wait(s.turn)

    def step(number, carry, masked):
        slot = stream.slot_of(problem, number)
        plgpu.barrier_wait(s.k_ready.at[slot])

        def multiply(acc):
            plgpu.wgmma(acc, q_smem, tiled.transposed(s.k_smem.at[slot, pl.ds(0, problem.block)]))
            take_turn()
            return acc[...]

        scores_RC = pl.run_scoped(multiply, plgpu.ACC((HALF, problem.block), jnp.float32))
        if masked:
            mask_RC = stream.mask_of(problem, at, s, order, number, limit_R, segment_R)
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
