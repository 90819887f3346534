"""Pointwise attention against loops over pairs in plain numpy, whole, in chunks and over a cache."""

import jax.numpy as jnp
import numpy as np
import pytest

from hisam_jax.kernels.hstu_attention import BUCKETS, bucket, hstu_attention, hstu_continue

ROWS, ITEMS, TOKENS, HEADS, GROUPS, WIDTH = 2, 11, 3, 4, 2, 6
SEGMENT = np.array([[1] * 4 + [2] * 7, [1] * 9 + [0] * 2], np.int32)


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    shapes = [(ROWS, ITEMS, TOKENS, heads, WIDTH) for heads in (HEADS, GROUPS, GROUPS)]
    shapes += [(HEADS, BUCKETS), (HEADS, TOKENS, TOKENS)]
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def _reference(q, k, v, distance, slots):
    q, k, v, distance, slots = (np.asarray(x, np.float64) for x in (q, k, v, distance, slots))
    out = np.zeros(q.shape)
    for b, n, t, h in np.ndindex(q.shape[:-1]):
        read = [
            (m, s)
            for m, s in np.ndindex(ITEMS, TOKENS)
            if SEGMENT[b, n] and SEGMENT[b, m] == SEGMENT[b, n] and (m, s) <= (n, t)
        ]
        for m, s in read:
            score = (
                q[b, n, t, h] @ k[b, m, s, h // 2]
                + distance[h, n - m if n - m < 8 else 8 + int(4 * np.log2((n - m) / 8))]
            )
            score += slots[h, t, s]
            out[b, n, t, h] += score / (1 + np.exp(-score)) * v[b, m, s, h // 2] / len(read)
    return out


@pytest.mark.parametrize("chunk", [4, 64])
def test_it_is_the_mean_of_gated_values_over_what_may_be_read(chunk, arrays):
    q, k, v, distance, slots = arrays
    got = hstu_attention(q, k, v, jnp.asarray(SEGMENT), distance, slots, chunk=chunk)
    np.testing.assert_allclose(got, _reference(q, k, v, distance, slots), atol=2e-5)


@pytest.mark.parametrize("tokens", [1, TOKENS])
def test_a_cached_history_is_continued_as_if_it_were_read_again(tokens, arrays):
    q, k, v, distance, slots = arrays
    want = _reference(q, k, v, distance, slots)[1, 8, :tokens]
    past = [np.pad(x[1:, :8].reshape(1, 8 * TOKENS, GROUPS, WIDTH), ((0, 0), (0, 6), (0, 0), (0, 0))) for x in (k, v)]
    index = np.concatenate([np.arange(8).repeat(TOKENS), np.full(6, -1)])[None]
    new = (x[1:, [8, 8], :tokens] for x in (q, k, v))
    got = hstu_continue(*new, (*past, index), jnp.full((1, 2), 8), distance, slots)
    np.testing.assert_allclose(got[0, 0], want, atol=2e-5)
    np.testing.assert_array_equal(got[0, 0], got[0, 1])


def test_buckets_rise_with_distance_and_end():
    found = np.asarray(bucket(jnp.arange(-3, 5000)))
    assert (found[:4] == 0).all() and (np.diff(found) >= 0).all()
    assert found[3:11].tolist() == list(range(8)) and found[-1] == BUCKETS - 1 == found[3 + 512]
    assert set(found) == set(range(BUCKETS))
