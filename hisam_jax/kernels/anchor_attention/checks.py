"""What anchor attention refuses before any kernel starts."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from hisam_jax.errors import UserError
from hisam_jax.kernels.anchor_attention.tiles import Tiles


def check(
    q, k, v, segment_ids, window, cached_k=None, cached_v=None, cached_segment_ids=None, tiles=None, strict=False
) -> None:
    """Shapes, dtypes and segment ids of `api.anchor_attention`.

    Raises:
        UserError: the first that does not fit, with its sizes.
    """
    for name, x in (("q", q), ("k", k), ("v", v), ("cached_k", cached_k), ("cached_v", cached_v)):
        if not (hasattr(x, "shape") and hasattr(x, "dtype")) and not (x is None and name.startswith("cached")):
            raise UserError(f"{name} of type {type(x).__name__}", field=name, expected="an array")
    if not isinstance(strict, (bool, np.bool_)):
        raise UserError(f"strict of type {type(strict).__name__}", field="strict", expected="True or False, not traced")
    if q.ndim != 5 or not all(q.shape):
        raise UserError(f"q of shape {q.shape}", field="q", expected="[batch, items, tokens, heads, width], none 0")
    if k.shape != v.shape:
        raise UserError(f"k of shape {k.shape} beside v of shape {v.shape}", field="v", expected="the shape of k")
    if (
        k.ndim != 5
        or (*k.shape[:3], k.shape[4]) != (*q.shape[:3], q.shape[4])
        or not k.shape[3]
        or q.shape[3] % k.shape[3]
    ):
        raise UserError(
            f"k of shape {k.shape} beside q of shape {q.shape}",
            field="k",
            expected="q's shape, with a number of heads that divides q's",
        )
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dtype not in (jnp.float32, jnp.bfloat16) or x.dtype != q.dtype:
            raise UserError(
                f"{name} of dtype {x.dtype}", field=name, expected="float32 or bfloat16, one for q, k and v"
            )
    if segment_ids is not None:
        _check_segments("segment_ids", segment_ids, q.shape[:2])
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 0):
        raise UserError(f"window {window!r}", field="window", expected="None or a whole number of items, 0 or more")
    if tiles is not None and not isinstance(tiles, Tiles):
        raise UserError(f"tiles {tiles!r}", field="tiles", expected="a Tiles, or None")
    _check_cache(k, cached_k, cached_v, cached_segment_ids)


def _check_segments(name: str, ids, shape: tuple[int, ...]) -> None:
    found = f"shape {ids.shape} and dtype {ids.dtype}" if hasattr(ids, "dtype") else f"type {type(ids).__name__}"
    # A wider integer would wrap: two users could become one.
    if not hasattr(ids, "dtype") or ids.shape != shape or not jnp.can_cast(ids.dtype, jnp.int32):
        raise UserError(f"{name} of {found}", field=name, expected=f"int32 of shape {shape}")


def _check_cache(k, cached_k, cached_v, cached_segment_ids) -> None:
    if cached_k is None and cached_v is None:
        if cached_segment_ids is not None:
            raise UserError("cached_segment_ids without a cache", field="cached_k", expected="keys of cached anchors")
        return
    for name, x in (("cached_k", cached_k), ("cached_v", cached_v)):
        batch, groups, width = k.shape[0], k.shape[3], k.shape[4]
        if x is None or x.ndim != 4 or (x.shape[0], *x.shape[2:]) != (batch, groups, width):
            raise UserError(
                f"{name} {'missing' if x is None else f'of shape {x.shape}'} beside k of shape {k.shape}",
                field=name,
                expected=f"[{batch}, cached items, {groups}, {width}]",
            )
        if x.dtype not in (jnp.float32, jnp.bfloat16):
            raise UserError(f"{name} of dtype {x.dtype}", field=name, expected="float32 or bfloat16")
    if cached_k.shape != cached_v.shape:
        raise UserError(
            f"cached_k of shape {cached_k.shape} beside cached_v of shape {cached_v.shape}",
            field="cached_v",
            expected="the shape of cached_k",
        )
    if cached_segment_ids is not None:
        _check_segments("cached_segment_ids", cached_segment_ids, cached_k.shape[:2])
