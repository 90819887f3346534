"""The store in Redis: a list of events and a string of state a user. Away, it says so at once and is tried again."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import redis

from hisam_jax.errors import UserError
from hisam_jax.files import sha256_of
from hisam_jax.serving.store import Event, KeyReused, Once, Store, StoreAway, Stored, told

T = TypeVar("T")
PATIENCE = 0.5  # seconds for an answer
PAUSE = 1.0  # seconds that an unreachable server is left alone, so that requests do not all wait for it
KEYS = "hisam:keys"  # names of keys, oldest first
AWAY = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError)


class RedisStore(Store):
    """Events, states and items in a Redis database.

    A write is acknowledged once Redis has answered it. What a crash of Redis or of its machine may lose is Redis's
    setting: nothing with `appendonly yes` and `appendfsync always`, about the last two seconds with `everysec`,
    what is newer than the last snapshot without `appendonly`. `weakness` tells which it is.

    Args:
        url: `redis://HOST:PORT/DB`; the server may come later.
        client: a connected client in its place.
    """

    def __init__(self, url: str, client: Any = None):
        try:
            self._client = client or redis.Redis.from_url(
                url, socket_timeout=PATIENCE, socket_connect_timeout=PATIENCE, retry=None
            )
        except ValueError as error:
            raise UserError(f"{url!r} ({error})", field="store", expected="redis://HOST:PORT/DB") from error
        self._away_until = 0.0
        super().__init__()

    def events(self, wanted: Mapping[str, int]) -> dict[str, list[Event]]:
        def ask(client: Any) -> list[list[bytes]]:
            pipe = client.pipeline(transaction=False)
            for user, start in wanted.items():
                pipe.lrange(_events(user), start, -1)
            return pipe.execute()

        found = zip(wanted, self._call(ask), strict=True)
        return {user: [_event(row) for row in rows] for user, rows in found if rows}

    def latest(self, user: str, most: int) -> tuple[int, list[Event]]:
        def ask(client: Any) -> tuple[int, list[bytes]]:
            pipe = client.pipeline(transaction=True)
            return tuple(pipe.llen(_events(user)).lrange(_events(user), -most, -1).execute())

        length, rows = self._call(ask)
        return length - len(rows), [_event(row) for row in rows]

    def seen(self, user: str) -> list[str]:
        rows = self._call(lambda client: client.lrange(_events(user), 0, -1))
        return list({_event(row).item for row in rows})

    def state(self, user: str) -> Stored | None:
        data = self._call(lambda client: client.get(_state(user)))
        if data is None:
            return None
        try:
            head, _, state = data.partition(b"\n")
            covered, moment = map(int, head.split())
        except ValueError:
            return Stored(data, 0, 0)  # unreadable, which its reader finds out
        return Stored(state, covered, moment)

    def drop_state(self, user: str) -> None:
        self._write(lambda client: client.delete(_state(user)))

    def items(self) -> list[tuple[str, str]]:
        def ask(client: Any) -> tuple[list[bytes], dict[bytes, bytes]]:
            pipe = client.pipeline(transaction=True)
            return tuple(pipe.lrange("hisam:items", 0, -1).hgetall("hisam:item").execute())

        names, records = self._call(ask)
        return [(name.decode(), records[name].decode()) for name in names]

    def alive(self) -> bool:
        try:
            return bool(self._call(lambda client: client.ping()))
        except StoreAway:
            return False

    def weakness(self) -> str | None:
        try:
            said = self._call(lambda client: client.config_get("append*"))
        except (StoreAway, redis.exceptions.RedisError):
            return None  # away, or a server that does not tell
        wanted = {"appendonly": "yes", "appendfsync": "always"}
        other = next((name for name, value in wanted.items() if said.get(name, value) != value), None)
        if other is None:
            return None
        return f"Redis has {other} {said[other]}: its crash may lose acknowledged events; expected {wanted[other]}"

    def _call(self, work: Callable[[Any], T]) -> T:
        if time.monotonic() < self._away_until:
            raise StoreAway("Redis did not answer a moment ago")
        try:
            return work(self._client)
        except AWAY as error:
            self._away_until = time.monotonic() + PAUSE
            raise StoreAway(str(error)) from error

    def _commit(self, work: Sequence[Callable[[Any], Any]]) -> list[Any]:
        return [self._one(call) for call in work]

    def _one(self, call: Callable[[Any], Any]) -> Any:
        try:
            return self._call(call)
        except (StoreAway, redis.exceptions.RedisError) as error:
            return error if isinstance(error, StoreAway) else StoreAway(str(error))

    def _add_events(self, handle: Any, user: str, events: Sequence[Event]) -> int:
        return handle.rpush(_events(user), *(json.dumps(event) for event in events))

    def _add_once(self, handle: Any, user: str, events: Sequence[Event], key: str, content: str) -> Once | KeyReused:
        name, rows = _key(user, key), [json.dumps(event) for event in events]
        with handle.pipeline(transaction=True) as pipe:
            while True:  # until no other service has written to this user in between
                try:
                    pipe.watch(name, _events(user))
                    if (before := pipe.get(name)) is not None:
                        return told(tuple(json.loads(before)), content, key)
                    count = pipe.llen(_events(user)) + len(rows)
                    pipe.multi()
                    pipe.rpush(_events(user), *rows)
                    pipe.set(name, json.dumps([content, count]), ex=self.key_seconds)
                    pipe.rpush(KEYS, name)
                    known = pipe.execute()[-1]
                except redis.exceptions.WatchError:
                    continue
                self._forget(handle, known - self.most_keys)
                return Once(count, True)

    def _forget(self, handle: Any, count: int) -> None:
        """The oldest keys; the request is kept already, so a failure here is none of its."""
        with contextlib.suppress(redis.exceptions.RedisError):
            if count > 0 and (old := handle.lpop(KEYS, count)):
                handle.delete(*old)

    def _save_states(self, handle: Any, states: Mapping[str, Stored]) -> None:
        handle.mset({_state(user): b"%d %d\n" % (s.covered, s.time) + s.state for user, s in states.items()})

    def _add_item(self, handle: Any, item_id: str, record: str) -> None:
        pipe = handle.pipeline(transaction=True)
        if not handle.hexists("hisam:item", item_id):
            pipe.rpush("hisam:items", item_id)
        pipe.hset("hisam:item", item_id, record).execute()


def _events(user: str) -> str:
    return f"hisam:events:{user}"


def _key(user: str, key: str) -> str:
    return f"hisam:key:{sha256_of(user, key)}"


def _state(user: str) -> str:
    return f"hisam:state:{user}"


def _event(row: bytes) -> Event:
    return Event(*json.loads(row))
