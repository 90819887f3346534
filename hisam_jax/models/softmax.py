"""The normaliser of a softmax over the whole catalogue, whose backward pass is its two products and nothing else."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from hisam_jax.models.layers import einsum
from hisam_jax.sharding import SPECS

NONE = -1e30  # a score below every other, as `inference.top_items` has it


def with_one(query_xD: jax.Array) -> jax.Array:
    """`[..., D + 1]`: queries for vectors of `shut`."""
    return jnp.concatenate([query_xD, jnp.ones_like(query_xD[..., :1])], axis=-1)


def shut(vectors_ID: jax.Array, open_I: jax.Array) -> jax.Array:
    """`[I, D + 1]`: vectors whose scores are as before where `open_I`, else -1e30, so that scores stay one product."""
    return jnp.concatenate([vectors_ID, jnp.where(open_I, 0.0, NONE)[:, None]], axis=1)


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
