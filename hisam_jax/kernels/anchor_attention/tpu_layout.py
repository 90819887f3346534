"""How the TPU kernels see the arrays: rows of whole items of one kv head, anchor blocks, and which meet which.

A tile holds `tile_items` items; its rows are item-major, then the `ratio` query heads of the kv head, then the slot:
`row = (item * ratio + head) * tokens + slot`. Items and anchors are padded to whole tiles with segment 0. Which anchor
blocks a tile reads, and which of them need no mask, is found before the kernel runs (`spans`) and prefetched as
scalars, so that blocks past the diagonal, out of the window or of other segments are neither fetched nor computed.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from hisam_jax.kernels.anchor_attention.core import Inputs, Rule
from hisam_jax.kernels.anchor_attention.tiles import Sizes

LANES = 128
SCALARS = 1 << 14  # of prefetched spans: 64 KiB an array of the 1 MiB of scalar memory of a TPU core


@dataclasses.dataclass(frozen=True)
class Plan:
    """Static sizes of one kernel call; `items` and `anchors` are the real ones, the rest follows from the tile."""

    batch: int
    sizes: Sizes
    strict: bool
    window: int | None
    tile_items: int
    tile_anchors: int

    @property
    def ratio(self) -> int:
        return self.sizes.heads // self.sizes.kv_heads

    @property
    def rows(self) -> int:
        return self.tile_items * self.ratio * self.sizes.tokens

    @property
    def keys(self) -> int:
        return self.tile_items * self.sizes.tokens

    @property
    def tiles(self) -> int:
        return -(-self.sizes.items // self.tile_items)

    @property
    def blocks(self) -> int:
        return max(-(-self.sizes.anchors // self.tile_anchors), 1)

    @property
    def block_steps(self) -> int:
        """Most anchor blocks that a tile of queries may meet."""
        return _steps(self.tile_items, self.tile_anchors, self.blocks, self.window)

    @property
    def tile_steps(self) -> int:
        """Most tiles of queries that an anchor block may meet."""
        return _steps(self.tile_anchors, self.tile_items, self.tiles, self.window)

    @property
    def local(self) -> list[tuple[int, int]]:
        """(first item, items) of the parts of a tile that are scored against their own tokens, 128 keys or so each."""
        size = local_items(self.sizes)
        return [(start, min(size, self.tile_items - start)) for start in range(0, self.tile_items, size)]


def _steps(have: int, size: int, total: int, window: int | None) -> int:
    return total if window is None else min(total, (have + window - 2) // size + 2)


def item_unit(sizes: Sizes) -> int:
    """Items whose keys fill whole sublane packs (8 of float32, 16 of bfloat16), so that every slice is aligned."""
    pack = 32 // sizes.bytes
    return pack // math.gcd(pack, sizes.tokens)


def local_items(sizes: Sizes) -> int:
    """Items scored against their own tokens at once: as many as fit the 128 lanes, at least one aligned unit."""
    unit = item_unit(sizes)
    return max(LANES // sizes.tokens // unit * unit, unit)


def make_plan(x: Inputs, rule: Rule, items: int, anchors: int) -> Plan:
    """A plan with tiles rounded up to what the hardware wants, and down to what there is."""
    sizes = Sizes.of(x.q_BNTHD, x.anchor_k_BMGD)
    unit, pack = item_unit(sizes), 32 // sizes.bytes
    items = round_up(min(items, sizes.items), unit)
    anchors = round_up(min(anchors, max(sizes.anchors, 1)), pack)
    return Plan(x.q_BNTHD.shape[0], sizes, rule.strict, rule.window, items, anchors)


def round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


class Operands(NamedTuple):
    """Arrays as the kernels take them: I tiles of rows, J anchor blocks, S rows and K keys over all tiles.

    Segments are shaped so that a block is the whole of the last two axes, which any size may be. Anchors of segment 0
    carry -1, so that equality alone keeps padding from reading padding.
    """

    q_BGSD: jax.Array
    k_BGKD: jax.Array
    v_BGKD: jax.Array
    anchor_k_BGMD: jax.Array
    anchor_v_BGMD: jax.Array
    row_segment_BI1R: jax.Array
    anchor_segment_BJ1A: jax.Array


def operands(x: Inputs, plan: Plan) -> Operands:
    """Pads and transposes; XLA gives the producers of q, k and v this layout where it can."""
    segment_BN, anchor_segment_BM = _segments(x, plan)
    row_segment = repeat(
        segment_BN, "b (i n) -> b i 1 (n r)", n=plan.tile_items, r=plan.ratio * plan.sizes.tokens, i=plan.tiles
    )
    anchor_segment = rearrange(
        jnp.where(anchor_segment_BM > 0, anchor_segment_BM, -1), "b (j a) -> b j 1 a", a=plan.tile_anchors
    )
    return Operands(
        to_rows(x.q_BNTHD, plan),
        *(rearrange(_pad_items(y, plan), "b n t g d -> b g (n t) d") for y in (x.k_BNTGD, x.v_BNTGD)),
        *(rearrange(_pad_anchors(y, plan), "b m g d -> b g m d") for y in (x.anchor_k_BMGD, x.anchor_v_BMGD)),
        row_segment,
        anchor_segment,
    )


def to_rows(x_BNTHD: jax.Array, plan: Plan) -> jax.Array:
    """`[B, G, S, D]`: rows of all tiles, in the order of the module's first lines."""
    return rearrange(_pad_items(x_BNTHD, plan), "b n t (g r) d -> b g (n r t) d", r=plan.ratio)


