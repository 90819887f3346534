"""The one public function of memory-anchor attention; a named implementation is never silently replaced."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from hisam_jax.errors import UserError
from hisam_jax.kernels.anchor_attention import reference, xla
from hisam_jax.kernels.anchor_attention.xla import attend_to_context

__all__ = ["IMPLEMENTATIONS", "anchor_attention", "attend_to_context"]

IMPLEMENTATIONS: dict[str, Callable] = {"xla": xla.anchor_attention, "reference": reference.anchor_attention}


def anchor_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    strict: bool = False,
    implementation: str | None = None,
) -> jax.Array:
    """Memory-anchor attention: fine tokens inside an item, earlier items through their anchors only.

    Args:
        q: `[batch, items, tokens, heads, width]`, bf16 or float32; the anchor is the last of `tokens`.
        k: `[batch, items, tokens, kv_heads, width]`; `kv_heads` divides `heads`.
        v: shaped like `k`.
        segment_ids: int32 `[batch, items]`; items attend within their segment, 0 is padding. None: one segment.
        strict: anchors do not read earlier anchors (AnLLM's form).
        implementation: a name of `IMPLEMENTATIONS`, or None for the first that suits the platform.

    Returns:
        Shape and dtype of `q`; scores are scaled by width^-0.5; padding gives zeros.

    Raises:
        UserError: shapes, dtypes or segment ids that do not fit, or an unknown implementation.
    """
    _check(q, k, v, segment_ids)
    name = "xla" if implementation is None else implementation
    if name not in IMPLEMENTATIONS:
        raise UserError(
            f"no implementation {name!r} of anchor attention on platform {jax.default_backend()!r}",
            field="implementation",
            expected=" or ".join(IMPLEMENTATIONS),
        )
    if segment_ids is None:
        segment_ids = jnp.ones(q.shape[:2], jnp.int32)
    return IMPLEMENTATIONS[name](q, k, v, segment_ids, strict=strict)


def _check(q, k, v, segment_ids) -> None:
    if q.ndim != 5:
        raise UserError(f"q of shape {q.shape}", field="q", expected="[batch, items, tokens, heads, width]")
    if k.shape != v.shape:
        raise UserError(f"k of shape {k.shape} beside v of shape {v.shape}", field="v", expected="the shape of k")
    if k.ndim != 5 or (*k.shape[:3], k.shape[4]) != (*q.shape[:3], q.shape[4]) or q.shape[3] % max(k.shape[3], 1):
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
    if segment_ids is None:
        return
    if segment_ids.shape != q.shape[:2] or not jnp.issubdtype(segment_ids.dtype, jnp.integer):
        raise UserError(
            f"segment_ids of shape {segment_ids.shape} and dtype {segment_ids.dtype}",
            field="segment_ids",
            expected=f"integers of shape {q.shape[:2]}",
        )
