"""Lloyd over parts against plain numpy: pruned or not, on the device or streamed, with empty clusters and ties."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hisam_jax.tokenizer import clustering, quantization


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Several parts of several tiles each, and pruning however few the rows."""
    monkeypatch.setattr(clustering, "PART", 512)
    monkeypatch.setattr(clustering, "TILE", 128)
    monkeypatch.setattr(clustering, "PRUNED_ROWS", 0)


def mixture(rows: int, width: int, components: int, noise: float = 0.4, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(components, width))
    return (centres[rng.integers(0, components, rows)] + noise * rng.normal(size=(rows, width))).astype(np.float32)


def reference(x: np.ndarray, centres: np.ndarray, iterations: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Lloyd by all distances in float64; empty clusters take the worst served rows."""
    for iteration in range(iterations + 1):
        distance = ((x[:, None].astype(np.float64) - centres[None]) ** 2).sum(-1)
        code, least = distance.argmin(1), distance.min(1)
        if iteration == iterations:
            return centres, code, least.mean()
        count = np.bincount(code, minlength=len(centres))
        means = [x[code == k].mean(0, dtype=np.float64) if count[k] else centres[k] for k in range(len(centres))]
        centres, empty = np.stack(means), np.flatnonzero(count == 0)
        centres[empty] = x[np.argsort(-least, kind="stable")[: len(empty)]]


@pytest.mark.parametrize("resident", [0, clustering.RESIDENT_BYTES])
@pytest.mark.parametrize("iterations", [0, 1, 15])
def test_lloyd_over_parts_is_plain_lloyd(iterations, resident):
    x = mixture(1801, 6, 50)
    start = x[:40]
    found = clustering.lloyd(clustering.split(x, resident), len(x), start, iterations)
    centres, code, error = reference(x, start.astype(np.float64), iterations)
    np.testing.assert_allclose(found.centres_KD, centres, atol=1e-4)
    assert np.array_equal(found.code_N, code) and found.code_N.dtype == np.int32
    np.testing.assert_allclose(found.error, error, rtol=1e-4)


def test_empty_clusters_get_half_of_another_even_among_columns_of_noise():
    x = mixture(1000, 64, 10, noise=1.0)
    start = x[:16].copy()
    start[3], start[8:11] = 100.0, -100.0  # nothing is near them
    found = clustering.lloyd(clustering.split(x), len(x), start, 10)
    assert np.bincount(found.code_N, minlength=16).min() > 5, "a lone row as a centre would keep to itself"
    np.testing.assert_allclose(found.error, reference(x, found.centres_KD, 0)[2], rtol=1e-4)


def test_only_centres_that_moved_are_scored_and_that_changes_nothing(monkeypatch):
    x = mixture(1500, 6, 30, noise=0.15)
    start, scored = x[:40].copy(), []
    whole = clustering.lloyd(clustering.split(x), len(x), start, 12)
    plain = clustering._assign_part

    def spied(part, live, known, centres, moved_M, *rest):
        scored.append(len(centres) if moved_M is None else len(moved_M))
        return plain(part, live, known, centres, moved_M, *rest)

    monkeypatch.setattr(clustering, "_assign_part", spied)
    clustering.lloyd(clustering.split(x), len(x), start, 12)
    assert max(scored) == 40 and min(scored) <= 20, "later passes score few"
    monkeypatch.setattr(clustering, "PRUNED_ROWS", 10**9)
    scored.clear()
    unpruned = clustering.lloyd(clustering.split(x), len(x), start, 12)
    assert set(scored) == {40} and np.array_equal(unpruned.code_N, whole.code_N)
    np.testing.assert_array_equal(unpruned.centres_KD, whole.centres_KD)


def test_the_error_never_rises():
    x = mixture(900, 5, 40, noise=0.8)
    errors = [clustering.lloyd(clustering.split(x), len(x), x[:24], n).error for n in range(6)]
    assert all(after <= before * (1 + 1e-6) for before, after in zip(errors, errors[1:], strict=False))
    assert errors[-1] < 0.9 * errors[0]


@settings(max_examples=10)
@given(seed=st.integers(0, 999), levels=st.integers(1, 3))
def test_every_level_leaves_no_more_and_its_codes_are_the_nearest(seed, levels):
    x = np.random.default_rng(seed).normal(size=(300, 4)).astype(np.float32)
    parts, left, error = clustering.split(x), x.astype(np.float64), np.square(x).sum(1).mean()
    for depth in range(levels):
        start = clustering.seeds(jax.random.key(depth), parts, len(x), 8)
        found = clustering.lloyd(parts, len(x), start, 4)
        assert ((start[:, None] - np.asarray(left, np.float32)[None]) ** 2).sum(-1).min(1).max() < 1e-8, (
            "seeds are rows"
        )
        distance = ((left[:, None] - found.centres_KD[None]) ** 2).sum(-1)
        assert np.all(distance[np.arange(300), found.code_N] <= distance.min(1) + 1e-4)
        assert found.error <= error * (1 + 1e-5)
        clustering.subtract(parts, len(x), found)
        left, error = left - found.centres_KD[found.code_N], found.error


@pytest.mark.parametrize("distinct", [1, 5])
def test_fewer_distinct_rows_than_centres_end_early_with_no_error(distinct):
    x = mixture(600, 3, 600)[np.arange(600) % distinct]
    found = clustering.lloyd(clustering.split(x), len(x), x[:8], 50)
    assert np.isfinite(found.centres_KD).all() and found.error < 1e-6
    assert len(np.unique(found.code_N)) == distinct, "equal rows keep together"


def test_a_memory_map_is_streamed_and_left_as_it_was(tmp_path):
    x = mixture(1300, 4, 20)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    streamed = clustering.split(mapped, 0)
    found = clustering.lloyd(streamed, len(x), x[:16], 5)
    clustering.subtract(streamed, len(x), found)
    left = np.concatenate(streamed)[: len(x)]
    np.testing.assert_allclose(left, x - found.centres_KD[found.code_N], atol=1e-6)
    assert np.array_equal(mapped, x)


def test_one_lloyd_step_is_that_of_numpy_and_leaves_rows_of_no_weight_out():
    x = mixture(512, 5, 9)
    weight = (np.arange(512) % 3 > 0).astype(np.float32)
    start = np.concatenate([x[:8], np.full((1, 5), 50.0, np.float32)])
    centres, inertia = quantization.lloyd_step(jnp.asarray(x), jnp.asarray(weight), jnp.asarray(start), 128)
    live = x[weight > 0]
    expected, _, _ = reference(live, start.astype(np.float64), 1)
    np.testing.assert_allclose(centres, expected, atol=1e-4)
    _, _, error = reference(live, start.astype(np.float64), 0)
    np.testing.assert_allclose(inertia, error * len(live), rtol=1e-4)


def test_rows_of_no_code_are_added_nowhere():
    x, code = jnp.ones((4, 2)), jnp.array([0, 2, 3, 0])
    total = quantization.add_by_code(jnp.zeros((3, 2)), x, code)
    np.testing.assert_array_equal(total, [[2, 2], [0, 0], [1, 1]])
