"""Balanced k-means: equal shares, the greedy rule, odd rows that get no centre of their own, and codes for all."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import adjusted_mutual_info_score
from tokenizer_fixtures import planted

from hisam_jax.tokenizer import balanced_clustering, clustering, registry
from hisam_jax.tokenizer.balanced_clustering import balanced, share_out
from hisam_jax.tokenizer.residual_kmeans import ResidualKMeansConfig, fit_levels

PLAIN = ResidualKMeansConfig((16, 8), iterations=5)
BALANCED = dataclasses.replace(PLAIN, balanced=True)


def in_parts(x_ND, size):
    """As `clustering.split` does it, in parts so small that there are several."""
    padded = np.concatenate([x_ND, np.zeros((-len(x_ND) % size, x_ND.shape[1]), np.float32)])
    return list(padded.reshape(-1, size, x_ND.shape[1]))


@given(rows=st.integers(1, 90), data=st.data())
def test_centres_choose_one_by_one_the_nearest_of_what_is_left(rows, data):
    size = data.draw(st.integers(1, rows))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    x_ND, centres_KD = (rng.normal(size=(n, 3)).astype(np.float32) for n in (rows, size))
    order_K = rng.permutation(size)
    code_N = share_out(in_parts(x_ND, 16), rows, centres_KD, order_K)
    count_K = np.bincount(code_N, minlength=size)
    assert count_K.sum() == rows and count_K.max() - count_K.min() <= 1
    free = set(range(rows))
    for centre in order_K:
        by_distance = sorted(free, key=lambda row: np.square(x_ND[row] - centres_KD[centre]).sum())
        wanted = set(by_distance[: count_K[centre]])
        assert wanted == set(np.flatnonzero(code_N == centre))
        free -= wanted


def test_more_centres_than_are_looked_at_together_and_several_parts_change_nothing():
    x_ND = np.random.default_rng(0).normal(size=(2500, 4)).astype(np.float32)
    found = [balanced(jax.random.key(0), in_parts(x_ND, size), 2500, x_ND[:200], 4) for size in (3072, 1024)]
    assert np.array_equal(found[0].code_N, found[1].code_N)
    np.testing.assert_allclose(found[0].centres_KD, found[1].centres_KD, atol=1e-6)
    distance_NK = np.square(x_ND[:, None] - found[0].centres_KD).sum(-1)
    assert np.array_equal(distance_NK.argmin(1), found[0].code_N), "a row's code is its nearest centre"
    np.testing.assert_allclose(found[0].error, distance_NK.min(1).mean(), rtol=1e-4)


def test_it_stops_when_nothing_changes(monkeypatch):
    calls = []
    monkeypatch.setattr(balanced_clustering, "share_out", lambda *given: (calls.append(1), share_out(*given))[1])
    x_ND = 9 * np.repeat(np.eye(6, dtype=np.float32), 10, axis=0)
    start_KD = x_ND[::10] + np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    fitted = balanced(jax.random.key(0), clustering.split(x_ND), 60, start_KD, 50)
    assert len(calls) == 2 and fitted.error < 1e-6


def test_groups_of_equal_size_are_found():
    rng, truth_N = np.random.default_rng(1), np.repeat(np.arange(12), 30)
    x_ND = (8 * rng.normal(size=(12, 6))[truth_N] + rng.normal(size=(360, 6))).astype(np.float32)
    (fitted,) = fit_levels(jax.random.key(0), x_ND, (12,), 20, balanced=True)
    assert adjusted_mutual_info_score(truth_N, fitted.code_N) > 0.95


def test_odd_rows_keep_centres_of_plain_kmeans_to_themselves_and_none_of_these():
    rng = np.random.default_rng(2)
    x_ND = rng.normal(size=(600, 32)).astype(np.float32)
    x_ND[:20] *= 20
    lonely, spread = {}, {}
    for kind in (False, True):
        (fitted,) = fit_levels(jax.random.key(0), x_ND, (32,), 20, balanced=kind)
        count_K = np.bincount(fitted.code_N, minlength=32)
        lonely[kind] = int((count_K == 1).sum())
        share_K = count_K[count_K > 0] / 600
        spread[kind] = float(np.exp(-(share_K * np.log(share_K)).sum()))
    assert lonely[False] >= 15 and lonely[True] <= 3
    assert spread[True] > 2 * spread[False]


@pytest.mark.parametrize("rows", [1, 5])
def test_rows_that_are_all_the_same_end_in_one_code(rows):
    parts = clustering.split(np.ones((rows, 3), np.float32))
    fitted = balanced(jax.random.key(0), parts, rows, np.ones((rows, 3), np.float32), 3)
    assert set(fitted.code_N) == {0} and fitted.error == 0 and np.isfinite(fitted.centres_KD).all()


def test_as_a_tokenizer_it_comes_back_from_disk_and_plain_ones_of_before_still_load(tmp_path):
    features, present, _ = planted(200, categories=8, width=12)
    present["text"][0] = present["image"][0] = False
    every = np.ones(200, bool)
    model = registry.entry("residual_kmeans").fit(BALANCED, features, present, every, 0)
    codes = model.assign(features, present)
    plain = registry.entry("residual_kmeans").fit(PLAIN, features, present, every, 0)
    assert not np.array_equal(codes, plain.assign(features, present))
    assert np.array_equal(codes[0], [16, 8]) and (codes[1:] < [16, 8]).all()
    for level in (0, 1):
        assert np.array_equal(model.costs(features, present, level).argmin(1)[1:], codes[1:, level])
    registry.save_tokenizer(model, tmp_path)
    again = registry.load_tokenizer(tmp_path)
    assert np.array_equal(again.assign(features, present), codes) and again.config["balanced"] is True
    arrays, meta = plain.state()
    del meta["config"]["balanced"]
    older = type(plain).from_state(arrays, meta)
    assert np.array_equal(older.assign(features, present), plain.assign(features, present))
