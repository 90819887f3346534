"""One transformer block: pre-norm attention over item groups, then a gated MLP."""

from __future__ import annotations

import functools
from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from einops import rearrange

from hisam_jax.errors import UserError
from hisam_jax.kernels.anchor_attention import anchor_attention, attend_to_context
from hisam_jax.kernels.anchor_attention.sharded import Axes, sharded_anchor_attention
from hisam_jax.kernels.flat_attention import flat_attention
from hisam_jax.models.config import HMATConfig
from hisam_jax.models.layers import Dropout, Einsum, GatedMLP, RMSNorm
from hisam_jax.models.rope import rotate
from hisam_jax.sharding import BATCH, SPECS, shard


@flax.struct.dataclass
class Cache:
    """Keys and values of a history, rotated already: anchors only for HMAT, every token for the flat model.

    Attributes:
        k, v: `[layers, B, M, G, width]`.
        index_BM: int32, the item index of each of the M positions, -1 where it holds nothing.
    """

    k: jax.Array
    v: jax.Array
    index_BM: jax.Array


def _axes() -> Axes:
    """The axes of the mesh that is set which split an attention."""
    present = jax.sharding.get_abstract_mesh().shape
    batch = tuple(name for name in BATCH if name in present)
    return Axes(batch, "context" if "context" in present else "", "tensor" if "tensor" in present else "")


def over_devices(attend: Callable[..., jax.Array], q, k, v, segment_BN, *by_head: jax.Array) -> jax.Array:
    """`attend` on each device's own rows and heads; the first axis of `by_head` is that of q's heads.

    Raises:
        UserError: the mesh splits the items of a row.
    """
    mesh, axes = jax.sharding.get_abstract_mesh(), _axes()
    if mesh.empty:
        return attend(q, k, v, segment_BN, *by_head)
    if axes.items and mesh.shape[axes.items] > 1:
        problem = f"{mesh.shape[axes.items]} devices along {axes.items!r}"
        raise UserError(problem, field="mesh", expected="1 for flat attention, which reads every token")
    heads, biases = jax.P(axes.batch or None, None, None, axes.heads or None), jax.P(axes.heads or None)
    specs = (heads, heads, heads, jax.P(axes.batch or None), *(biases for _ in by_head))
    arrays = (shard(x, spec) for x, spec in zip((q, k, v, segment_BN, *by_head), specs, strict=True))
    out = jax.shard_map(attend, in_specs=specs, out_specs=heads, check_vma=False)(*arrays)
    return shard(out, jax.P(*SPECS.batch, None, "tensor"))


class Attention(nn.Module):
    """Queries, keys, values and the attention that the config asks for."""

    config: HMATConfig

    @nn.compact
    def __call__(self, x_BNTD, item_BN, turns, segment_BN, slots: int, past=None):
        """Returns `(out_BNTD, (k, v) to be cached)`; with `past = (k, v, index)` items see it instead of each other."""
        c, dtype = self.config, self.config.compute_dtype
        heads, groups, width = c.heads, c.kv_heads, c.head_width
        shape, shape_kv = (c.width, heads, width), (c.width, 2, groups, width)
        q = Einsum("bntd,dhk->bnthk", shape, dtype=dtype, spec=SPECS.query, name="q")(x_BNTD)
        kv = Einsum("bntd,dcgk->cbntgk", shape_kv, dtype=dtype, spec=SPECS.key_value, name="kv")(x_BNTD)
        k, v = kv[0], kv[1]
        if c.qk_norm:
            q, k = RMSNorm(name="q_norm")(q), RMSNorm(name="k_norm")(k)
        q, k = rotate(q, turns), rotate(k, turns)
        if past is not None:
            out = self._continue(q, k, v, past, item_BN, slots)
        elif c.anchors:
            out = self._attend(q, k, v, segment_BN)
        else:
            out = self._flat(q, k, v, segment_BN)
        kept = (
            (k[:, :, -1], v[:, :, -1]) if c.anchors else tuple(rearrange(x, "b n t g k -> b (n t) g k") for x in (k, v))
        )
        init_scale = (2 * c.layers) ** -0.5
        shape, specs = (heads, width, c.width), (SPECS.attention_out, SPECS.batch)
        out = Einsum("bnthk,hkd->bntd", shape, (0, 1), init_scale, dtype, *specs, name="out")(out)
        return out, kept

    def _attend(self, q, k, v, segment_BN):
        c = self.config
        options = {"strict": c.strict, "window": c.window or None, "implementation": c.attention}
        if jax.sharding.get_abstract_mesh().empty:
            return anchor_attention(q, k, v, segment_ids=segment_BN, **options)
        return sharded_anchor_attention(q, k, v, axes=_axes(), segment_ids=segment_BN, **options)

    def _flat(self, q, k, v, segment_BN):
        chunk = {"chunk": q.shape[1]} if self.config.attention == "dense" else {}
        return over_devices(functools.partial(flat_attention, **chunk), q, k, v, segment_BN)

    def _continue(self, q, k, v, past, item_BN, slots: int):
        past_k, past_v, index_BM = past
        c, tokens = self.config, q.shape[2]
        reads_T = jnp.ones(tokens, bool)
        if c.anchors and c.strict and tokens == slots:
            reads_T = jnp.arange(tokens) < slots - 1
        reads_BNM = (index_BM >= 0)[:, None]
        if c.window:
            reads_BNM = reads_BNM & (item_BN[..., None] - index_BM[:, None] <= c.window)
        local = jnp.tril(jnp.ones((1, 1, tokens, tokens), bool))
        return attend_to_context(q, k, v, past_k, past_v, local, reads_BNM[:, :, None] & reads_T[:, None])


class Block(nn.Module):
    """Pre-norm residual block; scanned over layers, so its carry is the hidden state alone."""

    config: HMATConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x_BNTD, past, item_BN, turns, segment_BN, index_BM, slots):
        c = self.config
        drop = Dropout(c.dropout, self.deterministic)
        past = None if past is None else (*past, index_BM)
        out, kept = Attention(c, name="attention")(
            RMSNorm(name="norm_attention")(x_BNTD), item_BN, turns, segment_BN, slots, past
        )
        x_BNTD = x_BNTD + drop(out)
        mlp = GatedMLP(c.mlp, c.dropout, (2 * c.layers) ** -0.5, c.compute_dtype, name="mlp")
        x_BNTD = x_BNTD + drop(mlp(RMSNorm(name="norm_mlp")(x_BNTD), deterministic=self.deterministic))
        return x_BNTD, kept
