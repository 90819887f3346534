"""The heart of a service: the release that answers, the batches that it answers in, the store."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hisam_jax.errors import UserError
from hisam_jax.serving.answers import Answer, Ask, answer_all
from hisam_jax.serving.batching import Batcher
from hisam_jax.serving.catalogue import Added
from hisam_jax.serving.errors import Refusal, busy, unknown_item
from hisam_jax.serving.explaining import Because, Why
from hisam_jax.serving.limits import Limits
from hisam_jax.serving.metrics import Metrics
from hisam_jax.serving.release import Release
from hisam_jax.serving.store import Event, KeyReused, Store, StoreAway
from hisam_jax.serving.users import Users

_log = logging.getLogger(__name__)
LATEST = 20  # events of a user that are shown
AWAY = "the store cannot be reached: nothing was kept"


@dataclasses.dataclass(frozen=True)
class Serving:
    """A release with its users' states."""

    release: Release
    users: Users


class Core:
    """Starts, answers, keeps events, stops.

    Args:
        load: a run's folder -> a release, not yet warm.
        workdir: of the first release.
        store: of events, states and items.
        limits: of requests and memory.
        root: folder under which new releases may lie; None: that of `workdir`.
    """

    def __init__(
        self, load: Callable[[str | os.PathLike], Release], workdir: str | os.PathLike, store: Store, limits: Limits,
        root: str | os.PathLike | None = None,
    ):  # fmt: skip
        self._load, self.store, self.limits = load, store, limits
        self._first, self.root = workdir, Path(root or Path(workdir).absolute().parent).resolve()
        self.metrics = Metrics()
        self.now: Serving | None = None
        self.before: Serving | None = None
        self.failure: BaseException | None = None
        self.given_up: Callable[[], None] = lambda: None
        self.prepared_one: Callable[[], None] = lambda: None
        self.batcher: Batcher | None = None
        self.changing = asyncio.Lock()
        self._starting: asyncio.Task | None = None
        self.metrics.watch("waiting", "Requests that wait for the model.", lambda: self.waiting)
        self.metrics.watch("states_in_memory", "User states.", lambda: len(self.now.users) if self.now else 0)

    @property
    def waiting(self) -> int:
        """Requests that wait for the model."""
        return self.batcher.waiting if self.batcher else 0

    async def start(self) -> None:
        """Loads and compiles the first release in the background; `ready` once it is done."""
        self._starting = asyncio.create_task(self._start())

    async def ready(self) -> None:
        """Waits for the first release.

        Raises:
            UserError: it cannot be loaded.
        """
        await asyncio.shield(self._starting)

    async def stop(self) -> None:
        """Answers what is being worked on, stores states, ends."""
        if self._starting:
            self._starting.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await self._starting
        if self.batcher:
            await self.batcher.stop()
        if self.now:
            self.now.users.flush()
        await asyncio.to_thread(self.store.close)

    def expect(self, ahead: int, deadline: float) -> None:
        """Refuses a request that would wait for the model past its deadline in seconds, see `Batcher.expect`."""
        if self.batcher:
            self.batcher.expect(ahead, deadline)

    async def ask(self, ask: Ask, deadline: float) -> Answer:
        """Recommendations or scores."""
        self.serving()
        return await self.batcher.submit(ask, min(deadline, self.limits.deadline))

    async def add_events(self, user: str, events: Sequence[Event], key: str | None = None, content: str = "") -> int:
        """Keeps events; how many of the user's there are then. Returned is what will not be lost.

        Args:
            key: of the request; the same again adds nothing and returns the same.
            content: a digest of the request.

        Raises:
            Refusal: an unknown item, a key that was another request's, the store is away.
        """
        row = self.serving().release.names.row
        for event in events:
            if event.item not in row:
                raise unknown_item(event.item)
        if key is None:
            count, added = await self.kept(self.store.add_events(user, events)), True
        else:
            count, added = await self.kept(self.store.add_events_once(user, events, key, content))
        self.metrics.events.inc(len(events) if added else 0)
        return count

    async def user(self, user: str) -> tuple[int, list[str]]:
        """`(events that are kept, items of the latest)` of a user.

        Raises:
            Refusal: nothing is known of the user, or the store is away.
        """
        release = self.serving().release
        try:
            first, events = await asyncio.to_thread(self.store.latest, user, LATEST)
        except StoreAway as error:
            raise busy(f"the store cannot be reached ({error})") from error
        if not events and not release.knows(user):
            raise Refusal(404, f"no user {user!r}")
        return first + len(events), [event.item for event in events]

    async def store_alive(self) -> bool:
        """Whether the store answers."""
        return await asyncio.to_thread(self.store.alive)

    def serving(self) -> Serving:
        """The release that answers.

        Raises:
            Refusal: none yet.
        """
        if self.now is None:
            raise busy(f"not ready: {self.failure or 'loading and compiling'}", 5)
        return self.now

    async def _start(self) -> None:
        try:
            release = await asyncio.to_thread(self.prepared, self._first)
        except Exception as error:
            self.failure = error
            self.given_up()
            raise
        if weakness := await asyncio.to_thread(self.store.weakness):
            _log.warning("%s", weakness)
        rows = release.engine.config.rows[-1]
        self.batcher = Batcher(self._answer, rows, self.limits.wait, self.limits.queue)
        self.batcher.start()
        self.now = Serving(release, self.users_of(release))

    def prepared(self, path: str | os.PathLike) -> Release:
        release = self._load(path)
        self.restock(release)
        release.warm_up()
        self.prepared_one()
        return release

    def restock(self, release: Release) -> None:
        """Items that were added or removed while this release did not serve."""
        try:
            kept = [Added(**json.loads(record)) for _, record in self.store.items()]
        except StoreAway:
            _log.warning("the store cannot be reached: added items are left out until it is")
            return
        for item in kept:
            try:
                row = release.names.row.get(item.item_id)
                if row is None:
                    release.stock.add(item) if item.features or item.codes else None
                elif release.stock.servable(row) == item.removed:
                    release.stock.remove(item.item_id) if item.removed else release.stock.add(item)
            except UserError as error:
                _log.warning("item %r is left out: %s", item.item_id, error)

    def users_of(self, release: Release) -> Users:
        return Users(release, self.store, max(self.limits.users, release.engine.config.rows[-1]), self.metrics)

    def _answer(self, asks: Sequence[Ask | Why]) -> list[Answer | Because | Exception]:
        start, serving = time.perf_counter(), self.now
        out = answer_all(serving.release, serving.users, asks)
        self.metrics.batch.observe(len(asks))
        self.metrics.model.observe(time.perf_counter() - start)
        return out

    async def kept(self, future: Any) -> Any:
        try:
            return await asyncio.wrap_future(future)
        except StoreAway as error:
            raise busy(f"{AWAY} ({error})") from error
        except KeyReused as error:
            raise Refusal(422, str(error)) from error
