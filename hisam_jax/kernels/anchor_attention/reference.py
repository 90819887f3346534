"""The dense, obvious form in float32: the truth for every other implementation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange, repeat


def anchor_mask(segment_ids_BN: jax.Array, tokens: int, *, strict: bool) -> jax.Array:
    """bool `[B, N*T, N*T]`: may query token i (second axis) read key token j (third axis)?

    `allowed = same_item(i, j) and j <= i, or anchor(j) and item(j) < item(i) and not (strict and anchor(i))`, within
    one segment; segment 0 is padding and neither reads nor is read. The rule is Hi-SAM's; `strict` is AnLLM's form.
    """
    items = segment_ids_BN.shape[1]
    item_S, slot_S = jnp.divmod(jnp.arange(items * tokens), tokens)
    anchor_S = slot_S == tokens - 1
    local_SS = (item_S[:, None] == item_S[None, :]) & (slot_S[None, :] <= slot_S[:, None])
    earlier_SS = anchor_S[None, :] & (item_S[None, :] < item_S[:, None])
    if strict:
        earlier_SS &= ~anchor_S[:, None]
    segment_BS = repeat(segment_ids_BN, "b n -> b (n t)", t=tokens)
    together_BSS = (segment_BS[:, :, None] == segment_BS[:, None, :]) & (segment_BS[:, :, None] > 0)
    return (local_SS | earlier_SS) & together_BSS


def masked_attention(q_BSHD: jax.Array, k_BSGD: jax.Array, v_BSGD: jax.Array, mask_BSS: jax.Array) -> jax.Array:
    """Softmax attention over flat tokens in float32, scaled by width^-0.5; rows that may read nothing give zeros."""
    group = q_BSHD.shape[2] // k_BSGD.shape[2]
    k_BSHD, v_BSHD = (repeat(x, "b s g d -> b s (g r) d", r=group).astype(jnp.float32) for x in (k_BSGD, v_BSGD))
    scores_BHSS = jnp.einsum("bshd,bzhd->bhsz", q_BSHD.astype(jnp.float32), k_BSHD, precision="highest")
    scores_BHSS = scores_BHSS * q_BSHD.shape[-1] ** -0.5
    mask_B1SS = mask_BSS[:, None]
    weights_BHSS = jax.nn.softmax(jnp.where(mask_B1SS, scores_BHSS, -1e30), axis=-1) * mask_B1SS
    return jnp.einsum("bhsz,bzhd->bshd", weights_BHSS, v_BSHD, precision="highest").astype(q_BSHD.dtype)


def anchor_attention(q_BNTHD, k_BNTGD, v_BNTGD, segment_ids_BN, *, strict: bool) -> jax.Array:
    """Reference of `api.anchor_attention`: one dense masked softmax over all `N*T` tokens."""
    tokens = q_BNTHD.shape[2]
    flat = (rearrange(x, "b n t h d -> b (n t) h d") for x in (q_BNTHD, k_BNTGD, v_BNTGD))
    out_BSHD = masked_attention(*flat, anchor_mask(segment_ids_BN, tokens, strict=strict))
    return rearrange(out_BSHD, "b (n t) h d -> b n t h d", t=tokens)
