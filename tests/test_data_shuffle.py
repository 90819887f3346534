"""The shuffled order with random access: a permutation, another for every seed, and no trace of the order before."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hisam_jax.data.shuffle import shuffled


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**32 - 1))
def test_it_is_a_permutation_wherever_it_is_asked(size, seed):
    whole = shuffled(np.arange(size), size, seed)
    np.testing.assert_array_equal(np.sort(whole), np.arange(size))
    some = np.arange(size)[:: max(1, size // 7)]
    np.testing.assert_array_equal(shuffled(some, size, seed), whole[some])


@pytest.mark.parametrize("size", [10**4, 2**20 - 3, 10**12])
def test_neighbours_are_strangers_and_seeds_differ(size):
    place = np.arange(5000) + size // 3
    one, other = (shuffled(place, size, seed) / size for seed in (7, 8))
    for row in (one, other):
        counts, _ = np.histogram(row, 20, (0, 1))
        assert (np.abs(counts - 250) < 6 * 250**0.5).all()
        assert abs(np.corrcoef(row[1:], row[:-1])[0, 1]) < 0.06 and abs(np.corrcoef(row, place)[0, 1]) < 0.06
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.06


def test_every_order_of_four_comes_about_as_often():
    found = [tuple(shuffled(np.arange(4), 4, seed)) for seed in range(2400)]
    counts = np.array([found.count(order) for order in set(found)])
    assert len(counts) == 24 and (np.abs(counts - 100) < 6 * 10).all()
