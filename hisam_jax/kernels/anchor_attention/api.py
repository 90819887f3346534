"""The one public function of memory-anchor attention; a named implementation is never silently replaced."""

from __future__ import annotations

import functools
import importlib
import sys

import jax
import jax.numpy as jnp

from hisam_jax.errors import UserError
from hisam_jax.kernels.anchor_attention import core, reference, tuning
from hisam_jax.kernels.anchor_attention.checks import check
from hisam_jax.kernels.anchor_attention.core import Implementation, Inputs, Rule
from hisam_jax.kernels.anchor_attention.devices import device
from hisam_jax.kernels.anchor_attention.tiles import Tiles

__all__ = ["IMPLEMENTATIONS", "ORDER", "anchor_attention"]

IMPLEMENTATIONS = ("reference", "xla", "tpu", "gpu")
ORDER = {"tpu": ("tpu", "xla"), "gpu": ("gpu", "xla"), "cpu": ("xla",)}  # tried in turn where none is named


def anchor_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    strict: bool = False,
    window: int | None = None,
    cached_k: jax.Array | None = None,
    cached_v: jax.Array | None = None,
    cached_segment_ids: jax.Array | None = None,
    return_lse: bool = False,
    tiles: Tiles | None = None,
    implementation: str | None = None,
) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Memory-anchor attention: fine tokens inside an item, earlier items through their anchors only.

    Differentiable once, in reverse, in `q`, `k`, `v` and the cache, and in both results. Scores are scaled by
    width^-0.5; softmax and sums are float32 whatever the inputs are.

    Args:
        q: `[batch, items, tokens, heads, width]`, bf16 or float32; the anchor is the last of `tokens`.
        k: `[batch, items, tokens, kv_heads, width]`; `kv_heads` divides `heads`.
        v: shaped like `k`.
        segment_ids: int32 `[batch, items]`; items attend within their segment, 0 or less is padding. None: one, 1.
        strict: anchors do not read earlier anchors (AnLLM's form, arXiv 2402.07616).
        window: how many items back anchors are read from, counted in positions, the cache's included; 0 leaves an
            item its own tokens alone; None: all.
        cached_k: keys of the anchors of earlier items `[batch, cached items, kv_heads, width]`, oldest first.
        cached_v: shaped like `cached_k`.
        cached_segment_ids: int32 `[batch, cached items]`; None: all of segment 1.
        return_lse: whether to return the log-sum-exp of the scaled scores as well.
        tiles: tile sizes; None: those tuned for this device, else heuristics.
        implementation: a name of `IMPLEMENTATIONS`, which is used or refused; None: the first of `ORDER` that can.

    Returns:
        Shape and dtype of `q`, zeros for padding; with `return_lse` also float32 `[batch, items, tokens, heads]`, -inf
        for padding. Inputs must be finite, padding too: zero times NaN is NaN.

    Raises:
        UserError: shapes, dtypes or segment ids that do not fit, a named implementation that is unknown, not there on
            this platform, or cannot do this problem.
    """
    check(q, k, v, segment_ids, window, cached_k, cached_v, cached_segment_ids, tiles, strict)
    inputs = _inputs(q, k, v, segment_ids, cached_k, cached_v, cached_segment_ids)
    rule = Rule(bool(strict), shortened(window, inputs.anchor_k_BMGD.shape[1]))
    out, lse = attend(inputs, rule, tiles, implementation)
    return (out, lse) if return_lse else out


def shortened(window: int | None, anchors: int) -> int | None:
    """A window that leaves no anchor out is none."""
    return None if window is None or window >= anchors else window


def _inputs(q, k, v, segment_ids, cached_k, cached_v, cached_segment_ids) -> Inputs:
    segment_BN = jnp.ones(q.shape[:2], jnp.int32) if segment_ids is None else segment_ids.astype(jnp.int32)
    anchors = k[:, :, -1], v[:, :, -1], segment_BN
    first = 0
    if cached_k is not None:
        first = cached_k.shape[1]
        cached = jnp.ones(cached_k.shape[:2], jnp.int32) if cached_segment_ids is None else cached_segment_ids
        parts = cached_k.astype(k.dtype), cached_v.astype(v.dtype), cached.astype(jnp.int32)
        anchors = tuple(jnp.concatenate(pair, axis=1) for pair in zip(parts, anchors, strict=True))
    return Inputs(q, k, v, anchors[0], anchors[1], segment_BN, anchors[2], jnp.int32(first))


def attend(x: Inputs, rule: Rule, tiles: Tiles | None = None, name: str | None = None) -> tuple[jax.Array, jax.Array]:
    """`anchor_attention` where anchors are given apart: `(out_BNTHD, lse_BNTH)`. What sharded callers use."""
    where = device()[0]
    if name is None:
        reasons = []
        for candidate in order(where):
            try:
                return _run(candidate, x, rule, tiles)
            except NotImplementedError as reason:
                reasons.append(f"{candidate}: {reason}")
        raise UserError(f"no implementation of anchor attention can do this: {'; '.join(reasons)}")
    if name not in available(where):
        raise UserError(
            f"no implementation {name!r} of anchor attention on platform {where!r}",
            field="implementation",
            expected=" or ".join(available(where)),
        )
    try:
        return _run(name, x, rule, tiles)
    except NotImplementedError as reason:
        problem = f"{name} cannot do this: {reason}"
        raise UserError(problem, field="implementation", expected="another one, or None") from None


def _run(name: str, x: Inputs, rule: Rule, tiles: Tiles | None):
    if name == "reference":
        return reference.attend(x, rule)
    implementation = load(name)
    return core.attend(x, implementation, rule, tiles or tuning.tiles_for(implementation, x, device()[1]))


@functools.cache
def load(name: str) -> Implementation:
    """The implementation called `name`; kernels are imported where they are used first."""
    return importlib.import_module(f"{__package__}.{name}").IMPLEMENTATION


def order(platform: str) -> tuple[str, ...]:
    """Implementations that are tried in turn on a platform where none is named."""
    return ORDER.get(platform, ("xla",))


def available(platform: str) -> tuple[str, ...]:
    """Implementations that run on a platform, and kernels that are being interpreted."""
    return tuple(name for name in IMPLEMENTATIONS if name in ("reference", "xla", platform) or _interpreted(name))


def _interpreted(name: str) -> bool:
    module = sys.modules.get(f"{__package__}.{name}")
    return bool(getattr(module, "interpretation", lambda: False)())
