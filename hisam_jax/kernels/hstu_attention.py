"""Pointwise attention of HSTU (Zhai et al. 2024, arXiv 2402.17152): SiLU of the scores in place of a softmax.

`out = mean over what is read of silu(q . k + bias) v`; the bias goes by the distance in items and by the pair of slots.
The mean is over the tokens that a query may read, so that neither padding nor a cache changes it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from einops import rearrange

from hisam_jax.kernels.chunks import map_causal_chunks, readable

EXACT, AN_OCTAVE, BUCKETS = 8, 4, 32  # distances with a bucket of their own, then 4 a doubling, to 512 items


def bucket(distance: jax.Array) -> jax.Array:
    """int32 bucket of a distance in items; negative ones count as 0."""
    distance = jnp.maximum(distance, 0)
    octaves = jnp.log2(jnp.maximum(distance, EXACT).astype(jnp.float32) / EXACT)
    far = jnp.minimum(EXACT + (AN_OCTAVE * octaves).astype(jnp.int32), BUCKETS - 1)
    return jnp.where(distance < EXACT, distance, far).astype(jnp.int32)


def hstu_attention(q_BNTHD, k_BNTGD, v_BNTGD, segment_ids_BN, distance_HE, slots_HTT, *, chunk: int = 64) -> jax.Array:
    """Every token reads every earlier token of its segment and itself; `chunk` items of queries at a time.

    Args:
        q_BNTHD, k_BNTGD, v_BNTGD: as of `anchor_attention`.
        segment_ids_BN: int32, 0 is padding, which gives zeros.
        distance_HE: bias of each bucket.
        slots_HTT: bias of a query's and a key's slot in their items.
    """
    tokens, group = q_BNTHD.shape[2], q_BNTHD.shape[3] // k_BNTGD.shape[3]

    def one_chunk(start, end, arrays):
        q, segment_BC = arrays
        bias_HCE = distance_HE[:, bucket(start + jnp.arange(q.shape[1])[:, None] - jnp.arange(end))]
        bias = rearrange(
            bias_HCE[:, :, None, :, None] + slots_HTT[:, None, :, None], "(g r) n t m s -> g r (n t) (m s)", r=group
        )
        mask = readable(segment_BC, segment_ids_BN[:, :end], start, tokens)
        q = rearrange(q, "b n t (g r) d -> b (n t) g r d", r=group)
        k, v = (rearrange(x[:, :end], "b n t g d -> b (n t) g d") for x in (k_BNTGD, v_BNTGD))
        scores = jnp.einsum("bqgrd,bsgd->bgrqs", q, k, preferred_element_type=jnp.float32) + bias
        weights = jnp.where(mask[:, None, None], jax.nn.silu(scores), 0.0)
        out = jnp.einsum("bgrqs,bsgd->bqgrd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        out /= jnp.maximum(mask.sum(-1), 1)[..., None, None, None]
        return rearrange(out, "b (n t) g r d -> b n t (g r) d", t=tokens).astype(q_BNTHD.dtype)

    return map_causal_chunks(one_chunk, (q_BNTHD, segment_ids_BN), chunk)


def hstu_continue(q_BNTHD, k_BNTGD, v_BNTGD, past, item_BN, distance_HE, slots_HTT) -> jax.Array:
    """The same of items that each continue a cached history on its own, maybe with their first tokens only.

    Args:
        q_BNTHD, k_BNTGD, v_BNTGD: of the items' tokens.
        past: `(k_BMGD, v_BMGD, index_BM)`, every token of the history, -1 where it holds nothing.
        item_BN: the index that each item would have.
        distance_HE, slots_HTT: see `hstu_attention`.
    """
    past_k, past_v, index_BM = past
    tokens, slots, group = q_BNTHD.shape[2], slots_HTT.shape[1], q_BNTHD.shape[3] // k_BNTGD.shape[3]
    q = rearrange(q_BNTHD, "b n t (g r) d -> b n t g r d", r=group)

    def raised(scores, bias, mask):
        return jnp.where(mask, jax.nn.silu(scores + rearrange(bias, "b n (g r) t m -> b n g r t m", r=group)), 0.0)

    far_HBNM = distance_HE[:, bucket(item_BN[:, :, None] - index_BM[:, None])]
    far_HTM = slots_HTT[:, :tokens, jnp.arange(index_BM.shape[1]) % slots]
    far_bias = rearrange(far_HBNM, "h b n m -> b n h 1 m") + far_HTM
    local_bias = (distance_HE[:, :1, None] + slots_HTT[:, :tokens, :tokens])[None, None]
    there_BM = index_BM >= 0
    scores = [jnp.einsum("bntgrd,bmgd->bngrtm", q, past_k, preferred_element_type=jnp.float32)]
    scores += [jnp.einsum("bntgrd,bnsgd->bngrts", q, k_BNTGD, preferred_element_type=jnp.float32)]
    far = raised(scores[0], far_bias, there_BM[:, None, None, None, None])
    local = raised(scores[1], local_bias, jnp.tril(jnp.ones((tokens, tokens), bool)))
    dtype = v_BNTGD.dtype
    out = jnp.einsum("bngrtm,bmgd->bntgrd", far.astype(dtype), past_v, preferred_element_type=jnp.float32)
    out += jnp.einsum("bngrts,bnsgd->bntgrd", local.astype(dtype), v_BNTGD, preferred_element_type=jnp.float32)
    read_BT = there_BM.sum(-1)[:, None] + 1 + jnp.arange(tokens)
    return rearrange(out / read_BT[:, None, :, None, None, None], "b n t g r d -> b n t (g r) d").astype(q_BNTHD.dtype)
