"""TPU kernels of anchor attention: against a dense float32 mask, interpreted; and by the real compiler, elsewhere."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from hisam_jax.kernels.anchor_attention import count, tpu, tpu_layout
from hisam_jax.kernels.anchor_attention.core import Inputs, Rule, attend
from hisam_jax.kernels.anchor_attention.tiles import Sizes, Tiles


@dataclasses.dataclass(frozen=True)
class Case:
    items: int
    tokens: int
    heads: int = 2
    kv_heads: int = 1
    width: int = 16
    cached: int = 0
    segments: str = "one"
    rule: Rule = Rule(first=None)
    dtype: str = "float32"
    tiles: Tiles = Tiles(16, 16, 16, 16)

    @property
    def anchors(self):
        return self.cached + self.items


CASES = {
    "3 tiles, 3 blocks": Case(48, 5),
    "sizes that divide nothing": Case(53, 5, heads=3, kv_heads=3, width=8),
    "2 tokens": Case(70, 2, heads=4, kv_heads=2, segments="packed"),
    "8 tokens, blocks wider than tiles": Case(50, 8, tiles=Tiles(4, 40, 12, 24), segments="packed"),
    "17 tokens": Case(21, 17, tiles=Tiles(8, 8, 8, 8), segments="packed"),
    "strict": Case(50, 5, rule=Rule(strict=True, first=None), segments="packed"),
    "window": Case(60, 4, rule=Rule(window=7, first=None), tiles=Tiles(8, 8, 16, 8)),
    "window, strict, packed, cached": Case(
        40, 3, cached=37, rule=Rule(True, 21, None), segments="packed", tiles=Tiles(16, 8, 8, 24)
    ),
    "cached anchors": Case(5, 5, cached=61, width=32, tiles=Tiles(8, 16, 8, 8)),
    "cached anchors, many items": Case(40, 5, cached=40, segments="packed"),
    "empty users": Case(40, 5, segments="empty"),
    "users of one item": Case(40, 5, segments="single"),
    "segments shuffled": Case(48, 5, segments="shuffled"),
    "mask-free blocks": Case(64, 4, heads=4, kv_heads=4, tiles=Tiles(8, 8, 8, 16), segments="halves"),
    "bf16": Case(53, 5, dtype="bfloat16", segments="packed", width=64, heads=4, kv_heads=2),
    "bf16, 8 tokens": Case(50, 8, dtype="bfloat16", tiles=Tiles(6, 16, 4, 32), width=48),
    "one item": Case(1, 5),
}


def _segments(kind, batch, items, rng):
    if kind == "one":
        return np.full((batch, items), 7)
    if kind == "single":
        return np.tile(np.arange(items) + 1, (batch, 1))
    if kind == "halves":  # past 2^16, so that both halves of an id tell users apart
        return np.where(np.arange(items) < items // 2, 3, 3 + (5 << 20)) * np.ones((batch, 1), int)
    if kind == "shuffled":
        return rng.integers(0, 4, (batch, items)) * 70_001
    packed = np.cumsum(rng.random((batch, items)) < 0.15, axis=1) + 1
    packed = np.where(np.arange(items) < rng.integers(items // 2, items + 1, (batch, 1)), packed, 0)
    if kind == "empty":
        packed[0] = 0
    return packed


def _inputs(case, seed=0, batch=2):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal(shape), jnp.dtype(case.dtype))

    keys = (batch, case.items, case.tokens, case.kv_heads, case.width)
    anchor_segment = _segments(case.segments, batch, case.anchors, rng)
    q, k, v = normal(*keys[:3], case.heads, case.width), normal(*keys), normal(*keys)
    anchors = (normal(batch, case.anchors, case.kv_heads, case.width) for _ in range(2))
    segments = (jnp.asarray(s, jnp.int32) for s in (anchor_segment[:, case.cached :], anchor_segment))
    return Inputs(q, k, v, *anchors, *segments, jnp.int32(case.cached))


def _mask(x, rule):
    """bool `[B, N, T, M + N * T]`, pair by pair: anchors first, then tokens."""
    segment, anchor_segment, first = np.asarray(x.segment_BN), np.asarray(x.anchor_segment_BM), int(x.first)
    (batch, items), tokens, anchors = segment.shape, x.q_BNTHD.shape[2], anchor_segment.shape[1]
    mask = np.zeros((batch, items, tokens, anchors + items * tokens), bool)
    for b in range(batch):
        for n in range(items):
            if segment[b, n] < 1:
                continue
            for m in range(max(first + n - (rule.window or anchors), 0), min(first + n, anchors)):
                mask[b, n, :, m] = segment[b, n] == anchor_segment[b, m]
            if rule.strict:
                mask[b, n, -1, :anchors] = False
            for t in range(tokens):
                own = anchors + n * tokens
                mask[b, n, t, own : own + t + 1] = True
    return mask


def _dense(q, k, v, anchor_k, anchor_v, mask):
    """Float32 softmax over all anchors and all tokens; log-sum-exp beside it."""
    batch, items, tokens, heads, width = q.shape

    def all_keys(anchor, own):
        both = jnp.concatenate([anchor, own.reshape(batch, -1, *own.shape[3:])], axis=1).astype(jnp.float32)
        return jnp.repeat(both, heads // both.shape[2], axis=2)

    dot = functools.partial(jnp.einsum, precision="highest")
    scores = dot("bnthd,bkhd->bnthk", q.astype(jnp.float32), all_keys(anchor_k, k)) * width**-0.5
    mask = mask[:, :, :, None]
    top = jax.lax.stop_gradient(jnp.max(scores, -1, keepdims=True, where=mask, initial=-1e30))
    weights = jnp.where(mask, jnp.exp(jnp.where(mask, scores - top, 0.0)), 0.0)
    total = weights.sum(-1, keepdims=True)
    out = dot("bnthk,bkhd->bnthd", weights / jnp.maximum(total, 1e-30), all_keys(anchor_v, v))
    lse = jnp.where(mask.any(-1), jnp.log(jnp.maximum(total, 1e-30))[..., 0] + top[..., 0], -jnp.inf)
    return out.astype(q.dtype), lse


def _with_gradients(function, x, seed=1):
    """Results and gradients of a random sum of both results, over rows that read something."""
    rng = np.random.default_rng(seed)
    reads = (x.segment_BN > 0)[:, :, None, None]
    d_out = jnp.asarray(rng.standard_normal(x.q_BNTHD.shape), x.q_BNTHD.dtype)
    d_lse = jnp.asarray(rng.standard_normal(x.q_BNTHD.shape[:-1]), jnp.float32)
    (out, lse), pull = jax.vjp(function, *x[:5])
    return (out, lse), pull((d_out, jnp.where(reads, d_lse, 0.0)))


def _run(x, rule, tiles, mode=True):
    with tpu.interpreted(mode):
        return _with_gradients(lambda *floats: attend(Inputs(*floats, *x[5:]), tpu.IMPLEMENTATION, rule, tiles), x)


def _close(case, x, mode=True):
    (out, lse), gradients = jax.tree.map(np.asarray, _run(x, case.rule, case.tiles, mode))
    mask = jnp.asarray(_mask(x, case.rule))
    full = Inputs(*(y.astype(jnp.float32) for y in x[:5]), *x[5:])
    (true_out, true_lse), true_gradients = _with_gradients(lambda *floats: _dense(*floats, mask), full)
    bound = {"float32": 1e-5, "bfloat16": 2e-2}[case.dtype]
    assert out.dtype == jnp.dtype(case.dtype) and lse.dtype == np.float32
    np.testing.assert_allclose(lse, true_lse, rtol=1e-5, atol=1e-5)
    names = ("out", "d_q", "d_k", "d_v", "d_anchor_k", "d_anchor_v")
    for name, mine, true in zip(names, (out, *gradients), (true_out, *true_gradients), strict=True):
        scale = max(float(jnp.abs(true).max()), 1.0)
        np.testing.assert_allclose(mine.astype(np.float32), true, atol=bound * scale, rtol=bound, err_msg=name)
    return out, lse, gradients


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_dense_mask(name):
    case = CASES[name]
    out, lse, gradients = _close(case, _inputs(case))
    assert all(np.isfinite(y.astype(np.float32)).all() for y in (out, *gradients))
