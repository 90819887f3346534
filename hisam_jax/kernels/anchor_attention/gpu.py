"""Anchor attention in Pallas Mosaic GPU (`plgpu.kernel`: wgmma and TMA) for Hopper; Blackwell has no wgmma.

bfloat16 only, as `wgmma` multiplies float32 no better than in TF32; head width 64 or 128. Rows are the tokens of a
batch entry in order, padded to whole tiles; grouped key/value heads are never repeated. Where the items stand among the
anchors is data. The ptxas of CUDA 12.8 up to 12.9.0 is known to miscompile causal masks of such kernels: use a later
one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.experimental.pallas import mosaic_gpu as plgpu

from hisam_jax.kernels.anchor_attention import (
    devices,
    gpu_backward,
    gpu_backward_anchors,
    gpu_forward,
    gpu_plan,
    gpu_tile,
)
from hisam_jax.kernels.anchor_attention.core import Implementation, Inputs, Rule
from hisam_jax.kernels.anchor_attention.gpu_tile import HALF, LOG2_E, ROWS
from hisam_jax.kernels.anchor_attention.tiles import Sizes, Tiles

WIDTHS = (64, 128)
POOL = 8


@dataclasses.dataclass(frozen=True)
class Problem:
    """What a kernel is compiled for.

    Attributes:
        tokens: of an item.
        window: of the rule.
        group: query heads a key/value head serves.
        block: anchors of a block.
        scale: of scores, in bits.
        own_steps: tiles of 64 keys that the items of 64 rows touch: 2 where items cross the tiles' edges.
        slots: tiles under way from global to shared memory.
    """

    tokens: int
    window: int | None
    group: int
    block: int
    scale: float
    own_steps: int
    slots: int


@contextlib.contextmanager
def interpreted(**params):
    """Kernels traced within run on the CPU, for their values; needs the interpreter of jax 0.12.

    A program's three warpgroups are threads that wait for each other inside XLA's pool: one of fewer than 8 hangs, so
    set the environment's PJRT_NPROC to 8 or more before jax starts.

    Raises:
        NotImplementedError: this jax has no interpreter, or the pool is too small.
    """
    if not hasattr(plgpu, "force_gpu_interpret_mode"):
        raise NotImplementedError(f"jax {jax.__version__} does not interpret Mosaic GPU kernels: 0.12 does")
    if int(os.environ.get("PJRT_NPROC") or os.environ.get("NPROC") or os.cpu_count() or 1) < POOL:
        raise NotImplementedError(f"the interpreter hangs in a pool of few threads: set PJRT_NPROC to {POOL} or more")
    token = gpu_tile.in_place.set(False)
    try:
        with plgpu.force_gpu_interpret_mode(plgpu.InterpretGPUParams(**params)):
            yield
    finally:
        gpu_tile.in_place.reset(token)


def interpretation() -> bool:
    """Whether `interpreted` holds here."""
    return not gpu_tile.in_place.get()


def rounded(tiles: Tiles, sizes: Sizes) -> Tiles:
    """The tiles that tiles asked for come to: rows are fixed, anchors come in 64s or 128s."""
    items = -(-ROWS // sizes.tokens)
    forward, backward = (HALF if n <= HALF else ROWS for n in (tiles.anchors, tiles.backward_anchors))
    return Tiles(items, forward, items, HALF if sizes.width > HALF else backward)


def tiles(sizes: Sizes) -> Tiles:
    """Tile sizes that fit an H100's registers and shared memory.

    Rows come in 128s, in the kernel for anchors in 64s, whatever is asked of items; anchors in 64s or 128s.
    """
    return rounded(Tiles(sizes.items, sizes.anchors, sizes.items, sizes.anchors), sizes)


def forward(x: Inputs, rule: Rule, tiles: Tiles) -> tuple[jax.Array, jax.Array]:
    """See `core`.

    Raises:
        NotImplementedError: a dtype or head width that the kernel does not take.
    """
    problem = _problem(x, rule, tiles.anchors)
    arrays, marks_B2R, segment_BM = _prepare(x, rule, problem.block)
    order = gpu_plan.order_of_visits(*gpu_plan.visits(marks_B2R, segment_BM, rule, ROWS, problem.block))
    out_BRHD, lse_BHR = gpu_forward.attend(*arrays, marks_B2R, segment_BM, order, problem)
    return _by_item(x, out_BRHD), _by_item(x, rearrange(lse_BHR, "b h r -> b r h"))


def _problem(x: Inputs, rule: Rule, anchors: int) -> Problem:
    width, tokens, group = x.q_BNTHD.shape[4], x.q_BNTHD.shape[2], x.q_BNTHD.shape[3] // x.k_BNTGD.shape[3]
    if x.q_BNTHD.dtype != jnp.bfloat16:
        raise NotImplementedError(f"the gpu kernel takes bfloat16, not {x.q_BNTHD.dtype}: wgmma has no exact float32")
    if width not in WIDTHS:
        raise NotImplementedError(f"the gpu kernel takes head widths of 64 and 128, not {width}")
    if tokens > HALF:
        raise NotImplementedError(f"the gpu kernel takes items of at most {HALF} tokens, not {tokens}")
    capability = devices.compute_capability()
    if capability is not None and not 9 <= capability < 10:
        raise NotImplementedError(f"the gpu kernel is for Hopper, compute capability 9, not {capability}")
    block = HALF if anchors <= HALF else ROWS
    return Problem(
        tokens, rule.window, group, block, width**-0.5 * LOG2_E, 1 if HALF % tokens == 0 else 2, 256 // width
    )


def _prepare(x: Inputs, rule: Rule, block: int):
    """The five arrays by rows and in whole tiles, the marks of rows, and the anchors' segments."""
    rows = [_by_row(part) for part in x[:3]]
    anchors = [_padded(part, block) for part in x[3:5]]
    segment_BM = _padded(x.anchor_segment_BM.astype(jnp.int32), block)
    return (*rows, *anchors), gpu_plan.row_marks(x, rule, rows[0].shape[1]), segment_BM


