"""The normaliser of a softmax over the whole catalogue, whose backward pass is its two products and nothing else."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from hisam_jax.models.layers import einsum
from hisam_jax.sharding import SPECS


@jax.custom_vjp
def log_sum_exp(query_BND: jax.Array, vectors_ID: jax.Array) -> jax.Array:
    """float32 `[B, N]`: log of the sum over items of `exp(query . vector)`.

    The exponentials are kept for the backward pass: derived, it would read the scores and raise them once more, which
    on a CPU costs as much as the products.
    """
    return _forward(query_BND, vectors_ID)[0]


def _forward(query_BND: jax.Array, vectors_ID: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    logits_BNI = einsum("bnd,id->bni", query_BND, vectors_ID, out=SPECS.logits, preferred_element_type=jnp.float32)
    top_BN1 = logits_BNI.max(-1, keepdims=True)
    raised_BNI = jnp.exp(logits_BNI - top_BN1)
    total_BN = raised_BNI.sum(-1)
    return jnp.log(total_BN) + top_BN1[..., 0], (query_BND, vectors_ID, raised_BNI, total_BN)


def _backward(kept: tuple[jax.Array, ...], grad_BN: jax.Array) -> tuple[jax.Array, jax.Array]:
    query_BND, vectors_ID, raised_BNI, total_BN = kept
    scale_BN1 = (grad_BN / total_BN)[..., None]
    query = scale_BN1 * einsum("bni,id->bnd", raised_BNI, vectors_ID, out=SPECS.batch)
    vectors = einsum("bni,bnd->id", raised_BNI, query_BND * scale_BN1, out=SPECS.scored)
    return query.astype(query_BND.dtype), vectors.astype(vectors_ID.dtype)


log_sum_exp.defvjp(_forward, _backward)
