"""Order, duplicates, k-core, splits and their checksum, against naive references and under shuffled input."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from hisam_jax.data import splits
from hisam_jax.data.identity import digests, shuffled
from hisam_jax.data.preparation import Events, drop_duplicates, k_core, time_order
from hisam_jax.data.records import HISTORY, TEST, TRAIN, VALIDATION
from hisam_jax.errors import UserError

EVENTS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7), st.integers(0, 6)), min_size=1, max_size=60)


def _columns(rows: list[tuple[int, int, int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    user, item, time = np.array(rows).T
    return user.astype(np.int32), item.astype(np.int32), time.astype(np.uint32)


def _digests(seed: int) -> tuple[np.ndarray, np.ndarray]:
    users, items = pl.Series([f"u{u}" for u in range(6)]), pl.Series([f"i{i}" for i in range(8)])
    return digests(users, seed, "user"), digests(items, seed, "item")


def _sorted(rows: list[tuple[int, int, int]], seed: int = 0) -> Events:
    user, item, time = _columns(rows)
    return Events(user, item, time, None).take(time_order(user, item, time, *_digests(seed)))


def _triples(events: Events) -> list[tuple[int, int, int]]:
    return list(zip(events.user.tolist(), events.item.tolist(), events.time.tolist(), strict=True))


def _by_user(offsets: np.ndarray, *columns: np.ndarray) -> list[tuple[np.ndarray, ...]]:
    return [tuple(column[a:b] for column in columns) for a, b in zip(offsets[:-1], offsets[1:], strict=True)]


@given(rows=EVENTS, seed=st.integers(0, 9), shuffle=st.randoms())
def test_order_is_by_user_and_time_and_blind_to_file_order(rows, seed, shuffle):
    ordered = _triples(_sorted(rows, seed))
    assert [(u, t) for u, _, t in ordered] == sorted((u, t) for u, _, t in rows)
    assert Counter(ordered) == Counter(rows)
    again = rows.copy()
    shuffle.shuffle(again)
    assert _triples(_sorted(again, seed)) == ordered


def test_ties_are_a_seeded_coin_and_not_the_order_of_ids_or_popularity():
    rows = [(user, item, 3) for user in range(6) for item in range(8)]
    first = Counter()
    for seed in range(200):
        events = _sorted(rows, seed)
        first.update((u, items[0]) for u, (items,) in enumerate(_by_user(events.offsets(6), events.item)))
    for user in range(6):  # 200 draws of 8: a fair coin gives 25 each, standard deviation 4.7
        counts = [first[user, item] for item in range(8)]
        assert min(counts) > 25 - 4.5 * 4.7 and max(counts) < 25 + 4.5 * 4.7
    users = [tuple(items) for (items,) in _by_user(_sorted(rows).offsets(6), _sorted(rows).item)]
    assert len(set(users)) == 6  # every user has a coin of his own


def test_ties_do_not_depend_on_the_codes_that_ids_happen_to_have():
    users, items = pl.Series(["a"]), pl.Series([f"i{i}" for i in range(30)])
    orders = []
    for rng in map(np.random.default_rng, range(3)):
        named = items.gather(rng.permutation(30))
        zeros = np.zeros(30, np.int32)
        rows = time_order(
            zeros, np.arange(30), zeros.astype(np.uint32), digests(users, 1, "user"), digests(named, 1, "item")
        )
        orders.append(named.gather(rows).to_list())
    assert orders[0] == orders[1] == orders[2] != sorted(orders[0])


@given(rows=EVENTS, seed=st.integers(0, 3))
def test_duplicates_go_and_the_best_rating_stays(rows, seed):
    rng = np.random.default_rng(seed)
    user, item, time = _columns(rows)
    rating = rng.integers(1, 6, len(rows)).astype(np.float32)
    order = time_order(user, item, time, *_digests(seed))
    kept, count = drop_duplicates(Events(user, item, time, rating).take(order))
    best = {}
    for row, value in zip(rows, rating.tolist(), strict=True):
        best[row] = max(best.get(row, 0), value)
    assert dict(zip(_triples(kept), kept.rating.tolist(), strict=True)) == best
    assert len(kept) == len(best) and count == len(rows) - len(best)


def _naive_core(pairs: list[tuple[int, int]], min_user: int, min_item: int) -> list[bool]:
    alive = [True] * len(pairs)
    while True:
        users = Counter(u for (u, _), a in zip(pairs, alive, strict=True) if a)
        items = Counter(i for (_, i), a in zip(pairs, alive, strict=True) if a)
        new = [a and users[u] >= min_user and items[i] >= min_item for (u, i), a in zip(pairs, alive, strict=True)]
        if new == alive:
            return alive
        alive = new


@given(
    pairs=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=80),
    min_user=st.integers(1, 5),
    min_item=st.integers(1, 5),
)
def test_k_core_is_the_fixed_point(pairs, min_user, min_item):
    user, item = np.array(pairs, np.int32).reshape(-1, 2).T
    assert k_core(user, item, min_user, min_item).tolist() == _naive_core(pairs, min_user, min_item)


POSITIVES = st.lists(st.lists(st.booleans(), max_size=12), min_size=1, max_size=8)


@given(users=POSITIVES)
def test_leave_one_out_holds_out_the_last_two_positives_and_never_leaks(users):
    offsets = np.concatenate([[0], np.cumsum([len(u) for u in users])]).astype(np.int64)
    positive = np.array([p for u in users for p in u], np.uint8)
    split = splits.leave_one_out(offsets, positive)
    for marks, liked in _by_user(offsets, split, positive.astype(bool)):
        places = np.flatnonzero(liked)
        test, validation = np.flatnonzero(marks == TEST), np.flatnonzero(marks == VALIDATION)
        assert test.tolist() == places[-1:].tolist() * (len(places) >= 2)
        assert validation.tolist() == places[-2:-1].tolist() * (len(places) >= 3)
        train = np.flatnonzero(marks == TRAIN)
        first_held = min([*test, *validation], default=len(marks))
        assert train.tolist() == list(range(first_held))  # every TRAIN event precedes every held-out one
        for place in np.flatnonzero(marks == HISTORY):
            assert not liked[place] and validation[0] < place < test[0]
        assert (marks == splits.AFTER_TEST).sum() == (len(marks) - 1 - test[0] if len(test) else 0)


@given(lengths=st.lists(st.integers(0, 60), min_size=1, max_size=10))
def test_per_user_time_holds_out_tenths(lengths):
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    for (marks,), n in zip(_by_user(offsets, splits.per_user_time(offsets)), lengths, strict=True):
        k = int(n / 10 + 0.5)
        assert marks.tolist() == [TRAIN] * (n - 2 * k) + [VALIDATION] * k + [TEST] * k
        assert (k == 0) == (n < 5)


@given(times=st.lists(st.integers(0, 40), min_size=3, max_size=200))
def test_chronological_is_one_cut_for_everybody(times):
    assume(len(set(times)) >= 3)
    time = np.array(times, np.uint32)
    cuts = splits.chronological_cuts(*np.unique(time, return_counts=True))
    split = splits.chronological(time, cuts)
    assert time[split == TRAIN].max() < cuts["validation"] == time[split == VALIDATION].min()
    assert time[split == VALIDATION].max() < cuts["test"] == time[split == TEST].min()
    held, tenth = (split == TEST).sum(), (len(times) + 5) // 10
    moments = np.unique(time)[2:]
    assert abs(held - tenth) == min(abs((time >= cut).sum() - tenth) for cut in moments)  # no cut is nearer


def test_chronological_needs_three_moments():
    with pytest.raises(UserError, match="2 distinct times"):
        splits.chronological_cuts(np.array([1, 2]), np.array([2, 2]))


def _checksum(rows, seed=0, split=None):
    events = _sorted(rows, seed)
    offsets = events.offsets(6)
    split = splits.per_user_time(offsets) if split is None else split
    users, items = pl.Series([f"u{u}" for u in range(6)]), pl.Series([f"i{i}" for i in range(8)])
    return splits.split_checksum(users, items, offsets, events.item, events.time, split)


def test_checksum_sees_order_items_times_and_splits_but_not_the_file(monkeypatch):
    rows = [(user, (3 * user + n) % 8, n // 4) for user in range(6) for n in range(8)]
    known = _checksum(rows)
    assert _checksum(rows[::-1]) == known
    assert _checksum(rows, seed=1) != known  # another tie-break
    assert _checksum([(0, 7, 0), *rows[1:]]) != known
    assert _checksum([*rows[:-1], (5, rows[-1][1], 9)]) != known
    split = np.zeros(len(rows), np.uint8)
    assert _checksum(rows, split=split) != known
    monkeypatch.setattr(splits, "_CHECKSUM_ROWS", 5)  # the blocks of the digest are no part of it
    assert _checksum(rows) == known


def test_checksum_does_not_see_the_codes():
    rows = [(user, (user + n) % 8, n) for user in range(6) for n in range(8)]
    events, users, items = _sorted(rows), pl.Series([f"u{u}" for u in range(6)]), pl.Series([f"i{i}" for i in range(8)])
    known = splits.split_checksum(users, items, events.offsets(6), events.item, events.time, np.zeros(48, np.uint8))
    renamed = dataclasses.replace(events, item=(7 - events.item).astype(np.int32))
    moved = np.concatenate([np.arange(u * 8, u * 8 + 8) for u in (5, 4, 3, 2, 1, 0)])
    renamed = dataclasses.replace(renamed.take(moved), user=events.user)
    again = splits.split_checksum(
        users.reverse(), items.reverse(), events.offsets(6), renamed.item, renamed.time, np.zeros(48, np.uint8)
    )
    assert again == known


def test_shuffled_order_says_nothing_and_is_its_own():
    ids = pl.Series([f"{n:04d}" for n in range(2000)])
    order = shuffled(ids, 0, "item")
    assert sorted(order) == ids.to_list() and shuffled(ids.reverse(), 0, "item").equals(order)
    rank = order.cast(pl.Int64).to_numpy()
    assert abs(np.corrcoef(rank, np.arange(2000))[0, 1]) < 0.08
    assert not shuffled(ids, 1, "item").equals(order) and not shuffled(ids, 0, "user").equals(order)
    some = ids.filter(pl.Series(np.arange(2000) % 3 == 0))  # fewer items keep their mutual order
    assert shuffled(some, 0, "item").to_list() == [i for i in order if int(i) % 3 == 0]
