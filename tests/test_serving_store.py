"""What is kept: the same behaviour over SQLite and Redis, many writes in a commit, a store that is away or broken."""

import sqlite3
import threading
import time

import fakeredis
import pytest

from hisam_jax.errors import UserError
from hisam_jax.serving.redis_store import RedisStore
from hisam_jax.serving.sqlite_store import SQLiteStore
from hisam_jax.serving.store import Event, KeyReused, Once, StoreAway, Stored, open_store

SOME = [Event("a", 3, 10), Event("b/é", 0, 0), Event("a", 10, 2**39)]


@pytest.fixture(params=["sqlite", "redis"])
def store(request, tmp_path):
    server = fakeredis.FakeServer()
    made = SQLiteStore(tmp_path / "x" / "store") if request.param == "sqlite" else None
    made = made or RedisStore("redis://nowhere", fakeredis.FakeRedis(server=server))
    yield made
    made.close()


def test_events_come_back_in_order_from_any_position(store):
    assert store.add_events("u", SOME).result() == 3
    assert store.add_events("u", SOME[:1]).result() == 4
    assert store.add_events("v", SOME[:2]).result() == 2
    assert store.events({"u": 0, "v": 1, "w": 0}) == {"u": [*SOME, SOME[0]], "v": SOME[1:2]}
    assert store.events({"u": 4}) == {}
    assert store.latest("u", 2) == (2, [SOME[2], SOME[0]])
    assert store.latest("u", 9) == (0, [*SOME, SOME[0]])
    assert store.latest("w", 9) == (0, [])
    assert sorted(store.seen("u")) == ["a", "b/é"] and store.seen("w") == []


def test_states_are_replaced_and_dropped(store):
    assert store.state("u") is None
    store.save_states({"u": Stored(b"\x00\nfirst", 1, 10), "v": Stored(b"v", 0, 0)}).result()
    store.save_states({"u": Stored(b"\x00\nsecond", 2, 20)}).result()
    assert store.state("u") == Stored(b"\x00\nsecond", 2, 20) and store.state("v") == Stored(b"v", 0, 0)
    store.drop_state("u")
    store.add_events("u", SOME).result()  # writes come one after the other
    assert store.state("u") is None and store.alive()


def test_items_stay_in_the_order_in_which_they_came(store):
    for item, record in (("b", "1"), ("a", "2"), ("b", "3")):
        store.add_item(item, record).result()
    assert store.items() == [("b", "3"), ("a", "2")]


