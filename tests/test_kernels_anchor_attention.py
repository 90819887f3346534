"""Anchor attention: the mask is the one that the paper states, and every implementation computes it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_fixtures import Case, check, make, value_and_gradients
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from hisam_jax.errors import UserError
from hisam_jax.kernels.anchor_attention import Tiles, anchor_attention, api, attend_to_context, core, reference
from hisam_jax.kernels.anchor_attention.core import Inputs, Rule
from hisam_jax.kernels.flat_attention import flat_attention

SMALL = Tiles(4, 7, 3, 8)
RULES = {"all": Rule(), "strict": Rule(strict=True), "window": Rule(window=7), "strict window": Rule(True, 3)}


def public(x: Inputs, cached: int = 0, **options):
    """The public function on a problem whose first `cached` anchors are a cache."""
    if cached:
        options |= {"cached_k": x.anchor_k_BMGD[:, :cached], "cached_v": x.anchor_v_BMGD[:, :cached]}
        options["cached_segment_ids"] = x.anchor_segment_BM[:, :cached]
    return anchor_attention(*x[:3], segment_ids=x.segment_BN, **options)


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
    mask = np.asarray(reference.anchor_mask(jnp.asarray(segments), tokens, strict=strict))
    for row, segments_N in enumerate(segments):
        np.testing.assert_array_equal(mask[row], _naive_mask(segments_N, tokens, strict))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_reference_is_the_rule_read_pair_by_pair(rule):
    case = Case(items=6, tokens=3, cached=5, heads=4, kv_heads=2, width=4, batch=3, rule=rule, seed=3)
    x = make(case)
    out, lse = reference.attend(x, rule)
    q, k, v, anchor_k, anchor_v, segment_BN, segment_BM = (np.asarray(part, np.float64) for part in x[:7])
    for b, n, t, h in np.ndindex(*out.shape[:4]):
        keys, values = [], []
        if segment_BN[b, n] > 0:
            keys, values = list(k[b, n, : t + 1, h // 2]), list(v[b, n, : t + 1, h // 2])
            for m in range(case.cached + n):
                near = rule.window is None or case.cached + n - m <= rule.window
                if segment_BM[b, m] == segment_BN[b, n] and near and not (rule.strict and t == 2):
                    keys.append(anchor_k[b, m, h // 2])
                    values.append(anchor_v[b, m, h // 2])
        if not keys:
            assert not np.asarray(out[b, n, t, h]).any() and lse[b, n, t, h] == -np.inf
            continue
        scores = np.array(keys) @ q[b, n, t, h] / 2
        weights = np.exp(scores - scores.max())
        np.testing.assert_allclose(out[b, n, t, h], weights @ np.array(values) / weights.sum(), atol=1e-5)
        np.testing.assert_allclose(lse[b, n, t, h], np.log(weights.sum()) + scores.max(), atol=1e-5)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("cached", [0, 11])
@pytest.mark.parametrize("tokens", [2, 5, 17])
def test_xla_is_the_reference(tokens, cached, rule):
    check(api.load("xla"), Case(items=23, tokens=tokens, heads=4, cached=cached, batch=3, rule=rule, tiles=SMALL))


@pytest.mark.parametrize("heads", [(1, 1), (3, 1), (4, 4)])
def test_xla_with_other_numbers_of_heads(heads):
    check(api.load("xla"), Case(items=13, tokens=8, heads=heads[0], kv_heads=heads[1], cached=2, tiles=SMALL))


@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])  # each compiles
@given(
    case=st.builds(
        Case,
        items=st.integers(1, 21),
        tokens=st.integers(2, 6),
        heads=st.just(4),
        kv_heads=st.sampled_from([1, 2, 4]),
        width=st.sampled_from([8, 12]),
        batch=st.integers(1, 3),
        cached=st.integers(0, 9),
        after=st.integers(0, 3),
        segments=st.sampled_from(["one", "packed", "empty", "single", "shuffled", "sparse"]),
        tiles=st.builds(Tiles, *[st.integers(1, 22)] * 4),
        rule=st.builds(Rule, strict=st.booleans(), window=st.none() | st.integers(0, 25)),
        dtype=st.sampled_from(["float32", "bfloat16"]),
        seed=st.integers(0, 99),
    ),
)
def test_xla_is_the_reference_whatever_the_shape(case):
    check(api.load("xla"), case)


def test_many_chunks_of_many_blocks():
    check(api.load("xla"), Case(items=83, tokens=5, heads=4, cached=7, tiles=Tiles(4, 16, 4, 8)))


@pytest.mark.parametrize("name", ["xla", "reference"])
def test_padding_gives_zeros_and_zero_gradients_never_nan(name):
    x = make(Case(items=6, tokens=3))

    def attend(*floats):
        return anchor_attention(*floats, segment_ids=jnp.zeros((2, 6), jnp.int32), implementation=name)

    out, pull = jax.vjp(attend, *x[:3])
    assert not np.asarray(out).any()
    assert not any(np.asarray(gradient).any() for gradient in pull(jnp.ones_like(out)))


def test_no_segments_is_one_segment():
    x = make(Case(items=7, tokens=3, segments="one"))
    np.testing.assert_array_equal(anchor_attention(*x[:3]), public(x))


@pytest.mark.parametrize("name", ["xla", "reference"])
def test_a_cache_continues_a_sequence_exactly(name):
    x = make(Case(items=12, tokens=4, heads=4))
    whole, lse = public(x, return_lse=True, implementation=name)
    late = Inputs(*(part[:, 9:] for part in x[:3]), *x[3:5], x.segment_BN[:, 9:], x.anchor_segment_BM, x.first)
    part, part_lse = public(late, 9, return_lse=True, implementation=name)
    np.testing.assert_allclose(part, whole[:, 9:], atol=2e-6)
    np.testing.assert_allclose(part_lse, lse[:, 9:], atol=2e-6)


def test_gradients_reach_the_cache_and_the_anchors_inside_k():
    x = make(Case(items=5, tokens=3, cached=4, segments="one"))

    def total(name, q, k, v, cached_k, cached_v):
        cache = {"cached_k": cached_k, "cached_v": cached_v, "cached_segment_ids": x.anchor_segment_BM[:, :4]}
        out, lse = anchor_attention(q, k, v, segment_ids=x.segment_BN, return_lse=True, implementation=name, **cache)
        return (out**2).sum() + jnp.where(jnp.isfinite(lse), lse, 0).sum()

    floats = (*x[:3], x.anchor_k_BMGD[:, :4], x.anchor_v_BMGD[:, :4])
    got, wanted = (jax.grad(total, (1, 2, 3, 4, 5))(name, *floats) for name in ("xla", "reference"))
    for one, other in zip(got, wanted, strict=True):
        assert np.asarray(other).any()
        np.testing.assert_allclose(one, other, atol=2e-5)


POISONED = {
    "past the diagonal": (Case(12, 3, cached=12, after=16, segments="one"), slice(24, None)),
    "before the window": (Case(12, 3, cached=12, segments="one", rule=Rule(window=4)), slice(0, 8)),
    "of another user": (Case(12, 3, cached=12, segments="halves"), slice(0, 12)),
    "of padding": (Case(12, 3, cached=12, segments="late"), slice(0, 12)),
}


@pytest.mark.parametrize(("case", "where"), POISONED.values(), ids=POISONED)
def test_xla_does_not_compute_blocks_that_nobody_reads(case, where):
    """They hold NaN, which no mask takes out of a product."""
    x, xla, tiles = make(case), api.load("xla"), Tiles(4, 4, 4, 4)
    poisoned = x._replace(
        anchor_k_BMGD=x.anchor_k_BMGD.at[:, where].set(jnp.nan), anchor_v_BMGD=x.anchor_v_BMGD.at[:, where].set(jnp.nan)
    )
    clean, found = (value_and_gradients(lambda y: core.attend(y, xla, case.rule, tiles), y) for y in (x, poisoned))
    for name, true in clean.items():
        np.testing.assert_array_equal(found[name], true, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_float32_is_multiplied_as_float32_on_every_platform(dtype):
    x = make(Case(items=9, tokens=3, dtype=dtype))

    def loss(*floats):
        return public(Inputs(*floats, *x[3:]), implementation="xla").astype(jnp.float32).sum()

    trace = str(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(*x[:3]))
    assert trace.count("dot_general[") > 5
    assert trace.count("HIGHEST, Precision.HIGHEST") == (trace.count("dot_general[") if dtype == "float32" else 0)


def test_batches_of_batches_and_items_of_one_token():
    x = make(Case(items=9, tokens=1, batch=4))
    wanted = public(x, implementation="reference")
    np.testing.assert_allclose(public(x), wanted, atol=2e-6)
    pairs = [part.reshape(2, 2, *part.shape[1:]) for part in (*x[:3], x.segment_BN)]
    mapped = jax.vmap(lambda q, k, v, ids: anchor_attention(q, k, v, segment_ids=ids))(*pairs)
    np.testing.assert_allclose(mapped.reshape(wanted.shape), wanted, atol=2e-6)


def test_a_cache_of_nothing_is_no_cache():
    x = make(Case(items=5, tokens=3))
    empty = x.anchor_k_BMGD[:, :0]
    np.testing.assert_array_equal(public(x, cached_k=empty, cached_v=empty), public(x))


def test_a_window_of_any_size():
    x = make(Case(items=9, tokens=3))
    np.testing.assert_array_equal(public(x, window=2**40), public(x))
    alone = public(x, window=0)
    np.testing.assert_allclose(alone, public(x, window=0, implementation="reference"), atol=2e-6)
    each = [
        Inputs(*(part[:, n : n + 1] for part in x[:3]), *x[3:5], x.segment_BN[:, n : n + 1], *x[6:]) for n in (0, 8)
    ]
    for n, one in zip((0, 8), each, strict=True):
        np.testing.assert_allclose(public(one)[:, 0], alone[:, n], atol=2e-6)


@pytest.mark.parametrize("window", [None, 64])
def test_memory_holds_no_score_tensor_of_the_whole_sequence(window):
    batch, items, tokens, heads, width = 1, 1024, 5, 2, 16
    shape = jax.ShapeDtypeStruct((batch, items, tokens, heads, width), jnp.float32)
    loss = lambda *x: anchor_attention(*x, window=window, implementation="xla", tiles=Tiles(32, 64, 32, 64)).sum()  # noqa: E731
    memory = jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape).compile().memory_analysis()
    all_scores = batch * heads * (items * tokens) * items * 4
    assert memory.temp_size_in_bytes < all_scores / 2


def test_memory_grows_linearly_with_the_items_of_a_fixed_chunk():
    def bytes_of(items):
        shape = jax.ShapeDtypeStruct((1, items, 8, 2, 16), jnp.float32)
        loss = lambda *x: anchor_attention(*x, implementation="xla", tiles=Tiles(16, 64, 16, 64)).sum()  # noqa: E731
        return jax.jit(jax.grad(loss, (0, 1, 2))).lower(shape, shape, shape).compile().memory_analysis()

    few, many = (bytes_of(items).temp_size_in_bytes for items in (256, 1024))
    assert many < 4.4 * few


@pytest.mark.parametrize("length", [1, 9, 37])
def test_flat_attention_is_dense_causal_attention(length):
    q, k, v, *_, segments, _, _ = make(Case(items=length, tokens=4, heads=4, width=8, seed=3))
    got = flat_attention(q, k, v, segments, chunk=4)
    flat = [x.reshape(2, length * 4, *x.shape[3:]) for x in (q, k, v)]
    segment_BS = jnp.repeat(segments, 4, axis=1)
    causal = jnp.tril(jnp.ones((length * 4, length * 4), bool))
    mask = causal & (segment_BS[:, :, None] == segment_BS[:, None]) & (segment_BS[:, :, None] > 0)
    np.testing.assert_allclose(got, reference.masked_attention(*flat, mask)[0].reshape(got.shape), atol=2e-6)


def test_a_candidate_over_cached_anchors_equals_the_full_pass():
    q, k, v, *_ = make(Case(items=9, tokens=4, batch=1, segments="one", seed=4))
    full = anchor_attention(q, k, v, implementation="reference")
    local = jnp.tril(jnp.ones((1, 1, 4, 4), bool))
    out = attend_to_context(
        q[:, 8:], k[:, 8:], v[:, 8:], k[:, :8, -1], v[:, :8, -1], local, jnp.ones((1, 1, 1, 8), bool)
    )
    np.testing.assert_allclose(out, full[:, 8:], atol=2e-6)


def refused(field, match, *arrays, **options):
    with pytest.raises(UserError, match=match) as caught:
        anchor_attention(*arrays, **options)
    assert caught.value.field == field


def test_what_does_not_fit_is_refused_with_its_sizes():
    x = make(Case(items=5, tokens=3, heads=4, width=8, cached=6))
    q, k, v, cached_k, cached_v = *x[:3], x.anchor_k_BMGD[:, :6], x.anchor_v_BMGD[:, :6]
    three = [part[:, :, :, :1].repeat(3, axis=3) for part in (k, v)]
    refused("k", r"\(2, 5, 3, 3, 8\)", q, *three)
    refused("v", r"\(2, 5, 3, 2, 4\)", q, k, v[..., :4])
    refused("segment_ids", r"\(2, 4\)", q, k, v, segment_ids=x.segment_BN[:, :4])
    refused("segment_ids", "type list", q, k, v, segment_ids=x.segment_BN.tolist())
    refused("segment_ids", "int64", q, k, v, segment_ids=np.asarray(x.segment_BN, np.int64))
    refused("k", r"\(2, 5, 3, 0, 8\)", q, k[:, :, :, :0], v[:, :, :, :0])
    refused("q", r"\(0, 5, 3, 4, 8\)", q[:0], k[:0], v[:0])
    refused("tiles", r"\(4, 4, 4, 4\)", q, k, v, tiles=(4, 4, 4, 4))
    refused("segment_ids", "float32", q, k, v, segment_ids=x.segment_BN.astype(jnp.float32))
    refused("q", "float16", *(part.astype(jnp.float16) for part in (q, k, v)))
    refused("v", "bfloat16", q, k, v.astype(jnp.bfloat16))
    refused("q", r"\(5, 3, 4, 8\)", q[0], k[0], v[0])
    refused("q", r"\(2, 0, 3, 4, 8\)", q[:, :0], k[:, :0], v[:, :0])
    refused("q", "type list", q.tolist(), k, v)
    refused("k", "NoneType", q, None, v)
    refused("cached_k", "type list", q, k, v, cached_k=cached_k.tolist(), cached_v=cached_v)
    refused("strict", "type str", q, k, v, strict="no")
    refused("window", "-1", q, k, v, window=-1)
    refused("window", "True", q, k, v, window=True)
    refused("cached_v", "missing", q, k, v, cached_k=cached_k)
    refused("cached_v", r"\(2, 5, 2, 8\)", q, k, v, cached_k=cached_k, cached_v=cached_v[:, :5])
    refused("cached_k", r"\(1, 6, 2, 8\)", q, k, v, cached_k=cached_k[:1], cached_v=cached_v[:1])
    refused("cached_k", "without a cache", q, k, v, cached_segment_ids=x.anchor_segment_BM[:, :6])
    refused("cached_segment_ids", r"\(2, 11\)", q, k, v, cached_k=cached_k, cached_v=cached_v,
            cached_segment_ids=x.anchor_segment_BM)  # fmt: skip


def test_a_named_implementation_is_used_or_refused():
    q, k, v = make(Case(items=5, tokens=3))[:3]
    refused("implementation", "'fast' .* on platform 'cpu'; expected reference or xla", q, k, v, implementation="fast")
    for name in ("tpu", "gpu"):
        refused("implementation", f"'{name}' .* on platform 'cpu'", q, k, v, implementation=name)


def test_without_a_name_the_next_one_is_tried(monkeypatch):
    q, k, v = make(Case(items=5, tokens=3))[:3]

    def cannot(*_):
        raise NotImplementedError("no kernel for width 16")

    broken = core.Implementation("tpu", cannot, cannot, lambda sizes: SMALL)
    load = api.load
    monkeypatch.setattr(api, "device", lambda: ("tpu", "TPU of no kind"))
    monkeypatch.setattr(api, "load", lambda name: broken if name == "tpu" else load(name))
    np.testing.assert_array_equal(anchor_attention(q, k, v), anchor_attention(q, k, v, implementation="xla"))
    refused("implementation", "no kernel for width 16", q, k, v, implementation="tpu")
    monkeypatch.setattr(api, "ORDER", {"tpu": ("tpu",)})
    refused(None, "tpu: no kernel for width 16", q, k, v)
