"""What anchor attention is held against, each a function of the same `(q, k, v)`, the anchor last of the tokens.

`flat` answers another question, full causal attention over the same tokens: it is what a model without anchors pays.
The others compute what anchor attention computes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange

from hisam_jax.kernels.anchor_attention import Tiles, anchor_attention, api, core, reference
from hisam_jax.kernels.anchor_attention.core import MASKED, Implementation, Inputs, Rule
from hisam_jax.kernels.anchor_attention.tiles import Sizes

Attention = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def rivals(platform: str) -> dict[str, Attention]:
    """Name -> function, ours first."""
    library = "cudnn" if platform == "gpu" else "xla"
    ours = {name: functools.partial(anchor_attention, implementation=name) for name in api.order(platform)}
    return ours | {
        "flat": functools.partial(flat, library=library),
        "dense": dense,
        "merged": functools.partial(merged, library=library),
    }


def flat(q_BNTHD, k_BNTGD, v_BNTGD, *, library: str) -> jax.Array:
    """Full causal attention over all tokens by `jax.nn.dot_product_attention`."""
    tokens = (rearrange(x, "b n t h d -> b (n t) h d") for x in (q_BNTHD, k_BNTGD, v_BNTGD))
    out = jax.nn.dot_product_attention(*tokens, is_causal=True, implementation=library)
    return rearrange(out, "b (n t) h d -> b n t h d", t=q_BNTHD.shape[2])


def dense(q_BNTHD, k_BNTGD, v_BNTGD) -> jax.Array:
    """`jax.nn.dot_product_attention` over all tokens under the anchor mask."""
    batch, items, count = q_BNTHD.shape[:3]
    mask = reference.anchor_mask(jnp.ones((1, items), jnp.int32), count, strict=False)[:, None]
    tokens = (rearrange(x, "b n t h d -> b (n t) h d") for x in (q_BNTHD, k_BNTGD, v_BNTGD))
    out = jax.nn.dot_product_attention(*tokens, mask=mask, implementation="xla")
    return rearrange(out, "b (n t) h d -> b n t h d", t=count)


def merged(q_BNTHD, k_BNTGD, v_BNTGD, *, library: str) -> jax.Array:
    """Local scores beside a library's causal grouped-query attention over the anchors, merged by log-sum-exp.

    Every token of an item is a query head of that item. The library's gradient through its log-sum-exp is not right,
    so the backward pass is ours, in XLA.
    """
    segments = jnp.ones(q_BNTHD.shape[:2], jnp.int32)
    x = Inputs(q_BNTHD, k_BNTGD, v_BNTGD, k_BNTGD[:, :, -1], v_BNTGD[:, :, -1], segments, segments, jnp.int32(0))
    xla = api.load("xla")
    implementation = Implementation("merged", functools.partial(_merged, library=library), xla.backward, xla.tiles)
    return core.attend(x, implementation, Rule(), xla.tiles(Sizes.of(x.q_BNTHD, x.anchor_k_BMGD)))[0]


def _merged(x: Inputs, rule: Rule, tiles: Tiles, library: str) -> tuple[jax.Array, jax.Array]:
    groups, tokens = x.k_BNTGD.shape[3], x.q_BNTHD.shape[2]
    local, local_lse = _local(x)
    heads = rearrange(x.q_BNTHD[:, 1:], "b n t (g r) d -> b n (g r t) d", g=groups)
    earlier = x.anchor_k_BMGD[:, :-1], x.anchor_v_BMGD[:, :-1]
    far, far_lse = jax.nn.dot_product_attention(
        heads, *earlier, is_causal=True, return_residual=True, implementation=library
    )
    far, far_lse = (
        rearrange(part, "b n (g r t) ... -> b n t (g r) ...", g=groups, t=tokens) for part in (far, far_lse)
    )
    far = jnp.pad(far.astype(jnp.float32), [(0, 0), (1, 0), (0, 0), (0, 0), (0, 0)])
    far_lse = jnp.pad(far_lse, [(0, 0), (1, 0), (0, 0), (0, 0)], constant_values=MASKED)
    lse = jnp.logaddexp(local_lse, far_lse)
    out = local * jnp.exp(local_lse - lse)[..., None] + far * jnp.exp(far_lse - lse)[..., None]
    return out.astype(x.q_BNTHD.dtype), lse


def _local(x: Inputs) -> tuple[jax.Array, jax.Array]:
    """Attention inside items alone, float32."""
    groups, tokens = x.k_BNTGD.shape[3], x.q_BNTHD.shape[2]
    q = rearrange(x.q_BNTHD, "b n t (g r) d -> b n g r t d", g=groups)
    scores = jnp.einsum("bngrtd,bnsgd->bngrts", q, x.k_BNTGD, preferred_element_type=jnp.float32)
    scores = jnp.where(jnp.tril(jnp.ones((tokens, tokens), bool)), scores * q.shape[-1] ** -0.5, MASKED)
    lse = jax.nn.logsumexp(scores, axis=-1)
    weights = jnp.exp(scores - lse[..., None]).astype(x.v_BNTGD.dtype)
    out = jnp.einsum("bngrts,bnsgd->bntgrd", weights, x.v_BNTGD, preferred_element_type=jnp.float32)
    return rearrange(out, "b n t g r d -> b n t (g r) d"), rearrange(lse, "b n g r t -> b n t (g r)")


def forward(attention: Attention) -> Callable:
    """Compiled `(q, k, v) -> out`."""
    return jax.jit(attention)


def forward_and_backward(attention: Attention) -> Callable:
    """Compiled `(q, k, v) -> their gradients` of a sum."""
    return jax.jit(jax.grad(lambda *x: attention(*x).astype(jnp.float32).sum(), argnums=(0, 1, 2)))
