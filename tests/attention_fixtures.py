"""The one body of tests for every implementation of anchor attention: random problems and the dense answer to them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from hisam_jax.kernels.anchor_attention import core, reference
from hisam_jax.kernels.anchor_attention.core import Implementation, Inputs, Rule
from hisam_jax.kernels.anchor_attention.tiles import Sizes, Tiles


@dataclasses.dataclass(frozen=True)
class Case:
    """One problem. `cached` anchors lie before the items; `segments`: `packed` has padding and users of one item."""

    items: int
    tokens: int
    heads: int = 2
    kv_heads: int = 2
    width: int = 16
    batch: int = 2
    cached: int = 0
    segments: str = "packed"
    rule: Rule = Rule()
    dtype: str = "float32"
    seed: int = 0

    def __str__(self) -> str:
        shown = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return "-".join(
            f"{name}={value}" for name, value in shown.items() if value != getattr(Case(0, 0), name, None)
        ).replace(" ", "")


def make(case: Case) -> Inputs:
    """Random inputs of a case."""
    keys = jax.random.split(jax.random.key(case.seed), 5)
    dtype, groups = jnp.dtype(case.dtype), (case.kv_heads, case.width)
    q = jax.random.normal(keys[0], (case.batch, case.items, case.tokens, case.heads, case.width)).astype(dtype)
    k, v = (jax.random.normal(key, (case.batch, case.items, case.tokens, *groups)).astype(dtype) for key in keys[1:3])
    cached = [jax.random.normal(key, (case.batch, case.cached, *groups)).astype(dtype) for key in keys[3:]]
    segment_BM = segments(case)
    anchors = (jnp.concatenate([c, own[:, :, -1]], axis=1) for c, own in zip(cached, (k, v), strict=True))
    return Inputs(q, k, v, *anchors, segment_BM[:, case.cached :], segment_BM, jnp.int32(case.cached))


def segments(case: Case) -> jax.Array:
    """int32 [B, cached + items]: all of one segment; or several, some of one item, with padding behind and, in the
    last row of the batch, nothing but padding."""
    total = case.cached + case.items
    if case.segments == "one":
        return jnp.ones((case.batch, total), jnp.int32)
    rng = np.random.default_rng(case.seed)
    ids = np.cumsum(rng.random((case.batch, total)) < 0.15, axis=1) + 1
    real = rng.integers(total // 2, total + 1, size=case.batch)
    real[-1] = 0 if case.batch > 2 else total
    return jnp.asarray(np.where(np.arange(total) < real[:, None], ids, 0), jnp.int32)


def value_and_gradients(attend, x: Inputs):
    """(out, lse, gradients of the float inputs) under one fixed, uneven cotangent of both results."""

    def results(*floats):
        return attend(Inputs(*floats, *x[5:]))

    @jax.jit
    def run(*floats):
        (out, lse), pull = jax.vjp(results, *floats)
        weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
        d_lse = jnp.where(jnp.isfinite(lse), jnp.sin(jnp.arange(lse.size, dtype=jnp.float32)).reshape(lse.shape), 0)
        return out, lse, pull((weights.astype(out.dtype), d_lse))

    return jax.tree.map(lambda part: np.asarray(part, np.float32), run(*x[:5]))


def check(implementation: Implementation, case: Case, tiles: Tiles | None, run=lambda function: function()) -> None:
    """Values, log-sum-exp and gradients against the dense form in float32; `run` may set an interpreter around it."""
    x = make(case)
    tiles = tiles or implementation.tiles(core_sizes(x))
    rule = case.rule
    exact = Inputs(*(part.astype(jnp.float32) for part in x[:5]), *x[5:])
    wanted = value_and_gradients(lambda y: reference.attend(y, rule), exact)
    got = run(lambda: value_and_gradients(lambda y: core.attend(y, implementation, rule, tiles), x))
    if case.dtype == "float32":
        bounds = [2e-5] * 7
    else:  # no worse than the dense form on bf16 inputs, rounded where it rounds
        rounded = value_and_gradients(lambda y: reference.attend(y, rule), x)
        bounds = [1.5 * float(np.abs(a - b).max()) + 2**-8 for a, b in zip(flat(rounded), flat(wanted), strict=True)]
    for name, one, other, bound in zip(NAMES, flat(got), flat(wanted), bounds, strict=True):
        assert np.array_equal(np.isfinite(one), np.isfinite(other)), f"{name}: finite where the reference is"
        assert (name == "lse") or np.isfinite(one).all(), name
        kept = np.isfinite(other)
        np.testing.assert_allclose(one[kept], other[kept], atol=bound, rtol=1e-4, err_msg=name)


NAMES = ("out", "lse", "d_q", "d_k", "d_v", "d_anchor_k", "d_anchor_v")


def flat(results) -> list[np.ndarray]:
    """Results in the order of `NAMES`."""
    out, lse, gradients = results
    return [out, lse, *gradients]


def core_sizes(x: Inputs):
    """`Sizes` of a problem."""
    return Sizes.of(x.q_BNTHD, x.anchor_k_BMGD)
