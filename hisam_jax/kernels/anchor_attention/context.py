"""Items that read a context given beside them and not each other: candidates and beams over a cached history."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange

from hisam_jax.kernels.anchor_attention.core import MASKED, dot


def attend_to_context(q_BNTHD, k_BNTGD, v_BNTGD, context_k_BMGD, context_v_BMGD, local_BNTT, context_BNTM) -> jax.Array:
    """Each item's tokens attend to that item's own tokens and to a context, under one softmax in float32.

    Args:
        q_BNTHD: queries; `G` key/value heads serve `H` query heads (`G` divides `H`).
        k_BNTGD, v_BNTGD: the items' own tokens.
        context_k_BMGD, context_v_BMGD: what every item of the row may read besides, e.g. earlier anchors.
        local_BNTT: bool, broadcastable, which own tokens are read.
        context_BNTM: bool, broadcastable, which context positions are read.

    Returns:
        `[B, N, T, H, D]` in q's dtype; rows that may read nothing give zeros.
    """
    group = q_BNTHD.shape[3] // k_BNTGD.shape[3]
    q_BNTGRD = rearrange(q_BNTHD, "b n t (g r) d -> b n t g r d", r=group)
    scale = q_BNTHD.shape[-1] ** -0.5
    local = dot("bntgrd,bnsgd->bngrts", q_BNTGRD, k_BNTGD) * scale
    local = jnp.where(local_BNTT[:, :, None, None], local, MASKED)
    far = dot("bntgrd,bmgd->bngrtm", q_BNTGRD, context_k_BMGD) * scale
    far = jnp.where(context_BNTM[:, :, None, None], far, MASKED)
    top = jnp.maximum(local.max(-1, keepdims=True), far.max(-1, keepdims=True, initial=MASKED))
    top = jax.lax.stop_gradient(jnp.maximum(top, 0.5 * MASKED))  # a row with nothing to read: exp(...) is 0, not 1
    local, far = jnp.exp(local - top), jnp.exp(far - top)
    total_BNTGR = rearrange(local.sum(-1) + far.sum(-1), "b n g r t -> b n t g r")
    dtype = v_BNTGD.dtype
    out = dot("bngrts,bnsgd->bntgrd", local.astype(dtype), v_BNTGD)
    out += dot("bngrtm,bmgd->bntgrd", far.astype(dtype), context_v_BMGD)
    out /= jnp.maximum(total_BNTGR, 1e-30)[..., None]
    return rearrange(out, "b n t g r d -> b n t (g r) d").astype(q_BNTHD.dtype)
