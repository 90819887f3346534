"""Negatives of a pairwise loss: items that a user's window does not hold, drawn exactly, without rejection."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from hisam_jax.sharding import BATCH, SPECS, look_up, shard


def draw_negatives(
    key: jax.Array, item_BN: jax.Array, segment_BN: jax.Array, trained_I: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`(item_BN, there_BN)`: at each place one item, uniform over the trained ones that its segment does not hold.

    Of the items free to be drawn, in their order, the r-th is r places on plus the held ones that come before it: no
    draw is thrown away, so that the cost is one comparison of all pairs of a row. `there_BN` is False where a segment
    holds every trained item.
    """
    order_I = jnp.argsort(~trained_I, stable=True)
    place_I = jnp.where(trained_I, jnp.cumsum(trained_I) - 1, trained_I.size)
    total = trained_I.sum()
    segment_BN = shard(segment_BN, jax.P(BATCH))
    place_BN = look_up(place_I, shard(item_BN, jax.P(BATCH)), jax.P(BATCH))
    held_BNN, before_BN = _held(place_BN, segment_BN, total)
    free_BN = total - held_BNN.sum(-1)
    drawn_BN = shard(
        jax.random.randint(key, item_BN.shape, 0, shard(jnp.maximum(free_BN, 1), SPECS.whole)), jax.P(BATCH)
    )
    passed_BNN = held_BNN & ((place_BN - before_BN)[:, None, :] <= drawn_BN[..., None])
    rank_BN = jnp.minimum(drawn_BN + passed_BNN.sum(-1), total - 1)
    return shard(look_up(order_I, rank_BN, jax.P(BATCH)), SPECS.batch), shard(free_BN > 0, SPECS.batch)


def _held(place_BN: jax.Array, segment_BN: jax.Array, total: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`(held_BNN, before_BN)`: whether m is the first of its item in n's segment, and how many such are below it."""
    same_BNN = segment_BN[:, :, None] == segment_BN[:, None]
    earlier_NN = jnp.tril(jnp.ones(same_BNN.shape[1:], bool), -1)
    again_BN = (same_BNN & earlier_NN & (place_BN[:, :, None] == place_BN[:, None])).any(-1)
    held_BNN = same_BNN & (~again_BN & (place_BN < total))[:, None]
    return held_BNN, (held_BNN & (place_BN[:, None] < place_BN[:, :, None])).sum(-1)
