"""Small layers of our own: parameters are plain arrays, computation is in the dtype asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from hisam_jax.sharding import SPECS, fit, gathered, look_up, shard, where


class Einsum(nn.Module):
    """`einsum(equation, x, w)` with one float32 weight of `shape`, scaled by the fan-in of `fan_in_axes`.

    `spec` places the weight, `out` the result where that does not follow from the operands.
    """

    equation: str
    shape: Sequence[int]
    fan_in_axes: Sequence[int] = (0,)
    scale: float = 1.0
    dtype: jnp.dtype = jnp.float32
    spec: jax.P = SPECS.whole
    out: jax.P | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        fan_in = 1
        for axis in self.fan_in_axes:
            fan_in *= self.shape[axis]
        init = nn.initializers.truncated_normal(self.scale * fan_in**-0.5)
        w = self.param("w", placed(init, self.spec), tuple(self.shape), jnp.float32)
        w = gathered(w.astype(self.dtype), self.spec)  # cast first: half the bytes cross devices
        return einsum(self.equation, x.astype(self.dtype), w, out=self.out)


def placed(init: Callable[..., jax.Array], spec: jax.P) -> Callable[..., jax.Array]:
    """An initialiser whose array is never whole on one device of a mesh."""
    return lambda *args: shard(init(*args), spec)


def einsum(equation: str, *operands: jax.Array, out: jax.P | None = None, **options) -> jax.Array:
    """`jnp.einsum` whose result is placed by `out` on an explicit mesh: sums over a split axis need it said."""
    mesh = jax.sharding.get_abstract_mesh()
    if out is not None and mesh.explicit_axes:
        result = jax.eval_shape(lambda *parts: jnp.einsum(equation, *parts, **options), *map(_unplaced, operands))
        return jnp.einsum(equation, *operands, out_sharding=fit(out, result.shape, mesh), **options)
    return jnp.einsum(equation, *operands, **options)


def _unplaced(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


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
    spec: jax.P = SPECS.whole

    def setup(self):
        init = placed(nn.initializers.normal(self.stddev), self.spec)
        self.table = self.param("table", init, (self.rows, self.width), jnp.float32)

    def __call__(self, index: jax.Array, out: jax.P = SPECS.whole) -> jax.Array:
        return look_up(self.table, index, out)


class Dropout(nn.Module):
    """Zeros a share of the values and scales the others; Linen's own refuses arrays that are split over devices."""

    rate: float
    deterministic: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if self.deterministic or not self.rate:
            return x
        keep = 1.0 - self.rate
        explicit = jax.sharding.get_abstract_mesh().explicit_axes
        split = {"out_sharding": jax.typeof(x).sharding} if explicit else {}  # else each device draws it whole
        mask = jax.random.bernoulli(self.make_rng("dropout"), keep, x.shape, **split)
        return where(mask, x / keep, 0.0)


class GatedMLP(nn.Module):
    """`(silu(x W_gate) * x W_up) W_down` with dropout on the hidden units."""

    hidden: int
    dropout: float = 0.0
    scale_out: float = 1.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool = True) -> jax.Array:
        width = x.shape[-1]
        dtype, shape = self.dtype, (2, width, self.hidden)
        both = Einsum("...d,cdf->...cf", shape, (1,), dtype=dtype, spec=SPECS.mlp_in, name="in")(x)
        h = jax.nn.silu(both[..., 0, :]) * both[..., 1, :]
        h = Dropout(self.dropout, deterministic)(h)
        shape, scale = (self.hidden, width), self.scale_out
        return Einsum("...f,fd->...d", shape, (0,), scale, dtype, SPECS.mlp_out, SPECS.batch, name="out")(h)
