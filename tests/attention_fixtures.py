"""The one body of tests for every implementation of anchor attention: random problems and the dense answer to them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from hisam_jax.kernels.anchor_attention import core, reference
from hisam_jax.kernels.anchor_attention.core import Implementation, Inputs, Rule
from hisam_jax.kernels.anchor_attention.tiles import Sizes, Tiles

# The compiler's time is most of these tests: the program need not be a fast one.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
NAMES = ("out", "lse", "d_q", "d_k", "d_v", "d_anchor_k", "d_anchor_v")


@dataclasses.dataclass(frozen=True)
class Case:
    """One problem.

    Attributes:
        items, tokens, heads, kv_heads, width, batch, dtype: of queries and keys.
        cached, after: anchors before the items' own, and past them, which nobody may read.
        segments: see `segments`.
        rule: which anchors are read.
        tiles: None for the implementation's heuristics.
        seed: of everything random.
    """

    items: int
    tokens: int
    heads: int = 2
    kv_heads: int = 2
    width: int = 16
    batch: int = 2
    cached: int = 0
    after: int = 0
    segments: str = "packed"
    rule: Rule = Rule()
    dtype: str = "float32"
    tiles: Tiles | None = None
    seed: int = 0

    @property
    def anchors(self) -> int:
        return self.cached + self.items + self.after

    @property
    def sizes(self) -> Sizes:
        size = jnp.dtype(self.dtype).itemsize
        return Sizes(self.items, self.tokens, self.heads, self.kv_heads, self.width, self.anchors, size)


def make(case: Case) -> Inputs:
    """Random inputs of a case; the items' own anchors are their last tokens."""
    rng, dtype, groups = np.random.default_rng(case.seed), jnp.dtype(case.dtype), (case.kv_heads, case.width)
    own, end = (case.batch, case.items, case.tokens), case.cached + case.items
    shapes = [(*own, case.heads, case.width), (*own, *groups), (*own, *groups)]
    q, k, v, *anchors = (
        rng.standard_normal(shape, np.float32).astype(dtype)
        for shape in (*shapes, *[(case.batch, case.anchors, *groups)] * 2)
    )
    for anchor, part in zip(anchors, (k, v), strict=True):
        anchor[:, case.cached : end] = part[:, :, -1]
    segment_BM = segments(case)
    arrays = (q, k, v, *anchors, segment_BM[:, case.cached : end], segment_BM, np.int32(case.cached))
    return Inputs(*map(jnp.asarray, arrays))


def segments(case: Case) -> np.ndarray:
    """int32 [B, anchors]. `one` user a row; `packed` users, some of one item, padding behind and, from three rows on, a
    row of nothing else; `empty`, the first row; `single` items; `halves` and `shuffled`, of large ids; `sparse`, users
    of one item with padding between; `late`, padding in front."""
    shape, rng = (case.batch, case.anchors), np.random.default_rng(case.seed)
    index = np.arange(case.anchors)
    packed = np.cumsum(rng.random(shape) < 0.15, axis=1) + 1
    real = rng.integers(case.anchors // 2, case.anchors + 1, size=case.batch)
    real[-1] = 0 if case.batch > 2 else case.anchors
    packed = np.where(index < real[:, None], packed, 0)
    kinds = {
        "one": np.full(shape, 7),
        "packed": packed,
        "empty": np.where(np.arange(case.batch)[:, None] == 0, 0, packed),
        "single": np.broadcast_to(index + 1, shape),
        "halves": np.broadcast_to(np.where(index < case.anchors // 2, 3, 3 + (5 << 20)), shape),
        "shuffled": rng.integers(0, 4, shape) * 70_001,
        "late": np.broadcast_to(np.where(index < case.anchors // 2, 0, 2), shape),
        "sparse": np.broadcast_to(np.where(index % 3 == 1, index, 0), shape),
    }
    return kinds[case.segments].astype(np.int32)


def value_and_gradients(attend, x: Inputs) -> dict[str, np.ndarray]:
    """Name of `NAMES` -> float32 array, under one fixed, uneven cotangent of both results."""

    def results(*floats):
        return attend(Inputs(*floats, *x[5:]))

    @functools.partial(jax.jit, compiler_options=QUICK)
    def run(*floats):
        (out, lse), pull = jax.vjp(results, *floats)
        weights = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape).astype(jnp.bfloat16)
        d_lse = jnp.where(jnp.isfinite(lse), jnp.sin(jnp.arange(lse.size, dtype=jnp.float32)).reshape(lse.shape), 0)
        return out, lse, *pull((weights.astype(out.dtype), d_lse))

    made = run(*x[:5])
    assert [part.dtype for part in made] == [x[0].dtype, jnp.float32, *(part.dtype for part in x[:5])]
    return {name: np.asarray(part, np.float32) for name, part in zip(NAMES, made, strict=True)}


def check(implementation: Implementation, case: Case, around=contextlib.nullcontext) -> dict[str, np.ndarray]:
    """Values, log-sum-exp and gradients against the dense form in float32; `around` may set an interpreter.

    In bf16 the error is held against that of the dense form run in bf16, weights rounded too.
    """
    x, rule, tiles = make(case), case.rule, case.tiles or implementation.tiles(case.sizes)
    with around():
        got = value_and_gradients(lambda y: core.attend(y, implementation, rule, tiles), x)
    exact = Inputs(*(part.astype(jnp.float32) for part in x[:5]), *x[5:])
    wanted = value_and_gradients(lambda y: reference.attend(y, rule), exact)
    usual = wanted if case.dtype == "float32" else value_and_gradients(lambda y: reference.attend(y, rule, True), x)
    for name in NAMES:
        np.testing.assert_array_equal(np.isfinite(got[name]), np.isfinite(wanted[name]), err_msg=name)
        assert name == "lse" or np.isfinite(got[name]).all(), name
        mine, true, rounded = (np.nan_to_num(of[name], neginf=0) for of in (got, wanted, usual))
        scale = max(1.0, float(np.abs(true).max()))
        if case.dtype == "float32" or name == "lse":
            np.testing.assert_allclose(mine, true, atol=1e-5 * scale, rtol=1e-5, err_msg=name)
        else:
            error, allowed = mine - true, rounded - true
            # Beyond that, what rounding the output before it enters delta does to gradients of inputs of unit scale.
            more = 0 if name == "out" else 2**-12
            assert _rms(error) <= 1.1 * _rms(allowed) + more + 1e-6, f"{name}: {_rms(error)} against {_rms(allowed)}"
            assert np.abs(error).max() <= 2 * np.abs(allowed).max() + 8 * more + 1e-6, name
    return got


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))
