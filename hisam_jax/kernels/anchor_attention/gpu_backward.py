"""Gradients of queries and of the items' own tokens on Hopper; those of anchors are in `gpu_backward_anchors`.

`stats_BH3R` holds what a row needs, float32: its log-sum-exp in bits for its own item, the same for anchors, and delta.
Where a row may not read, the log-sum-exp is huge, so that weights are zero without a mask.
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
from hisam_jax.kernels.anchor_attention.gpu_tile import HALF, LOG2_E, ROWS

OWN, FAR, DELTA = range(3)


def queries(arrays, d_out_BRHD, stats_BH3R, marks_B2R, segment_BM, order_BX4, problem):
    """`d_q_BRHD`: the steps of the forward kernel again, with weights from the log-sum-exp."""
    q_BRHD = arrays[0]
    batch, rows, heads, width = q_BRHD.shape
    scratch = dict(
        **stream.scratch(problem, width),
        q_smem=tiled.matrix_scratch((2, HALF, width)),
        d_out_smem=tiled.matrix_scratch((2, HALF, width)),
        marks_smem=plgpu.SMEM((2, 2, HALF), jnp.int32),
        stats_smem=plgpu.SMEM((2, 3, HALF), jnp.float32),
        q_ready=plgpu.Barrier(num_barriers=2, num_arrivals=7),
    )
    program, grid = functools.partial(_queries_program, problem), (heads, rows // ROWS, batch)
    out = jax.ShapeDtypeStruct(q_BRHD.shape, q_BRHD.dtype)
    kernel = tiled.launch(program, out, scratch, grid, 3, "queries")
    return kernel(*arrays, d_out_BRHD, stats_BH3R, marks_B2R, segment_BM, order_BX4)


def _queries_program(problem, q, k, v, anchor_k, anchor_v, d_out, stats, marks, segment, order, d_q, **scratch):
    at, s = stream.place(q.shape[1], order), SimpleNamespace(**scratch)

    @pl.when(at.warpgroup < 2)
    def _():
        plgpu.set_max_registers(232, action="increase")
        mine, wg = (at.batch, pl.ds(at.row, HALF), at.heads), at.warpgroup
        ready, rows = s.q_ready.at[wg], pl.ds(at.row, HALF)
        plgpu.copy_gmem_to_smem(q.at[mine], s.q_smem.at[wg], ready)
        plgpu.copy_gmem_to_smem(d_out.at[mine], s.d_out_smem.at[wg], ready)
        for number in range(2):
            plgpu.copy_gmem_to_smem(marks.at[at.batch, number, rows], s.marks_smem.at[wg, number], ready)
        for number in range(3):
            plgpu.copy_gmem_to_smem(stats.at[at.batch, at.heads, number, rows], s.stats_smem.at[wg, number], ready)
        plgpu.barrier_wait(ready)
        d_q_RD = _queries(problem, at, s, order)
        s.q_smem.at[wg][...] = (d_q_RD * (problem.scale / LOG2_E)).astype(q.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(s.q_smem.at[wg], d_q.at[mine])
        plgpu.wait_smem_to_gmem(0)

    @pl.when(at.warpgroup == 2)
    def _():
        plgpu.set_max_registers(40, action="decrease")
        stream.fill(problem, at, s, k, v, anchor_k, anchor_v, segment, order)


def _queries(problem, at, s, order) -> jax.Array:
    wg = at.warpgroup
    q_smem, d_out_smem = s.q_smem.at[wg], s.d_out_smem.at[wg]
    stats = tuple(tiled.by_row(s.stats_smem.at[wg, number]) for number in range(3))
    marks = tuple(tiled.by_row(s.marks_smem.at[wg, number]) for number in range(2))

    def one(d_q_RD, keys, values, lse_R, mask_RC):
        scores_RC = tiled.product(q_smem, tiled.transposed(keys))
        columns = scores_RC.shape[1]
        weights_RC = jnp.exp2(scores_RC * problem.scale - tiled.along_rows(lse_R, columns))
        if mask_RC is not None:
            weights_RC = jnp.where(mask_RC, weights_RC, 0.0)
        d_weights_RC = tiled.product(d_out_smem, tiled.transposed(values))
        d_scores_RC = weights_RC * (d_weights_RC - tiled.along_rows(stats[DELTA], columns))
        return tiled.add_product(d_q_RD, d_scores_RC.astype(jnp.bfloat16), keys)

    def step(number, d_q_RD, masked):
        slot = stream.slot_of(problem, number)
        plgpu.barrier_wait(s.k_ready.at[slot])
        plgpu.barrier_wait(s.v_ready.at[slot])
        mask_RC = stream.mask_of(problem, at, s, order, number, *marks) if masked else None
        keys, values = (ref.at[slot, pl.ds(0, problem.block)] for ref in (s.k_smem, s.v_smem))
        d_q_RD = one(d_q_RD, keys, values, stats[FAR], mask_RC)
        plgpu.barrier_arrive(s.k_free.at[slot])
        plgpu.barrier_arrive(s.v_free.at[slot])
        return d_q_RD

    d_q_RD = tiled.zeros(HALF, q_smem.shape[-1])
    for keys, values, mask_RC in stream.own_items(problem, at, s):
        d_q_RD = one(d_q_RD, keys, values, stats[OWN], mask_RC)
    needs_mask = order[at.batch, at.tile, 2]
    d_q_RD = lax.fori_loop(0, needs_mask, functools.partial(step, masked=True), d_q_RD)
    return lax.fori_loop(needs_mask, at.total, functools.partial(step, masked=False), d_q_RD)


def own_tokens(q_BRHD, k_BRGD, v_BRGD, d_out_BRHD, stats_BH3R, problem):
    """`(d_k_BRGD, d_v_BRGD)`: a program takes 64 keys, and the queries of their items in each head of the group."""
    batch, rows, heads, width = k_BRGD.shape
    one, shape = tiled.matrix_scratch((HALF, width)), jax.ShapeDtypeStruct(k_BRGD.shape, k_BRGD.dtype)
    scratch = dict(
        k_smem=one,
        v_smem=one,
        q_smem=one,
        d_out_smem=one,
        lse_smem=plgpu.SMEM((HALF,), jnp.float32),
        delta_smem=plgpu.SMEM((HALF,), jnp.float32),
        keys_ready=plgpu.Barrier(num_arrivals=2),
        ready=plgpu.Barrier(num_arrivals=4),
    )
    program, grid = functools.partial(_own_program, problem), (heads, rows // HALF, batch)
    kernel = tiled.launch(program, (shape, shape), scratch, grid, 1, "own_tokens")
    return kernel(q_BRHD, k_BRGD, v_BRGD, d_out_BRHD, stats_BH3R)


def _own_program(problem, q, k, v, d_out, stats, d_k, d_v, **scratch):
    s = SimpleNamespace(**scratch)
    batch, head, key_row = lax.axis_index("batch"), lax.axis_index("heads"), lax.axis_index("tiles") * HALF
    mine = batch, pl.ds(key_row, HALF), head
    plgpu.copy_gmem_to_smem(k.at[mine], s.k_smem, s.keys_ready)
    plgpu.copy_gmem_to_smem(v.at[mine], s.v_smem, s.keys_ready)
    plgpu.barrier_wait(s.keys_ready)

    def one(step, carry):  # one loop, so that no mask is kept in registers across its steps
        part = lax.div(step, jnp.int32(problem.group))
        number = step - part * problem.group
        query_row = key_row + part * HALF
        rows, query_head = pl.ds(jnp.minimum(query_row, q.shape[1] - HALF), HALF), head * problem.group + number
        plgpu.copy_gmem_to_smem(q.at[batch, rows, query_head], s.q_smem, s.ready)
        plgpu.copy_gmem_to_smem(d_out.at[batch, rows, query_head], s.d_out_smem, s.ready)
        plgpu.copy_gmem_to_smem(stats.at[batch, query_head, OWN, rows], s.lse_smem, s.ready)
        plgpu.copy_gmem_to_smem(stats.at[batch, query_head, DELTA, rows], s.delta_smem, s.ready)
        plgpu.barrier_wait(s.ready)
        mask_CR = tiled.local_mask(query_row, key_row, problem.tokens, HALF, queries_in="columns")
        return tiled.key_gradients(problem, s.k_smem, s.v_smem, s, mask_CR, carry)

    carry = tiled.zeros(HALF, k.shape[-1]), tiled.zeros(HALF, k.shape[-1])
    carry = lax.fori_loop(0, problem.own_steps * problem.group, one, carry)
    s.k_smem[...] = (carry[0] * (problem.scale / LOG2_E)).astype(k.dtype)
    s.v_smem[...] = carry[1].astype(k.dtype)
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(s.k_smem, d_k.at[mine])
    plgpu.copy_smem_to_gmem(s.v_smem, d_v.at[mine])
    plgpu.wait_smem_to_gmem(0)
