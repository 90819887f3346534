"""Users' states: dropped for room and made again, broken, of another release, and a store that goes away."""

import asyncio
import dataclasses
import sqlite3

import fakeredis
import numpy as np
import pytest

from hisam_jax.serving.past import log_hours
from hisam_jax.serving.redis_store import RedisStore
from hisam_jax.serving.service import Service
from tests.serving_fixtures import LIMITS, Warm, run_async, serving, tiny_run


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("serving")
    tiny_run(root)
    return root


@pytest.fixture(scope="module")
def warm():
    return Warm()


async def send(client, user, item, place):
    events = [{"item": f"i{item}", "rating": 1 + item % 5, "time": 10**9 + 5000 * place}]
    assert (await client.post(f"/users/{user}/events", json={"events": events})).status_code == 201


async def lists(client, user):
    out = []
    for way in ("retrieval", "generation", "hybrid"):
        answer = (await client.post("/recommend", json={"user": user, "way": way})).json()
        out.append(answer["items"])
    return out


def same(first, second):
    for a, b in zip(first, second, strict=True):
        assert [one["item"] for one in a] == [one["item"] for one in b]
        np.testing.assert_allclose([one["score"] for one in a], [one["score"] for one in b], atol=2e-4)


def of_metrics(service: Service, source: str) -> float:
    return service.metrics.states.labels(source)._value.get()


@pytest.mark.slow
def test_states_dropped_for_room_come_back_as_they_were(root, warm, tmp_path):
    users = [f"u{n}" for n in range(6)] + ["new", "newer"]  # of the dataset, and of nowhere

    async def live(limits, store):
        async with serving(warm, root / "run", store, limits) as (client, service):
            rng, found = np.random.default_rng(0), {}
            for place in range(20):  # more than a window of 8, and than two layers see
                for user in users:
                    await send(client, user, int(rng.integers(50)), place)
                    found[user, place] = await lists(client, user)
            evictions = service.metrics.evictions._value.get()
            assert len(service.now.users) <= max(4, limits.users)
            assert (evictions > 0) == (limits.users < len(users))
            return found

    async def both():
        undisturbed = await live(LIMITS, tmp_path / "a")
        crowded = await live(dataclasses.replace(LIMITS, users=1), tmp_path / "b")
        for key, found in undisturbed.items():
            same(found, crowded[key])

    run_async(both())


def test_after_a_restart_states_are_those_of_the_store_or_of_the_events(root, warm, tmp_path):
    async def check():
        async with serving(warm, root / "run", tmp_path / "store") as (client, service):
            for place in range(12):
                await send(client, "new", 3 * place, place)
                if place != 11:
                    await lists(client, "new")
            before = await lists(client, "new")
        async with serving(warm, root / "run", tmp_path / "store") as (client, service):
            same(await lists(client, "new"), before)
            assert of_metrics(service, "store") == 1
        with sqlite3.connect(tmp_path / "store") as connection:
            connection.execute("DELETE FROM states")
        async with serving(warm, root / "run", tmp_path / "store") as (client, service):
            same(await lists(client, "new"), before)
            assert of_metrics(service, "events") == 1 and not of_metrics(service, "store")

    run_async(check())


@pytest.mark.parametrize("broken", [b"", b"HSMS\x01 nonsense that is long enough", "cut", "flipped", "another"])
def test_a_state_that_is_broken_is_dropped_and_made_again(root, warm, tmp_path, broken):
    async def check():
        async with serving(warm, root / "run", tmp_path / "store") as (client, service):
            for place in range(5):
                await send(client, "new", 7 * place, place)
            before = await lists(client, "new")
        with sqlite3.connect(tmp_path / "store") as connection:
            (whole,) = connection.execute("SELECT state FROM states").fetchone()
            other = {"cut": whole[:-9], "flipped": whole[:-9] + b"x" + whole[-8:]}
            other["another"] = whole.replace(b'"release": "', b'"release": "x')
            connection.execute("UPDATE states SET state = ?", (other.get(broken, broken),))
        async with serving(warm, root / "run", tmp_path / "store") as (client, service):
            same(await lists(client, "new"), before)
            assert of_metrics(service, "broken") == 1

    run_async(check())


def test_redis_away_is_degraded_and_not_dead(root, warm, tmp_path, monkeypatch):
    monkeypatch.setattr("hisam_jax.serving.redis_store.PAUSE", 0.0)
    server = fakeredis.FakeServer()
    opened = RedisStore("redis://nowhere", fakeredis.FakeRedis(server=server))
    monkeypatch.setattr("tests.serving_fixtures.open_store", lambda url: opened)

    async def check():
        async with serving(warm, root / "run", "redis://nowhere") as (client, service):
            await send(client, "a", 1, 0)
            before = await lists(client, "a")
            server.connected = False
            assert (await client.get("/health")).json()["status"] == "degraded"
            answer = await client.post("/users/a/events", json={"events": [{"item": "i5"}]})
            assert answer.status_code == 503 and answer.headers["retry-after"]
            same(await lists(client, "a"), before)
            for user in ("a", "u3", "nobody"):
                answer = await client.post("/recommend", json={"user": user})
                assert answer.status_code == 200 and answer.json()["degraded"]
            server.connected = True
            await send(client, "a", 5, 1)
            await send(client, "u3", 6, 0)
            assert await lists(client, "a") != before
            answer = (await client.post("/recommend", json={"user": "u3", "k": 10})).json()
            assert not answer["degraded"] and "i6" not in [one["item"] for one in answer["items"]]

    run_async(check())


