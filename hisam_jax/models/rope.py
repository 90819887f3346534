"""Rotary positions: hierarchical (item index and slot in two orthogonal halves of the head), flat, or none."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Rotation = tuple[tuple[jax.Array, jax.Array], ...]  # (cos, sin) of each part of the head width


def rotation(
    item_BN, slot_T, width: int, *, mode: str, slots: int, base_item: float = 1e4, base_slot: float = 1e2
) -> Rotation:
    """Cosines and sines of positions, once for all layers, heads, queries and keys.

    `hierarchical` [two orthogonal subspaces: stated; halves and bases: ours]: the first half of the width turns with
    the item's index, the second with the slot inside the item, so `score = q1' R(n_i - n_j) k1 + q2' R(k_i - k_j) k2`.
    `flat`: the whole width turns with `item * slots + slot`. `none`: nothing turns.

    Args:
        item_BN: index of the item in its row.
        slot_T: index of the token in its item.
        width: of a head, divisible by 4.
        mode: `hierarchical`, `flat` or `none`.
        slots: tokens per item, for `flat`.

    Returns:
        For each part float32 `[B or 1, N or 1, T or 1, 1, pairs]`, for `rotate`.
    """
    item_BN1, slot_11T = item_BN[:, :, None], slot_T[None, None, :]
    if mode == "none":
        return ()
    if mode == "flat":
        return (_turn(item_BN1 * slots + slot_11T, width // 2, base_item),)
    if mode != "hierarchical":
        raise ValueError(f"rope mode {mode!r}: expected hierarchical, flat or none")
    return _turn(item_BN1, width // 4, base_item), _turn(slot_11T, width // 4, base_slot)


def rotate(x_BNTHD: jax.Array, turns: Rotation) -> jax.Array:
    """Queries or keys turned: in each part of P pairs, `(x[i], x[i + P])` (RoPE, Su et al. 2021)."""
    if not turns:
        return x_BNTHD
    halves, out = jnp.split(x_BNTHD, 2 * len(turns), axis=-1), []
    for (cos, sin), first, second in zip(turns, halves[::2], halves[1::2], strict=True):
        cos, sin = cos.astype(x_BNTHD.dtype), sin.astype(x_BNTHD.dtype)
        out += [first * cos - second * sin, second * cos + first * sin]
    return jnp.concatenate(out, axis=-1)


def _turn(position: jax.Array, pairs: int, base: float) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of `position * base^(-i/pairs)` for pair i, one head axis before it."""
    frequency_F = base ** (-jnp.arange(pairs, dtype=jnp.float32) / pairs)
    angle = position.astype(jnp.float32)[..., None, None] * frequency_F
    return jnp.cos(angle), jnp.sin(angle)
