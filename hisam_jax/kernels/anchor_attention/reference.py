"""The dense, obvious form in float32: the truth for every other implementation, differentiated by JAX itself."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange, repeat

from hisam_jax.kernels.anchor_attention.core import MASKED, Inputs, Rule, reads_anchor


def anchor_mask(segment_ids_BN: jax.Array, tokens: int, *, strict: bool) -> jax.Array:
    """bool `[B, N*T, N*T]`: may query token i (second axis) read key token j (third axis)?

    `allowed = same_item(i, j) and j <= i, or anchor(j) and item(j) < item(i) and not (strict and anchor(i))`, within
    one segment; segment 0 is padding and neither reads nor is read. The rule is Hi-SAM's; `strict` is AnLLM's form.
    """
    items = segment_ids_BN.shape[1]
    local, far = _masks(segment_ids_BN, segment_ids_BN, jnp.int32(0), tokens, Rule(strict))
    anchor_S = jnp.arange(items * tokens) % tokens == tokens - 1
    return local | (jnp.repeat(far, tokens, axis=2) & anchor_S)


def masked_attention(q_BSHD, k_BZGD, v_BZGD, mask_BSZ, rounded: bool = False) -> tuple[jax.Array, jax.Array]:
    """Softmax attention in float32, scaled by width^-0.5: `(out_BSHD, lse_BSH)`; rows that read nothing: 0 and -inf.

    With `rounded` the weights are rounded to the inputs' dtype, as every kernel rounds them for its second product.
    """
    group = q_BSHD.shape[2] // k_BZGD.shape[2]
    k_BZHD, v_BZHD = (repeat(x, "b s g d -> b s (g r) d", r=group).astype(jnp.float32) for x in (k_BZGD, v_BZGD))
    scores_BHSZ = jnp.einsum("bshd,bzhd->bhsz", q_BSHD.astype(jnp.float32), k_BZHD, precision="highest")
    scores_BHSZ = jnp.where(mask_BSZ[:, None], scores_BHSZ * q_BSHD.shape[-1] ** -0.5, MASKED)
    weights_BHSZ = jax.nn.softmax(scores_BHSZ, axis=-1) * mask_BSZ[:, None]
    if rounded:
        weights_BHSZ = weights_BHSZ.astype(q_BSHD.dtype).astype(jnp.float32)
    out_BSHD = jnp.einsum("bhsz,bzhd->bshd", weights_BHSZ, v_BZHD, precision="highest").astype(q_BSHD.dtype)
    lse_BSH = jnp.moveaxis(jax.nn.logsumexp(scores_BHSZ, axis=-1), 1, 2)
    return out_BSHD, jnp.where(mask_BSZ.any(-1)[..., None], lse_BSH, -jnp.inf)


def attend(x: Inputs, rule: Rule, rounded: bool = False) -> tuple[jax.Array, jax.Array]:
    """`(out_BNTHD, lse_BNTH)`: one dense masked softmax over all `N*T` own tokens and all M anchors."""
    tokens = x.q_BNTHD.shape[2]
    mask = jnp.concatenate(_masks(x.segment_BN, x.anchor_segment_BM, x.first, tokens, rule), axis=-1)
    q, k, v = (rearrange(part, "b n t h d -> b (n t) h d") for part in x[:3])
    k = jnp.concatenate([k, x.anchor_k_BMGD], axis=1)
    v = jnp.concatenate([v, x.anchor_v_BMGD], axis=1)
    out, lse = masked_attention(q, k, v, mask, rounded)
    return tuple(rearrange(part, "b (n t) ... -> b n t ...", t=tokens) for part in (out, lse))


def _masks(segment_BN, anchor_segment_BM, first, tokens: int, rule: Rule) -> tuple[jax.Array, jax.Array]:
    """(which own tokens, bool `[B, N*T, N*T]`; which anchors, bool `[B, N*T, M]`) each query token reads."""
    item_S, slot_S = jnp.divmod(jnp.arange(segment_BN.shape[1] * tokens), tokens)
    local_SS = (item_S[:, None] == item_S[None, :]) & (slot_S[None, :] <= slot_S[:, None])
    far_SM = reads_anchor(rule, first + item_S[:, None], jnp.arange(anchor_segment_BM.shape[1])[None, :])
    if rule.strict:
        far_SM &= slot_S[:, None] < tokens - 1
    segment_BS = jnp.repeat(segment_BN, tokens, axis=1)[..., None]
    return local_SS & (segment_BS > 0), far_SM & (segment_BS == anchor_segment_BM[:, None]) & (segment_BS > 0)
