"""A service and its store killed under load: what was acknowledged is there, once, and in order."""

import contextlib
import shutil
import socket
import sqlite3
import subprocess
import threading
import time

import httpx
import pytest
import redis

from hisam_jax.serving.redis_store import RedisStore
from hisam_jax.serving.store import Event, Once
from tests.serving_fixtures import process, tiny_run, until_ready

ALWAYS = ("--appendonly", "yes", "--appendfsync", "always")
needs_redis = pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("faults")
    tiny_run(root)
    return root / "run"


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def redis_server(folder, port, *flags):
    """A Redis of its own, killed at the end as a crash would."""
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", *flags]
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        client = redis.Redis(port=port)
        for _ in range(600):
            with contextlib.suppress(redis.exceptions.ConnectionError):
                client.ping()
                break
            time.sleep(0.05)
        yield started
    finally:
        started.kill()
        started.wait()


class Load:
    """Threads that send one event after the other, each with a key and again until it is acknowledged."""

    def __init__(self, users):
        self.address, self.kept, self.wrong = "", {user: [] for user in users}, []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(user,)) for user in users]

    def start(self, address):
        self.address = address
        for thread in self._threads:
            thread.start()

    def more(self, count):
        """Waits until every user has as many more acknowledged events."""
        want = {user: len(items) + count for user, items in self.kept.items()}
        until = time.monotonic() + 120
        while any(len(self.kept[user]) < least for user, least in want.items()):
            assert time.monotonic() < until and not self.wrong, self.wrong[:3]
            time.sleep(0.02)

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _send(self, user):
        with httpx.Client(timeout=20) as client:
            while not self._stop.is_set() and not self.wrong:
                self._one(client, user, len(self.kept[user]))

    def _one(self, client, user, n):
        body, headers = {"events": [{"item": f"i{n % 50}"}]}, {"idempotency-key": f"event {n}"}
        try:
            answer = client.post(f"{self.address}/users/{user}/events", json=body, headers=headers)
        except httpx.TransportError:
            time.sleep(0.1)
            return
        if answer.status_code == 201 and answer.json()["events"] == n + 1:
            self.kept[user].append(f"i{n % 50}")
        elif answer.status_code == 503 and "retry-after" in answer.headers:
            time.sleep(0.02)
        else:
            self.wrong.append((user, n, answer.status_code, answer.text))


def counts(address, users):
    return {user: httpx.get(f"{address}/users/{user}", timeout=20).json()["events"] for user in users}


def assert_kept(load, address, items_of):
    """Whatever was acknowledged, and at most the one event that was under way when the load ended."""
    assert not load.wrong
    for user, count in counts(address, load.kept).items():
        kept, items = load.kept[user], items_of(user)
        assert count == len(items) and items[: len(kept)] == kept and len(items) - len(kept) in (0, 1)


@pytest.mark.slow
def test_killed_in_the_middle_an_sqlite_service_keeps_each_event_once(run, tmp_path):
    load, store = Load(["a", "b", "c", "d"]), tmp_path / "store"
    try:
        with process(run, store) as (started, address):
            until_ready(address)
            load.start(address)
            load.more(10)
            started.kill()
        with process(run, store) as (started, address):
            until_ready(address)
            load.address = address
            load.more(10)
            load.stop()
            reading = sqlite3.connect(store)
            text = "SELECT item FROM events WHERE user = ? ORDER BY position"
            assert_kept(load, address, lambda user: [item for (item,) in reading.execute(text, (user,))])
    finally:
        load.stop()


@needs_redis
@pytest.mark.slow
def test_redis_and_the_service_killed_in_the_middle_keep_each_event_once(run, tmp_path, port):
    load, url = Load(["a", "b", "c", "d"]), f"redis://127.0.0.1:{port}/0"
    try:
        with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
            first.enter_context(redis_server(tmp_path, port, *ALWAYS))
            started, address = second.enter_context(process(run, url))
            until_ready(address)
            load.start(address)
            load.more(10)
            first.close()
            answer = httpx.post(f"{address}/recommend", json={"user": "nobody", "k": 3}, timeout=30)
            assert answer.status_code == 200 and answer.json()["degraded"] and len(answer.json()["items"]) == 3
            answer = httpx.post(f"{address}/users/z/events", json={"events": [{"item": "i1"}]}, timeout=30)
            assert answer.status_code == 503 and answer.headers["retry-after"]
            assert httpx.get(f"{address}/health", timeout=30).json()["status"] == "degraded"
            first.enter_context(redis_server(tmp_path, port, *ALWAYS))
            load.more(10)
            started.kill()
            second.close()
            started, address = second.enter_context(process(run, url))
            until_ready(address)
            load.address = address
            load.more(10)
            load.stop()
            store = RedisStore(url)
            assert_kept(load, address, lambda user: [event.item for event in store.latest(user, 10**6)[1]])
            store.close()
            assert httpx.get(f"{address}/health", timeout=30).json()["status"] == "ok"
    finally:
        load.stop()


@needs_redis
def test_a_real_redis_keeps_events_and_keys_over_its_crash_and_says_what_it_promises(tmp_path, port):
    events, url = [Event("a", 3, 10), Event("b", 0, 0)], f"redis://127.0.0.1:{port}/0"
    with redis_server(tmp_path, port, *ALWAYS):
        store = RedisStore(url)
        assert store.weakness() is None
        assert store.add_events_once("u", events, "k", "x").result() == Once(2, True)
        store.most_keys = 2
        for n in range(4):
            store.add_events_once("v", events, f"k{n}", "x").result()
        assert store._client.llen("hisam:keys") == 2 == len(store._client.keys("hisam:key:*"))
        store.add_events_once("u", events, "l", "x").result()
        store.close()
    with redis_server(tmp_path, port, *ALWAYS):
        store = RedisStore(url)
        assert store.latest("u", 9) == (0, [*events, *events]) and sorted(store.seen("u")) == ["a", "b"]
        assert store.add_events_once("u", events, "l", "x").result() == Once(4, False)
        store.close()
    for flags, word in ((("--appendonly", "no"), "appendonly no"), ((*ALWAYS[:2],), "appendfsync everysec")):
        with redis_server(tmp_path, port, *flags):
            store = RedisStore(url)
            assert word in store.weakness()
            store.close()
