"""The block of HSTU (Zhai et al. 2024, arXiv 2402.17152) as a switch of the flat model: gated pointwise attention."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
from einops import rearrange

from hisam_jax.kernels.hstu_attention import BUCKETS, hstu_attention, hstu_continue
from hisam_jax.models.blocks import over_devices
from hisam_jax.models.config import HMATConfig
from hisam_jax.models.layers import Dropout, Einsum, RMSNorm
from hisam_jax.sharding import SPECS


class HSTUBlock(nn.Module):
    """`x + W(norm(A V) * U)` with `U, V, Q, K = silu(W norm(x))` and no MLP; called as `blocks.Block` is.

    A is `hstu_attention`, whose bias by distance stands for positions: nothing is turned. The paper's bias by time is
    left out, as the gaps between events are in the item tokens.
    """

    config: HMATConfig
    deterministic: bool

    @nn.compact
    def __call__(self, x_BNTD, past, item_BN, turns, segment_BN, index_BM, slots):
        c, dtype = self.config, self.config.compute_dtype
        shape, shape_kv = (c.width, 2, c.heads, c.head_width), (c.width, 2, c.kv_heads, c.head_width)
        y_BNTD = RMSNorm(name="norm_in")(x_BNTD)
        product = functools.partial(Einsum, dtype=dtype, spec=SPECS.key_value)
        gate, q = jax.nn.silu(product("bntd,dchk->cbnthk", shape, name="gate_q")(y_BNTD))
        k, v = jax.nn.silu(product("bntd,dcgk->cbntgk", shape_kv, name="kv")(y_BNTD))
        biases = (
            self.param("bias_distance", nn.initializers.zeros, (c.heads, BUCKETS)),
            self.param("bias_slots", nn.initializers.zeros, (c.heads, slots, slots)),
        )
        if past is not None:
            out = hstu_continue(q, k, v, (*past, index_BM), item_BN, *biases)
        else:
            chunk = {"chunk": q.shape[1]} if c.attention == "dense" else {}
            out = over_devices(functools.partial(hstu_attention, **chunk), q, k, v, segment_BN, *biases)
        both = (-2, -1)
        out = nn.LayerNorm(dtype=dtype, reduction_axes=both, feature_axes=both, name="norm_out")(out) * gate
        shape, specs = (c.heads, c.head_width, c.width), (SPECS.attention_out, SPECS.batch)
        out = Einsum("bnthk,hkd->bntd", shape, (0, 1), c.layers**-0.5, dtype, *specs, name="out")(out)
        kept = tuple(rearrange(x, "b n t g k -> b (n t) g k") for x in (k, v))
        return x_BNTD + Dropout(c.dropout, self.deterministic)(out), kept
