"""What a service must not lose: events, packed user states, added items. One interface, `open_store` by URL."""

from __future__ import annotations

import abc
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from hisam_jax.errors import UserError

MOST = 256  # writes of one commit


class Event(NamedTuple):
    """An item that a user met; `action` as models read it, 0 unknown; `time` in seconds since 1970, 0 unknown."""

    item: str
    action: int
    time: int


class Stored(NamedTuple):
    """A packed user state, the number of the user's stored events that it holds, and the time of the last."""

    state: bytes
    covered: int
    time: int


class Once(NamedTuple):
    """How many events of a user there were after a request, and whether this call added its own."""

    events: int
    added: bool


class KeyReused(Exception):
    """A request's key was that of another request before."""


class StoreAway(Exception):
    """The store cannot be reached: what is in memory can still be served."""


class Store(abc.ABC):
    """Writes go through one thread that commits all that wait together; what a future returns is kept.

    Attributes:
        most_keys, key_seconds: how many keys of requests are remembered, and for how long.
    """

    most_keys = 100_000
    key_seconds = 86_400

    def __init__(self):
        self._waiting: queue.SimpleQueue[tuple[Callable[[Any], Any], Future] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="store", daemon=True)
        self._thread.start()

    def add_events(self, user: str, events: Sequence[Event]) -> Future[int]:
        """Appends events to a user's; how many there are then."""
        return self._write(lambda handle: self._add_events(handle, user, events))

    def add_events_once(self, user: str, events: Sequence[Event], key: str, content: str) -> Future[Once]:
        """The same, unless a request of this user with this key did so before: then what that one was told.

        Events and key are kept together or not at all. The future raises `KeyReused` where `content`, a digest of the
        request, is another than that one's.
        """
        return self._write(lambda handle: self._add_once(handle, user, events, key, content))

    def weakness(self) -> str | None:
        """By which setting of the store an acknowledged write may be lost; None: none is known."""
        return None

    def save_states(self, states: Mapping[str, Stored]) -> Future[None]:
        """Keeps states; each takes the place of the user's earlier one."""
        return self._write(lambda handle: self._save_states(handle, states))

    def add_item(self, item_id: str, record: str) -> Future[None]:
        """Keeps an added item, a JSON text; takes the place of an earlier one of this id."""
        return self._write(lambda handle: self._add_item(handle, item_id, record))

    @abc.abstractmethod
    def events(self, wanted: Mapping[str, int]) -> dict[str, list[Event]]:
        """Of each user, oldest first, the events from a position on; users without any are left out."""

    @abc.abstractmethod
    def latest(self, user: str, most: int) -> tuple[int, list[Event]]:
        """`(position of the first, the latest events)`, oldest first."""

    @abc.abstractmethod
    def seen(self, user: str) -> list[str]:
        """The items of all of a user's events, each once, in no order."""

    @abc.abstractmethod
    def state(self, user: str) -> Stored | None:
        """The state that was kept last."""

    @abc.abstractmethod
    def drop_state(self, user: str) -> None:
        """Forgets a state that cannot be read."""

    @abc.abstractmethod
    def items(self) -> list[tuple[str, str]]:
        """`(item id, record)` of added items, in the order in which they came."""

    @abc.abstractmethod
    def alive(self) -> bool:
        """Whether it answers."""

    def close(self) -> None:
        """Writes what waits and ends."""
        self._waiting.put(None)
        self._thread.join()

    def _write(self, work: Callable[[Any], Any]) -> Future:
        future: Future = Future()
        self._waiting.put((work, future))
        return future

    def _write_all(self) -> None:
        going = True
        while going:
            batch = [self._waiting.get()]
            while len(batch) < MOST and not self._waiting.empty():
                batch.append(self._waiting.get())
            going = None not in batch
            work = [one for one in batch if one is not None and one[1].set_running_or_notify_cancel()]
            if work:
                self._settle(work)

    def _settle(self, work: list[tuple[Callable[[Any], Any], Future]]) -> None:
        try:
            results = self._commit([call for call, _ in work])
        except Exception as error:
            for _, future in work:
                future.set_exception(error)
            return
        for (_, future), result in zip(work, results, strict=True):
            future.set_exception(result) if isinstance(result, Exception) else future.set_result(result)

    @abc.abstractmethod
    def _commit(self, work: Sequence[Callable[[Any], Any]]) -> list[Any]:
        """Runs writes and makes them last; a result that is an exception is that write's alone."""

    @abc.abstractmethod
    def _add_events(self, handle: Any, user: str, events: Sequence[Event]) -> int: ...

    @abc.abstractmethod
    def _add_once(
        self, handle: Any, user: str, events: Sequence[Event], key: str, content: str
    ) -> Once | KeyReused: ...

    @abc.abstractmethod
    def _save_states(self, handle: Any, states: Mapping[str, Stored]) -> None: ...

    @abc.abstractmethod
    def _add_item(self, handle: Any, item_id: str, record: str) -> None: ...


def told(before: tuple[str, int], content: str, key: str) -> Once | KeyReused:
    """What a request is answered whose key is known, with the `(content, events)` of the one before."""
    if before[0] != content:
        return KeyReused(f"key {key!r} was that of another request of this user")
    return Once(before[1], False)


def open_store(url: str) -> Store:
    """The store at `redis://HOST:PORT/DB` or in an SQLite file, a path or `sqlite:PATH`.

    Raises:
        UserError: another scheme, a file that is no database, a package that is not installed.
    """
    scheme, _, _ = url.partition("://")
    if scheme in ("redis", "rediss", "unix"):
        try:
            from hisam_jax.serving.redis_store import RedisStore
        except ImportError as error:
            raise UserError(
                "the package redis is not installed", field="store", hint="pip install 'hisam_jax[serve]'"
            ) from error
        return RedisStore(url)
    if "://" in url:
        raise UserError(f"{url!r}", field="store", expected="redis://HOST:PORT/DB or the path of an SQLite file")
    from hisam_jax.serving.sqlite_store import SQLiteStore

    return SQLiteStore(url.removeprefix("sqlite:"))