def _by_row(part):
    return _padded(part.reshape(part.shape[0], -1, *part.shape[3:]), ROWS)


def _padded(array, multiple: int):
    excess = -array.shape[1] % multiple
    return jnp.pad(array, ((0, 0), (0, excess), *((0, 0),) * (array.ndim - 2))) if excess else array


def _by_item(x: Inputs, rows):
    items, tokens = x.q_BNTHD.shape[1:3]
    return rearrange(rows[:, : items * tokens], "b (n t) ... -> b n t ...", t=tokens)


def backward(x: Inputs, lse_BNTH, d_out_BNTHD, delta_BNTH, rule: Rule, tiles: Tiles):
    """See `core`: one kernel for queries, one for the items' own tokens, one for anchors.

    Raises:
        NotImplementedError: a dtype or head width that the kernels do not take.
    """
    problem = _problem(x, rule, HALF if x.q_BNTHD.shape[-1] > HALF else tiles.backward_anchors)
    arrays, marks_B2R, segment_BM = _prepare(x, rule, gpu_backward_anchors.BLOCK)
    d_out_BRHD = _by_row(d_out_BNTHD)
    stats_BH3R = _stats(lse_BNTH, delta_BNTH, marks_B2R)
    order = gpu_plan.order_of_visits(*gpu_plan.visits(marks_B2R, segment_BM, rule, ROWS, problem.block))
    d_q = gpu_backward.queries(arrays, d_out_BRHD, stats_BH3R, marks_B2R, segment_BM, order, problem)
    d_k, d_v = gpu_backward.own_tokens(*arrays[:3], d_out_BRHD, stats_BH3R, problem)
    some, every = gpu_plan.visits(marks_B2R, segment_BM, rule, HALF, gpu_backward_anchors.BLOCK)
    order = gpu_plan.order_of_visits(some.swapaxes(1, 2), every.swapaxes(1, 2))
    d_anchors = gpu_backward_anchors.anchors(
        arrays[0], *arrays[3:], d_out_BRHD, stats_BH3R, marks_B2R, segment_BM, order, problem
    )
    count = x.anchor_k_BMGD.shape[1]
    d_anchors = (part[:, :count].astype(x.q_BNTHD.dtype) for part in d_anchors)
    return (*(_by_item(x, part) for part in (d_q, d_k, d_v)), *d_anchors)


def _stats(lse_BNTH, delta_BNTH, marks_B2R):
    """float32 `[B, H, 3, R]`, see `gpu_backward`."""
    lse_BHR, delta_BHR = (rearrange(_by_row(part), "b r h -> b h r") for part in (lse_BNTH * LOG2_E, delta_BNTH))
    limit_B1R, segment_B1R = marks_B2R[:, :1], marks_B2R[:, 1:]
    own_BHR, far_BHR = (jnp.where(reads > 0, lse_BHR, gpu_tile.NEVER) for reads in (segment_B1R, limit_B1R))
    return jnp.stack([own_BHR, far_BHR, delta_BHR], axis=2)


IMPLEMENTATION = Implementation("gpu", forward, backward, tiles, rounded)
