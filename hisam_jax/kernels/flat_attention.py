"""Full causal attention over all tokens of packed sequences: what the flat baseline pays for."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange

from hisam_jax.kernels.chunks import map_causal_chunks, readable


def flat_attention(q_BNTHD, k_BNTGD, v_BNTGD, segment_ids_BN, *, chunk: int = 64) -> jax.Array:
    """Every token attends to every earlier token of its segment and to itself; `chunk` items of queries at a time.

    Shapes as `anchor_attention`; scores scaled by width^-0.5, softmax in float32, padding gives zeros.
    """
    tokens, group = q_BNTHD.shape[2], q_BNTHD.shape[3] // k_BNTGD.shape[3]

    def one_chunk(start, end, arrays):
        q, segment_BC = arrays
        q = rearrange(q, "b n t (g r) d -> b (n t) g r d", r=group) * (q.shape[-1] ** -0.5)
        k, v = (rearrange(x[:, :end], "b n t g d -> b (n t) g d") for x in (k_BNTGD, v_BNTGD))
        mask = readable(segment_BC, segment_ids_BN[:, :end], start, tokens)
        scores = jnp.einsum("bqgrd,bsgd->bgrqs", q, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -1e30), axis=-1) * mask[:, None, None]
        out = jnp.einsum("bgrqs,bsgd->bqgrd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return rearrange(out, "b (n t) g r d -> b n t (g r) d", t=tokens).astype(q_BNTHD.dtype)

    return map_causal_chunks(one_chunk, (q_BNTHD, segment_ids_BN), chunk)