def test_added_items_outlive_the_service(root, warm, tmp_path):
    async def check():
        async with serving(warm, root / "run", tmp_path / "store") as (client, service):
            codes = {}
            for n in range(3):
                answer = await client.post("/items", json={"item": f"new{n}", "title": f"New {n}", "like": f"i{n}"})
                codes[f"new{n}"] = answer.json()["codes"]
            await client.delete("/items/new1")
            await client.delete("/items/i7")
            answer = await client.post("/users/a/events", json={"events": [{"item": "new0", "time": 5}]})
            before = await lists(client, "a")
            full = await client.post("/items", json={"item": "i7"})
            assert full.status_code == 201
            await client.delete("/items/i7")
        async with serving(warm, root / "run", tmp_path / "store") as (client, service):
            for item, wanted in codes.items():
                found = await client.get(f"/items/{item}")
                assert found.status_code == 404 if item == "new1" else found.json()["codes"] == wanted
            assert (await client.get("/items/i7")).status_code == 404
            same(await lists(client, "a"), before)
            answers = [await client.post("/items", json={"item": f"more{n}", "like": "i1"}) for n in range(6)]
            assert [answer.status_code for answer in answers] == [201] * 5 + [409]
            assert "room" in answers[-1].json()["error"]

    run_async(check())


def test_a_batch_of_many_users_is_each_on_its_own(root, warm, tmp_path):
    async def check():
        async with serving(warm, root / "run", tmp_path / "store") as (client, service):
            users = [f"u{n}" for n in range(12)] + [f"new{n}" for n in range(4)]
            for n, user in enumerate(users[6:]):
                await send(client, user, n, 0)
            alone = [await lists(client, user) for user in users]
        async with serving(warm, root / "run", tmp_path / "store") as (client, service):
            together = await asyncio.gather(*(lists(client, user) for user in users))
            for a, b in zip(alone, together, strict=True):
                same(a, b)
            assert service.metrics.batch._sum.get() / service.metrics.model._sum.get() > 0

    run_async(check())


def test_events_sent_again_with_their_key_are_kept_once(root, warm, tmp_path):
    async def post(client, body, key="k"):
        return await client.post("/users/new/events", json={"events": body}, headers={"idempotency-key": key})

    async def check():
        body = [{"item": "i1"}, {"item": "i2", "rating": 3}]
        async with serving(warm, root / "run", tmp_path / "store") as (client, service):
            first = await post(client, body)
            assert first.status_code == 201 and first.json() == {"user": "new", "events": 2}
            await send(client, "new", 5, 0)
            many = await asyncio.gather(*(post(client, body) for _ in range(8)))
            assert all((one.status_code, one.content) == (201, first.content) for one in many)
            other = await post(client, body[:1])
            assert other.status_code == 422 and "'k'" in other.json()["error"]
            assert (await post(client, body[:1], "l")).json()["events"] == 4
            assert (await post(client, body, "l" * 201)).status_code == 422
            assert service.metrics.events._value.get() == 4
        async with serving(warm, root / "run", tmp_path / "store") as (client, service):
            assert (await post(client, body)).content == first.content
            assert (await client.get("/users/new")).json()["events"] == 4

    run_async(check())


def test_what_was_seen_never_comes_back_however_long_ago(root, warm, tmp_path):
    """2,000 events: 40 items once, then five of them over and over; far more than a state holds."""
    events = [{"item": f"i{n if n < 40 else 40 + n % 5}"} for n in range(2000)]
    limits = dataclasses.replace(LIMITS, history=500, body=100_000)

    async def unseen_only(client, service):
        programs = service.now.release.engine.compiled()
        for way in ("retrieval", "generation", "hybrid"):
            for hide in ([], ["i49"]):
                answer = await client.post("/recommend", json={"user": "new", "way": way, "hide": hide})
                left = {f"i{n}" for n in range(45, 50)} - set(hide)
                assert {one["item"] for one in answer.json()["items"]} == left
        assert service.now.release.engine.compiled() == programs

    async def check():
        async with serving(warm, root / "run", tmp_path / "store", limits) as (client, service):
            for start in range(0, 2000, 500):
                body = {"events": events[start : start + 500]}
                assert (await client.post("/users/new/events", json=body)).status_code == 201
                if start == 500:
                    await lists(client, "new")  # from here on in memory
            await unseen_only(client, service)
        async with serving(warm, root / "run", tmp_path / "store", limits) as (client, service):
            await unseen_only(client, service)
            assert of_metrics(service, "store") == 1
        with sqlite3.connect(tmp_path / "store") as connection:
            connection.execute("DELETE FROM states")
        async with serving(warm, root / "run", tmp_path / "store", limits) as (client, service):
            await unseen_only(client, service)
            assert of_metrics(service, "events") == 1
            answer = await client.post("/recommend", json={"user": "new", "repeat": True})
            assert len(answer.json()["items"]) == 10

    run_async(check())


def test_gaps_are_those_of_training():
    assert log_hours(0, 10**9) == 0 and log_hours(10**9, 0) == 0 and log_hours(10**9, 10**9 - 5) == 0
    assert log_hours(10**9, 10**9 + 7200) == pytest.approx(np.log1p(2.0))