def test_writers_of_one_user_never_take_the_same_place(store):
    def write(name):
        for _ in range(20):
            store.add_events("u", [Event(name, 0, 0)] * 2).result()

    threads = [threading.Thread(target=write, args=(f"t{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, events = store.latest("u", 1000)
    assert first == 0 and len(events) == 320
    assert all(events[n].item == events[n + 1].item for n in range(0, 320, 2))


def test_the_same_key_again_adds_nothing_and_is_told_the_same(store):
    store.add_events("u", SOME).result()
    assert store.add_events_once("u", SOME[:2], "k", "x").result() == Once(5, True)
    store.add_events("u", SOME).result()
    assert store.add_events_once("u", SOME[:2], "k", "x").result() == Once(5, False)
    assert store.add_events_once("v", SOME[:2], "k", "x").result() == Once(2, True)
    others = [store.add_events("w", SOME[:1]) for _ in range(5)]
    reused = store.add_events_once("u", SOME[:1], "k", "y")
    others += [store.add_events("w", SOME[:1]) for _ in range(5)]
    with pytest.raises(KeyReused, match="'k'"):
        reused.result()
    assert [future.result() for future in others] == list(range(1, 11))
    assert store.latest("u", 100)[1] == [*SOME, *SOME[:2], *SOME]


def test_of_many_at_once_with_one_key_one_adds(store):
    futures = []
    threads = [
        threading.Thread(target=lambda: futures.append(store.add_events_once("u", SOME, "k", "x"))) for _ in range(9)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = [future.result() for future in futures]
    assert {once.events for once in told} == {3} and sum(once.added for once in told) == 1
    assert len(store.latest("u", 100)[1]) == 3


def test_keys_are_bounded_in_number(store):
    store.most_keys = 3
    for n in range(6):
        assert store.add_events_once("u", SOME[:1], f"k{n}", "x").result() == Once(n + 1, True)
    for n in (5, 4, 3):
        assert store.add_events_once("u", SOME[:1], f"k{n}", "x").result() == Once(n + 1, False)
    assert store.add_events_once("u", SOME[:1], "k2", "x").result() == Once(7, True)
    if isinstance(store, SQLiteStore):
        assert store._read("SELECT count(*) FROM keys", ()) == [(3,)]
    else:
        assert len(store._client.keys("hisam:key:*")) == store._client.llen("hisam:keys") == 3


def test_keys_are_forgotten_after_a_while(store):
    store.key_seconds = 1
    assert store.add_events_once("u", SOME[:1], "k", "x").result() == Once(1, True)
    time.sleep(1.5)
    assert store.add_events_once("u", SOME[:1], "k", "other").result() == Once(2, True)


def test_keys_outlive_the_store_and_hold_for_services_side_by_side(tmp_path):
    server = fakeredis.FakeServer()
    for opened in (
        lambda: SQLiteStore(tmp_path / "store"),
        lambda: RedisStore("redis://nowhere", fakeredis.FakeRedis(server=server)),
    ):
        first, second = opened(), opened()
        futures = [s.add_events_once("u", SOME, f"k{n}", "x") for n in range(40) for s in (first, second)]
        told = [future.result() for future in futures]
        assert all(a.events == b.events and a.added + b.added == 1 for a, b in zip(told[::2], told[1::2], strict=True))
        assert len(first.latest("u", 1000)[1]) == 120
        first.close()
        second.close()
        third = opened()
        assert third.add_events_once("u", SOME, "k7", "x").result() == Once(told[14].events, False)
        third.close()


def test_what_was_acknowledged_is_there_for_another_connection(tmp_path):
    store = open_store(f"sqlite:{tmp_path / 'store'}")
    store.add_events("u", SOME).result()
    other = sqlite3.connect(tmp_path / "store")
    assert other.execute("SELECT count(*) FROM events").fetchone() == (3,)
    assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    store.close()


def test_many_writes_share_a_commit(tmp_path, monkeypatch):
    store, sizes, gate = SQLiteStore(tmp_path / "store"), [], threading.Event()
    commit = store._commit
    monkeypatch.setattr(store, "_commit", lambda work: (gate.wait(), sizes.append(len(work)), commit(work))[2])
    futures = [store.add_events(f"u{n}", SOME) for n in range(50)]
    gate.set()
    assert [future.result() for future in futures] == [3] * 50
    assert len(sizes) <= 3 and sum(sizes) == 50
    store.close()


def test_a_write_that_fails_is_told_and_the_next_one_works(tmp_path):
    store = SQLiteStore(tmp_path / "store")
    with pytest.raises(StoreAway):
        store.add_events("u", [Event("a", object(), 0)]).result()
    assert store.add_events("u", SOME).result() == 3
    store.close()


def test_redis_that_is_away_says_so_and_comes_back(monkeypatch):
    server = fakeredis.FakeServer()
    store = RedisStore("redis://nowhere", fakeredis.FakeRedis(server=server))
    monkeypatch.setattr("hisam_jax.serving.redis_store.PAUSE", 0.0)
    store.add_events("u", SOME).result()
    server.connected = False
    with pytest.raises(StoreAway):
        store.events({"u": 0})
    with pytest.raises(StoreAway):
        store.add_events("u", SOME).result()
    assert not store.alive()
    server.connected = True
    assert store.events({"u": 0}) == {"u": SOME} and store.add_events("u", SOME).result() == 6
    store.close()


def test_redis_that_is_away_is_left_alone_for_a_moment(monkeypatch):
    server = fakeredis.FakeServer()
    store = RedisStore("redis://nowhere", fakeredis.FakeRedis(server=server))
    server.connected = False
    assert not store.alive()
    server.connected = True
    assert not store.alive()
    store._away_until = 0.0
    assert store.alive()
    store.close()


def test_what_is_no_store_is_one_line(tmp_path):
    (tmp_path / "text").write_text("not a database, and long enough to be looked at " * 100)
    for url, word in (
        (str(tmp_path / "text"), "not a database"),
        ("ftp://host/x", "redis://"),
        (str(tmp_path), "store"),
    ):
        with pytest.raises(UserError, match=word):
            open_store(url)
