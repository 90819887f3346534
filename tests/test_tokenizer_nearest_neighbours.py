"""Nearest neighbours against scikit-learn: blocks of both sides, ties, the item itself, too few keys."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors

from hisam_jax.errors import UserError
from hisam_jax.tokenizer.nearest_neighbours import nearest_neighbours


def brute(query: np.ndarray, key: np.ndarray, k: int, own: np.ndarray | None = None) -> np.ndarray:
    """By all differences, equals by the lowest row."""
    distance = ((query[:, None].astype(np.float64) - key[None]) ** 2).sum(-1)
    if own is not None:
        distance[np.flatnonzero(own >= 0), own[own >= 0]] = np.inf
    order = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return np.where(np.isfinite(np.take_along_axis(distance, order, 1)), order, -1)


@pytest.mark.parametrize("query_block, key_block", [(16, 64), (7, 13), (512, 8192)])
def test_the_same_as_scikit_learn_however_rows_are_cut(query_block, key_block):
    rng = np.random.default_rng(0)
    query, key = (rng.normal(size=(n, 9)).astype(np.float32) + 40 for n in (50, 230))  # a mean far from 0
    rows, distances = nearest_neighbours(query, key, 10, query_block=query_block, key_block=key_block)
    expected, theirs = NearestNeighbors(n_neighbors=10, algorithm="brute").fit(key.astype(np.float64)), query
    theirs, neighbours = expected.kneighbors(theirs.astype(np.float64))
    assert np.array_equal(rows, neighbours) and rows.dtype == np.int32
    np.testing.assert_allclose(distances, theirs**2, rtol=1e-4)


@settings(max_examples=15)
@given(seed=st.integers(0, 999))
def test_ties_go_to_the_lowest_row_and_none_is_its_own_neighbour(seed):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 4, (60, 2)).astype(np.float32)  # whole numbers: equal distances abound, and are exact
    own = np.where(rng.random(60) < 0.5, np.arange(60), -1).astype(np.int32)
    rows, _ = nearest_neighbours(x, x, 60, own, query_block=16, key_block=16)
    assert np.array_equal(rows, brute(x, x, 60, own))
    assert not (rows == np.where(own < 0, -2, own)[:, None]).any()


@pytest.mark.parametrize("keys", [0, 1, 3])
def test_places_without_a_key_are_marked(keys):
    x = np.arange(8, dtype=np.float32)[:, None]
    rows, distances = nearest_neighbours(x[:2], x[:keys], 5, np.array([0, -1]) if keys else None)
    assert rows.shape == (2, 5) and np.array_equal(np.isinf(distances), rows == -1)
    assert (rows >= 0).sum(1).tolist() == [max(keys - 1, 0), keys]


def test_no_queries_and_what_cannot_be_asked():
    x = np.zeros((3, 2), np.float32)
    assert nearest_neighbours(x[:0], x, 2)[0].shape == (0, 2)
    with pytest.raises(UserError, match="neighbours"):
        nearest_neighbours(x, x, 0)
    with pytest.raises(UserError, match=r"\(3, 1\)"):
        nearest_neighbours(x, x[:, :1], 2)
