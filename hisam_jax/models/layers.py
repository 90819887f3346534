"""Small layers of our own: parameters are plain arrays, computation is in the dtype asked for."""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp


class Einsum(nn.Module):
    """`einsum(equation, x, w)` with one float32 weight of `shape`, scaled by the fan-in of `fan_in_axes`."""

    equation: str
    shape: Sequence[int]
    fan_in_axes: Sequence[int] = (0,)
    scale: float = 1.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        fan_in = 1
        for axis in self.fan_in_axes:
            fan_in *= self.shape[axis]
        init = nn.initializers.truncated_normal(self.scale * fan_in**-0.5)
        w = self.param("w", init, tuple(self.shape), jnp.float32)
        return jnp.einsum(self.equation, x.astype(self.dtype), w.astype(self.dtype))


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last axis with a learned scale, computed in float32."""

    eps: float = 1e-6

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        x32 = x.astype(jnp.float32)
        return (x32 * jax.lax.rsqrt(jnp.mean(x32**2, axis=-1, keepdims=True) + self.eps) * scale).astype(x.dtype)


class Embed(nn.Module):
    """A table `[rows, D]`; `rows` may be looked up or read whole for tied outputs."""

    rows: int
    width: int
    stddev: float = 0.02

    def setup(self):
        self.table = self.param("table", nn.initializers.normal(self.stddev), (self.rows, self.width), jnp.float32)

    def __call__(self, index: jax.Array) -> jax.Array:
        return jnp.take(self.table, index, axis=0)


class GatedMLP(nn.Module):
    """`(silu(x W_gate) * x W_up) W_down` with dropout on the hidden units."""

    hidden: int
    dropout: float = 0.0
    scale_out: float = 1.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool = True) -> jax.Array:
        width = x.shape[-1]
        both = Einsum("...d,cdf->...cf", (2, width, self.hidden), (1,), dtype=self.dtype, name="in")(x)
        h = jax.nn.silu(both[..., 0, :]) * both[..., 1, :]
        h = nn.Dropout(self.dropout)(h, deterministic=deterministic)
        return Einsum("...f,fd->...d", (self.hidden, width), (0,), self.scale_out, self.dtype, name="out")(h)
