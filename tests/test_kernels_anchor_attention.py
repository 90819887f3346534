"""Both forms of anchor attention agree in values and gradients, and the mask is the one that the paper states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hisam_jax.errors import UserError
from hisam_jax.kernels.anchor_attention import anchor_attention, attend_to_context, xla
from hisam_jax.kernels.anchor_attention.reference import anchor_mask, masked_attention
from hisam_jax.kernels.flat_attention import flat_attention


def _inputs(seed, batch, items, tokens, heads, groups, width, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(seed), 3)
    q = jax.random.normal(keys[0], (batch, items, tokens, heads, width), dtype)
    k, v = (jax.random.normal(key, (batch, items, tokens, groups, width), dtype) for key in keys[1:])
    rng = np.random.default_rng(seed)
    starts = rng.random((batch, items)) < 0.2
    segments = np.cumsum(starts, axis=1) + 1
    real = rng.integers(0, items + 1, size=batch)
    return q, k, v, jnp.asarray(np.where(np.arange(items) < real[:, None], segments, 0), jnp.int32)


def _naive_mask(segments_N, tokens, strict):
    items = len(segments_N)
    allowed = np.zeros((items * tokens, items * tokens), bool)
    for i in range(items * tokens):
        for j in range(i + 1):
            (n, a), (m, b) = divmod(i, tokens), divmod(j, tokens)
            if segments_N[n] == 0 or segments_N[n] != segments_N[m]:
                continue
            earlier_anchor = b == tokens - 1 and m < n and not (strict and a == tokens - 1)
            allowed[i, j] = n == m or earlier_anchor
    return allowed


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("tokens", [2, 3, 5])
def test_mask_is_the_rule_read_pair_by_pair(strict, tokens):
    segments = np.array([[1, 1, 2, 2, 2, 0], [3, 3, 3, 3, 3, 3], [0, 0, 0, 0, 0, 0]], np.int32)
    mask = np.asarray(anchor_mask(jnp.asarray(segments), tokens, strict=strict))
    for row, segments_N in enumerate(segments):
        np.testing.assert_array_equal(mask[row], _naive_mask(segments_N, tokens, strict))


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 99),
    items=st.integers(1, 11),
    tokens=st.integers(2, 6),
    heads=st.sampled_from([(1, 1), (2, 2), (4, 2), (3, 1)]),
    strict=st.booleans(),
    chunk=st.integers(1, 12),
)
def test_forms_agree_in_values_and_gradients(seed, items, tokens, heads, strict, chunk):
    q, k, v, segments = _inputs(seed, 2, items, tokens, *heads, 8)

    def loss(implementation, q, k, v):
        if implementation == "xla":
            out = xla.anchor_attention(q, k, v, segments, strict=strict, chunk=chunk)
        else:
            out = anchor_attention(q, k, v, segment_ids=segments, strict=strict, implementation="reference")
        return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum(), out

    both = jax.jit(jax.value_and_grad(loss, (1, 2, 3), has_aux=True), static_argnums=0)
    (_, got), got_grad = both("xla", q, k, v)
    (_, want), want_grad = both("reference", q, k, v)
    np.testing.assert_allclose(got, want, atol=2e-6)
    for one, other in zip(got_grad, want_grad, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("strict", [False, True])
def test_forms_agree_over_many_chunks_and_bands(strict):
    q, k, v, segments = _inputs(5, 2, 83, 5, 4, 2, 16)
    got = xla.anchor_attention(q, k, v, segments, strict=strict, chunk=4)
    want = anchor_attention(q, k, v, segment_ids=segments, strict=strict, implementation="reference")
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_bfloat16_is_no_worse_than_the_reference_in_bfloat16():
    q, k, v, segments = _inputs(7, 2, 40, 5, 4, 4, 32, jnp.bfloat16)
    exact = anchor_attention(
        *(x.astype(jnp.float32) for x in (q, k, v)), segment_ids=segments, implementation="reference"
    )
    error = {}
    for name in ("xla", "reference"):
        out = anchor_attention(q, k, v, segment_ids=segments, implementation=name)
        assert out.dtype == jnp.bfloat16
        error[name] = float(jnp.abs(out.astype(jnp.float32) - exact).max())
    assert error["xla"] <= 2 * error["reference"] + 2**-8


def test_padding_gives_zeros_and_zero_gradients_never_nan():
    q, k, v, _ = _inputs(1, 2, 6, 3, 2, 2, 8)
    segments = jnp.zeros((2, 6), jnp.int32)
    for name in ("xla", "reference"):

        @jax.jit
        def both(q, k, v, name=name):
            out, pull = jax.vjp(lambda *x: anchor_attention(*x, segment_ids=segments, implementation=name), q, k, v)
            return out, pull(jnp.ones_like(out))

        out, gradients = both(q, k, v)
        assert not np.asarray(out).any()
        assert not any(np.asarray(g).any() for g in gradients)


def test_no_segments_is_one_segment():
    q, k, v, _ = _inputs(2, 2, 7, 3, 2, 2, 8)
    np.testing.assert_array_equal(
        anchor_attention(q, k, v), anchor_attention(q, k, v, segment_ids=jnp.ones((2, 7), jnp.int32))
    )


def test_memory_holds_no_score_tensor_of_the_whole_sequence():
    batch, items, tokens, heads, width = 1, 1024, 5, 2, 16
    shape = jax.ShapeDtypeStruct((batch, items, tokens, heads, width), jnp.float32)
    segment = jax.ShapeDtypeStruct((batch, items), jnp.int32)

    def loss(q, k, v, segments):
        return xla.anchor_attention(q, k, v, segments, strict=False, chunk=32).sum()

    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape, segment).compile()
    all_scores = batch * heads * (items * tokens) * items * 4
    assert compiled.memory_analysis().temp_size_in_bytes < all_scores / 2


@pytest.mark.parametrize("length", [1, 9, 37])
def test_flat_attention_is_dense_causal_attention(length):
    q, k, v, segments = _inputs(3, 2, length, 4, 4, 2, 8)
    got = flat_attention(q, k, v, segments, chunk=4)
    flat = [x.reshape(2, length * 4, *x.shape[3:]) for x in (q, k, v)]
    segment_BS = jnp.repeat(segments, 4, axis=1)
    causal = jnp.tril(jnp.ones((length * 4, length * 4), bool))
    mask = causal & (segment_BS[:, :, None] == segment_BS[:, None]) & (segment_BS[:, :, None] > 0)
    np.testing.assert_allclose(got, masked_attention(*flat, mask).reshape(got.shape), atol=2e-6)


def test_a_candidate_over_cached_anchors_equals_the_full_pass():
    q, k, v, _ = _inputs(4, 1, 9, 4, 2, 2, 8)
    full = anchor_attention(q, k, v, implementation="reference")
    local = jnp.tril(jnp.ones((1, 1, 4, 4), bool))
    out = attend_to_context(
        q[:, 8:], k[:, 8:], v[:, 8:], k[:, :8, -1], v[:, :8, -1], local, jnp.ones((1, 1, 1, 8), bool)
    )
    np.testing.assert_allclose(out, full[:, 8:], atol=2e-6)


def test_what_does_not_fit_is_refused_with_its_sizes():
    q, k, v, segments = _inputs(0, 2, 5, 3, 4, 2, 8)
    with pytest.raises(UserError, match=r"\(2, 5, 3, 3, 8\)"):
        anchor_attention(q, k[:, :, :, :1].repeat(3, axis=3), v[:, :, :, :1].repeat(3, axis=3))
    with pytest.raises(UserError, match="segment_ids of shape"):
        anchor_attention(q, k, v, segment_ids=segments[:, :4])
    with pytest.raises(UserError, match="float16"):
        anchor_attention(*(x.astype(jnp.float16) for x in (q, k, v)))
    with pytest.raises(UserError, match="xla or reference"):
        anchor_attention(q, k, v, implementation="fast")
    with pytest.raises(UserError, match="batch, items, tokens"):
        anchor_attention(q[0], k[0], v[0])
