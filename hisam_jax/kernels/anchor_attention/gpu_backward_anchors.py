"""Gradients of anchors on Hopper: blocks of 128 anchors, over all tiles of 64 query rows that read them.

A block is read by most rows, so blocks are few and their work long: it is split among programs, whose float32 parts are
summed outside.
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
from hisam_jax.kernels.anchor_attention.gpu_backward import DELTA, FAR
from hisam_jax.kernels.anchor_attention.gpu_tile import HALF, LOG2_E, ROWS

BLOCK = ROWS
PROGRAMS = 264  # two rounds of an H100's 132 multiprocessors
MOST_PARTS = 16


def anchors(q_BRHD, anchor_k_BMGD, anchor_v_BMGD, d_out_BRHD, stats_BH3R, marks_B2R, segment_BM, order_BX4, problem):
    """`(d_anchor_k_BMGD, d_anchor_v_BMGD)` in float32; M is a multiple of `BLOCK`."""
    batch, count, heads, width = anchor_k_BMGD.shape
    blocks = count // BLOCK
    parts = max(1, min(MOST_PARTS, PROGRAMS // (blocks * heads * batch), q_BRHD.shape[1] // HALF))
    shape = jax.ShapeDtypeStruct((parts, *anchor_k_BMGD.shape), jnp.float32)
    program, grid = functools.partial(_program, problem, parts), (heads, blocks * parts, batch)
    kernel = tiled.launch(program, (shape, shape), _scratch(problem.slots, width), grid, 3, "anchors")
    parts_k, parts_v = kernel(
        q_BRHD, anchor_k_BMGD, anchor_v_BMGD, d_out_BRHD, stats_BH3R, marks_B2R, segment_BM, order_BX4
    )
    return parts_k.sum(axis=0), parts_v.sum(axis=0)


def _scratch(slots: int, width: int) -> dict:
    return dict(
        k_smem=tiled.matrix_scratch((2, HALF, width)),
        v_smem=tiled.matrix_scratch((2, HALF, width)),
        segment_smem=plgpu.SMEM((2, HALF), jnp.int32),
        q_smem=tiled.matrix_scratch((slots, HALF, width)),
        d_out_smem=tiled.matrix_scratch((slots, HALF, width)),
        lse_smem=plgpu.SMEM((slots, HALF), jnp.float32),
        delta_smem=plgpu.SMEM((slots, HALF), jnp.float32),
        marks_smem=plgpu.SMEM((slots, 2, HALF), jnp.int32),
        out_smem=tiled.float_scratch((2, HALF, width)),
        keys_ready=plgpu.Barrier(num_barriers=2, num_arrivals=3),
        ready=plgpu.Barrier(num_barriers=slots, num_arrivals=6),
        free=plgpu.Barrier(num_barriers=slots, num_arrivals=2),
    )


def _program(problem, parts, q, anchor_k, anchor_v, d_out, stats, marks, segment, order, d_k, d_v, **scratch):
    at = SimpleNamespace(**{name: lax.axis_index(name) for name in ("batch", "heads", "warpgroup")})
    at.block = lax.div(lax.axis_index("tiles"), jnp.int32(parts))
    at.part = lax.rem(lax.axis_index("tiles"), jnp.int32(parts))
    total = order[at.batch, at.block, 3]
    at.begin, at.end = lax.div(total * at.part, jnp.int32(parts)), lax.div(total * (at.part + 1), jnp.int32(parts))
    s = SimpleNamespace(**scratch)

    @pl.when(at.warpgroup < 2)
    def _():
        plgpu.set_max_registers(232, action="increase")
        _compute(problem, at, s, anchor_k, anchor_v, segment, order, d_k, d_v)

    @pl.when(at.warpgroup == 2)
    def _():
        plgpu.set_max_registers(40, action="decrease")
        _stream(problem, at, s, q, d_out, stats, marks, order)


def _stream(problem, at, s, q, d_out, stats, marks, order) -> None:
    """Tiles of queries and what goes with them, head by head of the group."""
    length = at.end - at.begin

    @pl.loop(0, length * problem.group)
    def _(number):
        slot = lax.rem(number, jnp.int32(problem.slots))
        member = lax.div(number, length)
        head = at.heads * problem.group + member

        @pl.when(number >= problem.slots)
        def _():
            plgpu.barrier_wait(s.free.at[slot])

        tile = tiled.visit(order, (at.batch, at.block), at.begin + number - member * length)
        rows = pl.ds(tile * HALF, HALF)
        ready = s.ready.at[slot]
        plgpu.copy_gmem_to_smem(q.at[at.batch, rows, head], s.q_smem.at[slot], ready)
        plgpu.copy_gmem_to_smem(d_out.at[at.batch, rows, head], s.d_out_smem.at[slot], ready)
        plgpu.copy_gmem_to_smem(stats.at[at.batch, head, FAR, rows], s.lse_smem.at[slot], ready)
        plgpu.copy_gmem_to_smem(stats.at[at.batch, head, DELTA, rows], s.delta_smem.at[slot], ready)
        for mark in range(2):
            plgpu.copy_gmem_to_smem(marks.at[at.batch, mark, rows], s.marks_smem.at[slot, mark], ready)


def _compute(problem, at, s, anchor_k, anchor_v, segment, order, d_k, d_v) -> None:
    wg, first = at.warpgroup, at.block * BLOCK + at.warpgroup * HALF
    mine, ready = pl.ds(first, HALF), s.keys_ready.at[wg]
    plgpu.copy_gmem_to_smem(anchor_k.at[at.batch, mine, at.heads], s.k_smem.at[wg], ready)
    plgpu.copy_gmem_to_smem(anchor_v.at[at.batch, mine, at.heads], s.v_smem.at[wg], ready)
    plgpu.copy_gmem_to_smem(segment.at[at.batch, mine], s.segment_smem.at[wg], ready)
    plgpu.barrier_wait(ready)
    segment_C = tiled.by_row(s.segment_smem.at[wg])

    def step(number, carry, member, masked):
        slot = lax.rem(member * (at.end - at.begin) + number - at.begin, jnp.int32(problem.slots))
        plgpu.barrier_wait(s.ready.at[slot])
        mask_CR = None
        if masked:
            limit_R, segment_R = (tiled.by_column(s.marks_smem.at[slot, mark]) for mark in range(2))
            mask_CR = tiled.anchor_mask(
                tiled.along_columns(limit_R, HALF),
                tiled.along_columns(segment_R, HALF),
                first + tiled.numbers((HALF, HALF), 0),
                tiled.along_rows(segment_C, HALF),
                problem.window,
            )
        names = ("q_smem", "d_out_smem", "lse_smem", "delta_smem")
        queries = SimpleNamespace(**{name: getattr(s, name).at[slot] for name in names})
        carry = tiled.key_gradients(problem, s.k_smem.at[wg], s.v_smem.at[wg], queries, mask_CR, carry)
        plgpu.barrier_arrive(s.free.at[slot])
        return carry

    def one_head(member, carry):
        middle = jnp.clip(order[at.batch, at.block, 2], at.begin, at.end)
        masked = functools.partial(step, member=member, masked=True)
        unmasked = functools.partial(step, member=member, masked=False)
        return lax.fori_loop(middle, at.end, unmasked, lax.fori_loop(at.begin, middle, masked, carry))

    width = anchor_k.shape[-1]
    d_k_CD, d_v_CD = lax.fori_loop(0, problem.group, one_head, (tiled.zeros(HALF, width), tiled.zeros(HALF, width)))
    for value_CD, target in ((d_k_CD * (problem.scale / LOG2_E), d_k), (d_v_CD, d_v)):
        s.out_smem.at[wg][...] = value_CD
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(s.out_smem.at[wg], target.at[at.part, at.batch, mine, at.heads])
        plgpu.wait_smem_to_gmem(0)
