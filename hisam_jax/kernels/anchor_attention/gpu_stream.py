"""How the kernels that walk over keys feed themselves: the rows' own items first, then blocks of anchors."""

from __future__ import annotations

from types import SimpleNamespace

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from hisam_jax.kernels.anchor_attention import gpu_tile as tiled
from hisam_jax.kernels.anchor_attention.gpu_tile import HALF, ROWS


def scratch(problem, width: int) -> dict:
    """Slots of keys and values with the anchors' segments, and the barriers that say which are full and which free."""
    slots = problem.slots
    return dict(
        k_smem=tiled.matrix_scratch((slots, ROWS, width)),
        v_smem=tiled.matrix_scratch((slots, ROWS, width)),
        segment_smem=plgpu.SMEM((slots, problem.block), jnp.int32),
        k_ready=plgpu.Barrier(num_barriers=slots, num_arrivals=2),
        v_ready=plgpu.Barrier(num_barriers=slots),
        k_free=plgpu.Barrier(num_barriers=slots, num_arrivals=2),
        v_free=plgpu.Barrier(num_barriers=slots, num_arrivals=2),
    )


def place(rows: int, order) -> SimpleNamespace:
    """Where a program of the grid (heads, tiles of rows, batch) stands: `row` is its warpgroup's first."""
    at = SimpleNamespace(**{name: lax.axis_index(name) for name in ("batch", "heads", "warpgroup")})
    at.tile = rows // ROWS - 1 - lax.axis_index("tiles")  # the longest first
    at.row = at.tile * ROWS + at.warpgroup * HALF
    at.total = order[at.batch, at.tile, 3]
    return at


def slot_of(problem, step):
    """The slot of a step over anchors."""
    return lax.rem(step + problem.own_steps, jnp.int32(problem.slots))


def fill(problem, at, s, k, v, anchor_k, anchor_v, segment, order) -> None:
    """The memory warpgroup's whole work."""
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
        slot = slot_of(problem, step)

        @pl.when(step + problem.own_steps >= problem.slots)
        def _():
            plgpu.barrier_wait(s.k_free.at[slot])
            plgpu.barrier_wait(s.v_free.at[slot])

        block = tiled.visit(order, (at.batch, at.tile), step)
        fetch(anchor_k, anchor_v, block * problem.block, problem.block, block, slot)


def own_items(problem, at, s):
    """`(keys, values, mask)` of 64 rows at a time: the warpgroup's own, then those before them if items begin there."""
    for step in range(problem.own_steps):
        plgpu.barrier_wait(s.k_ready.at[step])
        plgpu.barrier_wait(s.v_ready.at[step])
        slot, begin = (0, at.warpgroup * HALF) if step == 0 else (1 - at.warpgroup, 0)
        mask_RC = tiled.local_mask(at.row, at.row - step * HALF, problem.tokens, HALF)
        yield s.k_smem.at[slot, pl.ds(begin, HALF)], s.v_smem.at[slot, pl.ds(begin, HALF)], mask_RC
    for step in range(problem.own_steps):
        plgpu.barrier_arrive(s.k_free.at[step])
        plgpu.barrier_arrive(s.v_free.at[step])


def mask_of(problem, at, s, order, step, limit_R, segment_R):
    """The mask of a step over anchors."""
    block = tiled.visit(order, (at.batch, at.tile), step)
    segment_C = tiled.by_column(s.segment_smem.at[slot_of(problem, step)])
    rows, columns = limit_R.shape[0], segment_C.shape[0]
    return tiled.anchor_mask(
        tiled.along_rows(limit_R, columns),
        tiled.along_rows(segment_R, columns),
        block * problem.block + tiled.numbers((rows, columns), 1),
        tiled.along_columns(segment_C, rows),
        problem.window,
    )
