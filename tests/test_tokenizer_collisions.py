"""Collision policies: unique where promised, never a reserved code moved, blind to the catalogue's order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hisam_jax.errors import UserError
from hisam_jax.tokenizer import collisions


@st.composite
def tables(draw):
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    rng = np.random.default_rng(draw(st.integers(0, 9999)))
    items = draw(st.integers(0, 60))
    reserved = draw(st.sampled_from([0.0, 0.3]))
    codes = np.stack([rng.integers(0, size, items) for size in sizes], 1)
    codes = np.where(rng.random(codes.shape) < reserved, sizes, codes).astype(np.int32)
    everything = {level: rng.random((items, size)).astype(np.float32) for level, size in enumerate(sizes)}
    return codes, sizes, lambda level, rows: everything[level][rows]


def full(resolved):
    return np.concatenate([resolved.codes_IL] + ([] if resolved.digit_I is None else [resolved.digit_I[:, None]]), 1)


@given(tables(), st.sampled_from(["digit", "next_nearest", "sinkhorn"]))
def test_ids_are_unique_and_codes_stay_within_their_levels(table, policy):
    codes, sizes, costs = table
    before = codes.copy()
    resolved = collisions.resolve(policy, codes, sizes, costs)
    assert np.array_equal(codes, before), "the input is left alone"
    assert len(np.unique(full(resolved), axis=0)) == len(codes)
    assert np.all((resolved.codes_IL >= 0) & (resolved.codes_IL <= np.array(sizes)))
    assert np.array_equal(resolved.codes_IL == sizes, codes == sizes), "what an item lacks it goes on lacking"
    if resolved.digit_I is not None:
        assert resolved.digit_I.max(initial=-1) < max(resolved.digit_size, 1)


@given(tables())
def test_moving_touches_only_the_last_code_of_items_that_collide(table):
    codes, sizes, costs = table
    moved = collisions.resolve("next_nearest", codes, sizes, costs).codes_IL
    last = np.where((codes < sizes).any(1), len(sizes) - 1 - (codes < sizes)[:, ::-1].argmax(1), -1)
    for row in range(len(codes)):
        others = [i for i in range(len(sizes)) if i != last[row]]
        assert np.array_equal(moved[row, others], codes[row, others])
        if (codes == codes[row]).all(1).sum() == 1:
            assert np.array_equal(moved[row], codes[row]), "an item that is alone stays"


@given(tables())
def test_a_digit_is_needed_only_where_codes_have_run_out(table):
    codes, sizes, costs = table
    resolved = collisions.resolve("next_nearest", codes, sizes, costs)
    if resolved.digit_I is None:
        return
    last = np.where((codes < sizes).any(1), len(sizes) - 1 - (codes < sizes)[:, ::-1].argmax(1), -1)
    for row in np.flatnonzero(resolved.digit_I > 0):
        if last[row] >= 0:
            rest = np.delete(codes, last[row], axis=1)
            assert (rest == rest[row]).all(1).sum() > sizes[last[row]]


def test_next_nearest_takes_the_cheapest_free_code():
    codes = np.array([[0, 1], [0, 1], [0, 2]], np.int32)
    cost = np.array([[9.0, 0, 1, 5]] * 3)
    moved = collisions.resolve("next_nearest", codes, [4, 4], lambda level, rows: cost[rows]).codes_IL
    assert sorted(map(tuple, moved.tolist())) == [(0, 1), (0, 2), (0, 3)]
    assert np.array_equal(moved[2], [0, 2])


def test_none_changes_nothing():
    codes = np.zeros((5, 2), np.int32)
    resolved = collisions.resolve("none", codes, [3, 3], None)
    assert np.array_equal(resolved.codes_IL, codes) and resolved.digit_I is None


def test_an_unknown_policy_is_named():
    with pytest.raises(UserError, match="next_nearest"):
        collisions.resolve("hash", np.zeros((1, 1), np.int32), [1], None)


def test_digits_do_not_follow_the_catalogue_and_leave_headroom():
    resolved = collisions.resolve("digit", np.zeros((200, 1), np.int32), [4], None)
    assert sorted(resolved.digit_I) == list(range(200)) and resolved.digit_size == 400
    assert abs(np.corrcoef(resolved.digit_I, np.arange(200))[0, 1]) < 0.2


def test_collision_counts_both_ways():
    codes = np.array([[0], [0], [0], [1], [2]])
    assert collisions.collision(codes) == {"rate": 0.4, "share": 0.6}
    assert collisions.collision(codes[:0]) == {"rate": 0.0, "share": 0.0}


@pytest.mark.parametrize("groups", [np.zeros(12, int), np.repeat([3, 8], 6)])
def test_sinkhorn_uses_codes_equally_within_a_group(groups):
    cost = np.random.default_rng(0).random((12, 3))
    plan = np.exp(collisions.sinkhorn(cost, groups, temperature=0.5, iterations=200))
    np.testing.assert_allclose(plan.sum(1), 1, rtol=1e-6)
    for group in np.unique(groups):
        np.testing.assert_allclose(plan[groups == group].sum(0), (groups == group).sum() / 3, rtol=1e-2)


def test_sinkhorn_balances_what_next_nearest_crowds():
    codes = np.zeros((40, 2), np.int32)
    cost = np.random.default_rng(1).random((40, 8)) + 10 * (np.arange(8) > 1)
    rows = lambda level, rows: cost[rows]  # noqa: E731
    assert (
        collisions.resolve("sinkhorn", codes, [4, 64], lambda level, rows: np.tile(cost[rows], (1, 8))).digit_I is None
    )
    used = np.bincount(collisions.resolve("sinkhorn", codes, [4, 8], rows).codes_IL[:, 1], minlength=8)
    assert used.min() >= 1


@given(tables())
def test_next_nearest_is_one_item_after_another(table):
    """Against the plain loop: in the order of the seed, all but the first of equals take their cheapest free code."""
    codes, sizes, costs = table
    order = np.random.default_rng(3).permutation(len(codes))
    level_of = collisions.last_level(codes, sizes)
    expected = codes.copy()
    for level in range(len(sizes)):
        first, movers = set(), []
        for row in order:
            if level_of[row] == level and tuple(expected[row]) in first:
                movers.append(row)
            first.add(tuple(expected[row]))
        for row in movers:
            for code in np.argsort(costs(level, [row])[0], kind="stable"):
                wish = expected[row].copy()
                wish[level] = code
                if tuple(wish) not in first:
                    first.add(tuple(wish))
                    expected[row] = wish
                    break
    assert np.array_equal(collisions.relocate(codes, level_of, sizes, costs, order), expected)


@given(tables(), st.integers(1, 4), st.integers(0, 2))
def test_relocation_respects_capacity_and_what_must_stay(table, capacity, back):
    codes, sizes, costs = table
    level = collisions.last_level(codes, sizes, back)
    for row, found in enumerate(level):
        has = np.flatnonzero(codes[row] < sizes)
        assert found == (has[-1 - back] if len(has) > back else -1)
    level[::3] = -1
    moved = collisions.relocate(codes, level, sizes, costs, np.arange(len(codes)), capacity=capacity)
    changed = moved != codes
    assert not changed[level < 0].any() and changed.sum() <= len(codes)
    rows = np.flatnonzero(changed.any(1))
    assert np.array_equal(changed[rows].argmax(1), level[rows])
    for row in rows:
        assert (moved == moved[row]).all(1).sum() <= capacity, "nobody moves to where there is no room"


def test_blocks_of_costs_change_nothing_and_stay_bounded(monkeypatch):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, (500, 2)).astype(np.int32)
    cost = rng.random((500, 40)).astype(np.float32)
    asked = []

    def costs(level, rows):
        asked.append(len(rows) * 40)
        return cost[rows]

    whole = collisions.resolve("next_nearest", codes, [3, 40], costs)
    monkeypatch.setattr(collisions, "CELLS", 7 * 40)
    for policy in ("next_nearest", "sinkhorn"):
        asked.clear()
        parts = collisions.resolve(policy, codes, [3, 40], costs)
        assert len(asked) > 5 and max(asked) <= 7 * 40
        assert len(np.unique(full(parts), axis=0)) == 500
        assert policy == "sinkhorn" or np.array_equal(full(parts), full(whole))


def test_sinkhorn_deals_more_items_than_codes_out_evenly():
    codes, cost = np.zeros((100, 2), np.int32), np.random.default_rng(1).random((100, 8))
    dealt = collisions.resolve("sinkhorn", codes, [4, 8], lambda level, rows: cost[rows] + 9 * (np.arange(8) > 1))
    used = np.bincount(dealt.codes_IL[:, 1], minlength=8)
    assert used.max() == 13 and dealt.digit_size == 26, "the digit counts no further than an even deal needs"


@given(st.lists(st.tuples(*[st.sampled_from([0, 1, 2**31 - 2, 2**31 - 1])] * 4), max_size=20))
def test_keys_are_dense_and_equal_where_rows_are(rows):
    codes = np.array(rows, np.int64).reshape(-1, 4)
    keys = collisions.keys_of(codes)
    assert np.array_equal(keys[:, None] == keys, (codes[:, None] == codes).all(2))
    assert len(rows) == 0 or set(keys) == set(range(keys.max() + 1))


@given(st.lists(st.sampled_from([0, 1, 7, 2**61, 2**62]), max_size=30))
def test_order_is_a_stable_argsort(values):
    keys = np.array(values, np.int64)
    assert np.array_equal(collisions.order_of(keys), np.argsort(keys, kind="stable"))


@pytest.mark.parametrize("policy", ["digit", "next_nearest", "sinkhorn"])
def test_no_item_and_one_item(policy):
    for items in (0, 1):
        found = collisions.resolve(policy, np.zeros((items, 2), np.int32), [3, 3], None)
        assert found.codes_IL.shape == (items, 2)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["digit", "next_nearest"])
def test_a_million_items_are_told_apart(policy):
    rng = np.random.default_rng(0)
    codes = (rng.zipf(1.3, (1_000_000, 3)) % 256).astype(np.int32)
    resolved = collisions.resolve(
        policy, codes, [256] * 3, lambda level, rows: rng.random((len(rows), 256), np.float32)
    )
    assert len(np.unique(collisions.keys_of(full(resolved)))) == len(codes)
