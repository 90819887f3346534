"""Anchor attention on a mesh: batch and heads apart, and for long histories the items too.

Where items are split, each device keeps its own items' tokens and gathers the anchors and segments of all of them: one
token in T, and nothing else, crosses devices. That the item axis can be split so is the point of anchors; it is ours.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from hisam_jax.errors import UserError
from hisam_jax.kernels.anchor_attention import api
from hisam_jax.kernels.anchor_attention.checks import check
from hisam_jax.kernels.anchor_attention.core import Inputs, Rule
from hisam_jax.kernels.anchor_attention.tiles import Tiles


@dataclasses.dataclass(frozen=True)
class Axes:
    """Mesh axes, by name, that split an attention; an empty name splits nothing.

    Attributes:
        batch: rows; several axes split them together.
        items: consecutive items of a row, the first device has the oldest.
        heads: query heads and key/value heads alike.
    """

    batch: str | tuple[str, ...] = ""
    items: str = ""
    heads: str = ""

    def named(self) -> list[str]:
        """Every mesh axis that is named, in order."""
        batch = (self.batch,) if isinstance(self.batch, str) else self.batch
        return [name for name in (*batch, self.items, self.heads) if name]


def sharded_anchor_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    axes: Axes,
    segment_ids: jax.Array | None = None,
    strict: bool = False,
    window: int | None = None,
    tiles: Tiles | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """`anchor_attention` under `jax.shard_map` on the mesh that is set (`jax.set_mesh`); arguments as there.

    Raises:
        UserError: as there; no mesh is set, it lacks an axis, an axis is named twice or does not divide what it splits.
    """
    mesh = jax.sharding.get_abstract_mesh()
    check(q, k, v, segment_ids, window, tiles=tiles)
    _check(mesh, axes, q, k)
    segment_ids = jnp.ones(q.shape[:2], jnp.int32) if segment_ids is None else jnp.asarray(segment_ids, jnp.int32)
    batch, items, heads = axes.batch or None, axes.items or None, axes.heads or None
    tokens, ids = jax.P(batch, items, None, heads, None), jax.P(batch, items)
    rule = Rule(bool(strict), api.shortened(window, q.shape[1]))
    local = functools.partial(_local, items=items, rule=rule, tiles=tiles, implementation=implementation)
    specs = (tokens, tokens, tokens, ids)
    arrays = (q, k, v, segment_ids)
    if mesh.explicit_axes:
        arrays = [jax.reshard(array, spec) for array, spec in zip(arrays, specs, strict=True)]
    # Mosaic kernels carry no types of varying axes, hence no check of them.
    split = jax.shard_map(local, in_specs=specs, out_specs=tokens, check_vma=False)
    return split(*arrays)


def _local(q, k, v, segment_BN, *, items: str | None, rule: Rule, tiles, implementation) -> jax.Array:
    """One device's part: its own items' tokens beside everybody's anchors."""
    anchors, first = (k[:, :, -1], v[:, :, -1], segment_BN), jnp.int32(0)
    if items is not None:
        anchors = tuple(jax.lax.all_gather(part, items, axis=1, tiled=True) for part in anchors)
        first = jnp.int32(jax.lax.axis_index(items) * q.shape[1])
    x = Inputs(q, k, v, anchors[0], anchors[1], segment_BN, anchors[2], first)
    return api.attend(x, rule, tiles, implementation)[0]


def _check(mesh, axes: Axes, q, k) -> None:
    if mesh.empty:
        raise UserError("no mesh is set", field="attention axes", expected="jax.set_mesh(mesh) around the call")
    named = axes.named()
    if len(set(named)) < len(named):
        raise UserError(f"axes {named}", field="attention axes", expected="each mesh axis once")
    sizes = {"batch": q.shape[0], "items": q.shape[1], "heads": k.shape[3]}
    for what, part in (("batch", axes.batch), ("items", axes.items), ("heads", axes.heads)):
        split = Axes(part).named()
        for name in split:
            if name not in mesh.shape:
                raise UserError(f"mesh axis {name!r}", field=what, expected=" or ".join(mesh.shape))
        devices = math.prod(mesh.shape[name] for name in split)
        if sizes[what] % devices:
            counted = "kv_heads" if what == "heads" else what
            along = f"axis {split[0]!r}" if len(split) == 1 else f"axes {', '.join(split)}"
            raise UserError(
                f"{sizes[what]} {counted} over {devices} devices of {along}",
                field=what,
                expected=f"a multiple of {devices}",
            )
