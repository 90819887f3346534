"""What this device reaches at most: a large matrix product, and a large array read and written."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from benchmarks.anchor_attention.timing import best_seconds


def measured(dtype: str, quick: bool = False) -> dict[str, float]:
    """`flops`: per second of a square product; `bytes`: per second of a copy with one operation."""
    size = 512 if quick else (8192 if jax.default_backend() != "cpu" else 2048)
    x = jnp.ones((size, size), jnp.dtype(dtype))
    product = jax.jit(lambda a: jnp.dot(a, a, preferred_element_type=jnp.float32).astype(a.dtype))
    long = jnp.ones(size * size * 16, jnp.float32)
    copy = jax.jit(lambda a: a + 1)
    return {
        "flops": 2 * size**3 / best_seconds(product, x),
        "bytes": 2 * long.nbytes / best_seconds(copy, long),
    }
