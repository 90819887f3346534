"""What a target sees of the events before it, all or those that share something with it: weighed by DIN's network, or
pooled.

Free functions over a packed row, in blocks of targets, so that no `[N, N, H]` array of a whole row exists. An event
sees earlier ones of its own segment alone; never itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from hisam_jax.sharding import BATCH, look_up

ROWS = jax.P(BATCH)  # a target reads its whole row: items are not split over devices
RECENCIES = 10  # buckets of how many events ago, by powers of two
Weights = Mapping[str, jax.Array]


def allowed(place_BQ: jax.Array, segment_BQ: jax.Array, segment_BN: jax.Array) -> jax.Array:
    """bool [B, Q, N]: event n is of the target's segment and before its place; padding (segment 0) is never seen."""
    earlier_BQN = jnp.arange(segment_BN.shape[1]) < place_BQ[..., None]
    return earlier_BQN & (segment_BQ[..., None] == segment_BN[:, None]) & (segment_BN > 0)[:, None]


def recency(place_BQ: jax.Array, events: int) -> jax.Array:
    """int32 [B, Q, N]: 0 for the event before, 1 for the two before that, then 4, 8, ... of them."""
    ago_BQN = jnp.maximum(place_BQ[..., None] - jnp.arange(events), 1)
    return jnp.minimum(31 - jax.lax.clz(ago_BQN.astype(jnp.int32)), RECENCIES - 1)


def weigh(weights: Weights, target_BQD: jax.Array, past_BND: jax.Array, ago_BQN: jax.Array) -> jax.Array:
    """What each past event counts for a target [B, Q, N] in DIN's pooling, by a network of `[t, p, t - p, t * p]`.

    There is no softmax. The first layer's part in t, p and t - p is a sum of one product each, made once an event and
    not once a pair; recency joins that layer [ours].

    Args:
        weights: `target`, `past`, `product` [D, H], `recency` [RECENCIES, H], `bias`, `out` [H], `base` [].
        target_BQD: what is scored.
        past_BND: what it attends to.
        ago_BQN: see `recency`.
    """
    hidden_BQNH = jnp.einsum("bqd,dh,bnd->bqnh", target_BQD, weights["product"], past_BND)
    hidden_BQNH += (target_BQD @ weights["target"] + weights["bias"])[:, :, None]
    hidden_BQNH += (past_BND @ weights["past"])[:, None]
    hidden_BQNH += look_up(weights["recency"], ago_BQN, ROWS)
    return jax.nn.silu(hidden_BQNH) @ weights["out"] + weights["base"]


def weighted(weight_BQN: jax.Array, past_BND: jax.Array, chosen_BQN: jax.Array) -> jax.Array:
    """Weighted sum [B, Q, D] of the chosen events, over the root of their number, to bound it for long histories
    [ours]; 0 where none is."""
    weight_BQN = jnp.where(chosen_BQN, weight_BQN, 0.0)
    length_BQ1 = jnp.maximum(chosen_BQN.sum(-1, keepdims=True), 1)
    return jnp.einsum("bqn,bnd->bqd", weight_BQN, past_BND) * length_BQ1**-0.5


def pool(value_BNV: jax.Array, chosen_BQN: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(sum [B, Q, V], number [B, Q]) of the chosen events."""
    chosen_BQN = chosen_BQN.astype(value_BNV.dtype)
    return jnp.einsum("bqn,bnv->bqv", chosen_BQN, value_BNV), chosen_BQN.sum(-1)


def same_codes(target_BQL: jax.Array, past_BNL: jax.Array, reserved: tuple[int, ...]) -> jax.Array:
    """bool [B, Q, N]: all of the codes are the same, and none is the reserved one of an item without features."""
    same_BQN = (target_BQL[:, :, None] == past_BNL[:, None]).all(-1)
    return same_BQN & (target_BQL < jnp.asarray(reserved)).all(-1)[..., None]


def among(target_BQK: jax.Array, past_BN: jax.Array) -> jax.Array:
    """bool [B, Q, N]: past item n is one of the target's K; one at a time, so that no `[B, Q, N, K]` is needed."""

    def same(item_BQ: jax.Array) -> jax.Array:
        return item_BQ[..., None] == past_BN[:, None]

    item_KBQ = jnp.moveaxis(target_BQK, -1, 0)
    return jax.lax.scan(lambda found, item_BQ: (found | same(item_BQ), None), same(item_KBQ[0]), item_KBQ[1:])[0]


def in_blocks(function: Callable[[Any], Any], targets: Any, block: int) -> Any:
    """`function(targets)` over arrays `[B, Q, ...]`, `block` targets at a time, recomputed in the backward pass."""
    size = jax.tree.leaves(targets)[0].shape[1]
    if size <= block:
        return function(targets)
    count = -(-size // block)

    def split(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, count * block - size), *((0, 0),) * (x.ndim - 2)))
        return jnp.moveaxis(x.reshape(x.shape[0], count, block, *x.shape[2:]), 1, 0)

    def joined(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(x.shape[0], count * block, *x.shape[3:])[:, :size]

    return jax.tree.map(joined, jax.lax.map(jax.checkpoint(function), jax.tree.map(split, targets)))