def from_rows(x_BGSD: jax.Array, plan: Plan) -> jax.Array:
    """Undoes `to_rows`, without the padding."""
    x = rearrange(x_BGSD, "b g (n r t) d -> b n t (g r) d", r=plan.ratio, t=plan.sizes.tokens)
    return x[:, : plan.sizes.items]


def to_row_vectors(x_BNTH: jax.Array, plan: Plan) -> jax.Array:
    """`[B, G, I, 1, rows]`: one number a row, rows along the lanes."""
    return rearrange(to_rows(x_BNTH[..., None], plan), "b g (i r) 1 -> b g i 1 r", r=plan.rows)


def from_row_vectors(x_BGI1R: jax.Array, plan: Plan) -> jax.Array:
    """Undoes `to_row_vectors`."""
    return from_rows(rearrange(x_BGI1R, "b g i 1 r -> b g (i r) 1"), plan)[..., 0]


def from_keys(x_BGKD: jax.Array, plan: Plan) -> jax.Array:
    """`[B, N, T, G, D]` of keys of all tiles."""
    return rearrange(x_BGKD, "b g (n t) d -> b n t g d", t=plan.sizes.tokens)[:, : plan.sizes.items]


def from_anchors(x_BGMD: jax.Array, plan: Plan) -> jax.Array:
    """`[B, M, G, D]` of anchors of all blocks."""
    return rearrange(x_BGMD, "b g m d -> b m g d")[:, : plan.sizes.anchors]


def _pad_items(x: jax.Array, plan: Plan) -> jax.Array:
    return _pad(x, plan.tiles * plan.tile_items)


def _pad_anchors(x: jax.Array, plan: Plan) -> jax.Array:
    return _pad(x, plan.blocks * plan.tile_anchors)


def _pad(x: jax.Array, length: int) -> jax.Array:
    if x.shape[1] == length:
        return x
    return jnp.pad(x, [(0, 0), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2))


def _segments(x: Inputs, plan: Plan) -> tuple[jax.Array, jax.Array]:
    """Padded, with everything below 1 as 0."""
    segment, anchor_segment = (jnp.maximum(y.astype(jnp.int32), 0) for y in (x.segment_BN, x.anchor_segment_BM))
    return _pad_items(segment, plan), _pad_anchors(anchor_segment, plan)


def spans(x: Inputs, plan: Plan, *, by_anchors: bool = False) -> jax.Array:
    """int32 `[4 * B' * I]`: for each tile of queries its range of anchor blocks and the range that needs no mask.

    Flat and field-major: start, count, start and end of the mask-free run. `by_anchors`: for each block of anchors its
    range of tiles. `B'` is the batch, or 1 where so many scalars would not fit: then one range holds for all rows of
    the batch, their union, which costs work but no correctness, for every block but the mask-free ones is masked.
    """
    meets_BIJ, whole_BIJ = _meetings(x, plan)
    if shared(plan, by_anchors=by_anchors):
        meets_BIJ, whole_BIJ = meets_BIJ.any(0, keepdims=True), whole_BIJ.all(0, keepdims=True)
    if by_anchors:
        meets_BIJ, whole_BIJ = meets_BIJ.swapaxes(1, 2), whole_BIJ.swapaxes(1, 2)
    length = meets_BIJ.shape[-1]
    start = jnp.argmax(meets_BIJ, axis=-1)
    count = jnp.where(meets_BIJ.any(-1), length - jnp.argmax(meets_BIJ[..., ::-1], axis=-1) - start, 0)
    whole_start = jnp.argmax(whole_BIJ, axis=-1)
    after = (jnp.arange(length) >= whole_start[..., None]) & ~whole_BIJ
    whole_end = jnp.where(after.any(-1), jnp.argmax(after, axis=-1), length)
    return jnp.stack([start, count, whole_start, whole_end]).astype(jnp.int32).reshape(-1)


def shared(plan: Plan, *, by_anchors: bool = False) -> bool:
    """Whether all rows of the batch share their spans."""
    return plan.batch * (plan.blocks if by_anchors else plan.tiles) * 4 > SCALARS


def _meetings(x: Inputs, plan: Plan) -> tuple[jax.Array, jax.Array]:
    """bool `[B, I, J]`: may any row of the tile read any anchor of the block; does every row read every one?"""
    segment_BN, anchor_segment_BM = _segments(x, plan)
    low_BI, high_BI, same_BI = (y[:, :, None] for y in _ranges(segment_BN, plan.tiles))
    low_BJ, high_BJ, same_BJ = (y[:, None] for y in _ranges(anchor_segment_BM, plan.blocks))
    item_I = x.first + plan.tile_items * jnp.arange(plan.tiles)
    last_I = item_I + plan.tile_items - 1
    anchor_J = plan.tile_anchors * jnp.arange(plan.blocks)
    end_J = anchor_J + plan.tile_anchors - 1
    meets = anchor_J < last_I[:, None]
    whole = end_J < item_I[:, None]
    if plan.window is not None:
        meets &= item_I[:, None] - end_J <= plan.window
        whole &= last_I[:, None] - anchor_J <= plan.window
    if plan.strict:
        whole &= False
    meets = meets & (low_BI <= high_BJ) & (low_BJ <= high_BI)
    return meets, whole & (same_BI == same_BJ) & (same_BI > 0)


def _ranges(segment_BN: jax.Array, parts: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of each part the least and greatest real segment, and the one segment that it is of, or 0."""
    segment_BPN = rearrange(segment_BN, "b (p n) -> b p n", p=parts)
    high, floor = segment_BPN.max(-1), segment_BPN.min(-1)
    low = jnp.where(segment_BPN > 0, segment_BPN, jnp.iinfo(jnp.int32).max).min(-1)
    return low, high, jnp.where(floor == high, high, 0)
