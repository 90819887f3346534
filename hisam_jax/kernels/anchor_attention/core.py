"""What all implementations of anchor attention compute, and the one rule of differentiation around them.

An implementation is a pair of functions over the same arguments, `Inputs`:

- `forward(x, rule, tiles) -> (out_BNTHD, lse_BNTH)`: `out` in q's dtype, `lse` float32, the natural logarithm of the
  sum of exponentiated scaled scores. Rows that may read nothing give zeros and an `lse` of -inf.
- `backward(x, lse_BNTH, d_out_BNTHD, delta_BNTH, rule, tiles) -> (d_q, d_k, d_v, d_anchor_k, d_anchor_v)`, each in the
  shape and dtype of its primal, with `p = exp(s - lse)`, `ds = p * (d_out . v - delta)`. `lse` is finite here: 0 where
  nothing may be read. `delta = sum_D(d_out * out) - d_lse`, float32.

Gradients of anchors are apart from those of the items' own tokens: anchors are an argument of their own, contiguous,
and that they are the last token of each item is the caller's slicing, which JAX differentiates.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hisam_jax.kernels.anchor_attention.tiles import Tiles

MASKED = -1e30


class Inputs(NamedTuple):
    """Arguments of one attention; `H` query heads are served by `G` key/value heads, query head h by `h // (H / G)`.

    Attributes:
        q_BNTHD: queries of N items of T tokens, the anchor last.
        k_BNTGD, v_BNTGD: the items' own tokens.
        anchor_k_BMGD, anchor_v_BMGD: anchors of M items: cached ones and the N items' own.
        segment_BN, anchor_segment_BM: int32 segments, 0 or less is padding.
        first: int32 scalar; query item n is item `first + n` of the M.
    """

    q_BNTHD: jax.Array
    k_BNTGD: jax.Array
    v_BNTGD: jax.Array
    anchor_k_BMGD: jax.Array
    anchor_v_BMGD: jax.Array
    segment_BN: jax.Array
    anchor_segment_BM: jax.Array
    first: jax.Array


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which keys a query reads, beside its own item's earlier tokens and its own.

    Query token (n, t) reads the anchor of item m when `m < first + n`, `first + n - m <= window` where there is a
    window, both are of one segment above 0, and not (`strict` and t is the last token).

    Attributes:
        strict: anchors do not read earlier anchors (AnLLM's form).
        window: items back that anchors are read from; None for all.
    """

    strict: bool = False
    window: int | None = None


@dataclasses.dataclass(frozen=True)
class Implementation:
    """One way to compute it; see the module.

    Attributes:
        name: in the list of the api.
        forward, backward: the two functions.
        tiles: `sizes -> Tiles` that suit them.
        rounded: `(tiles, sizes) -> Tiles`, what tiles asked for come to; two that come to one are one program.
    """

    name: str
    forward: Callable
    backward: Callable
    tiles: Callable
    rounded: Callable = lambda tiles, sizes: tiles


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def attend(x: Inputs, implementation: Implementation, rule: Rule, tiles: Tiles) -> tuple[jax.Array, jax.Array]:
    """`(out_BNTHD, lse_BNTH)` by one implementation, differentiable in all float arguments and in both results."""
    return implementation.forward(x, rule, tiles)


def _forward(x, implementation, rule, tiles):
    out, lse = implementation.forward(x, rule, tiles)
    return (out, lse), (x, out, lse)


def _backward(implementation, rule, tiles, kept, cotangents):
    (x, out, lse), (d_out, d_lse) = kept, cotangents
    reads = jnp.isfinite(lse)
    d_out = d_out.astype(out.dtype)
    delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1) - jnp.where(reads, d_lse, 0.0)
    gradients = implementation.backward(x, jnp.where(reads, lse, 0.0), d_out, delta, rule, tiles)
    none = [np.zeros(part.shape, jax.dtypes.float0) for part in x[len(gradients) :]]
    return (Inputs(*gradients, *none),)


attend.defvjp(_forward, _backward)


def dot(product: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """`einsum` with float32 sums; float32 factors are multiplied as such, where a TPU or a GPU would round them."""
    precision = "highest" if a.dtype == jnp.float32 else None
    return jnp.einsum(product, a, b, preferred_element_type=jnp.float32, precision=precision)


def reads_anchor(rule: Rule, item_Q: jax.Array, anchor_M: jax.Array) -> jax.Array:
    """bool, by broadcasting: does the item at position `item_Q` of the M read the anchor at position `anchor_M`?"""
    reads = anchor_M < item_Q
    if rule.window is not None:
        reads &= item_Q - anchor_M <= rule.window
    return reads
