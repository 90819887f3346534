"""Rotary positions: hierarchical (item index and slot in two orthogonal halves of the head), flat, or none."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rotate(x: jax.Array, position: jax.Array, base: float) -> jax.Array:
    """Rotates pairs `(x[i], x[i + D/2])` of the last axis by `position * base^(-2i/D)` (RoPE, Su et al. 2021).

    Args:
        x: `[..., heads, D]`, D even.
        position: broadcastable to `x.shape[:-2]`.
    """
    half = x.shape[-1] // 2
    frequency_F = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = position.astype(jnp.float32)[..., None, None] * frequency_F
    cos, sin = jnp.cos(angle).astype(x.dtype), jnp.sin(angle).astype(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def rope(
    x_BNTHD, item_BN, slot_T, *, mode: str, slots: int, base_item: float = 1e4, base_slot: float = 1e2
) -> jax.Array:
    """Positions for queries or keys.

    `hierarchical` [two orthogonal subspaces: stated; halves and bases: ours]: the first half of the width turns with
    the item's index, the second with the slot inside the item, so `score = q1' R(n_i - n_j) k1 + q2' R(k_i - k_j) k2`.
    `flat`: the whole width turns with `item * slots + slot`. `none`: unchanged.

    Args:
        x_BNTHD: queries or keys, width divisible by 4.
        item_BN: index of the item in its row.
        slot_T: index of the token in its item.
        slots: tokens per item, for `flat`.
    """
    item_BN1, slot_11T = item_BN[:, :, None], slot_T[None, None, :]
    if mode == "none":
        return x_BNTHD
    if mode == "flat":
        return rotate(x_BNTHD, item_BN1 * slots + slot_11T, base_item)
    if mode != "hierarchical":
        raise ValueError(f"rope mode {mode!r}: expected hierarchical, flat or none")
    half = x_BNTHD.shape[-1] // 2
    by_item = rotate(x_BNTHD[..., :half], item_BN1, base_item)
    by_slot = rotate(x_BNTHD[..., half:], jnp.broadcast_to(slot_11T, x_BNTHD.shape[:3]), base_slot)
    return jnp.concatenate([by_item, by_slot], axis=-1)
