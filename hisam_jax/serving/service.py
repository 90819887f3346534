"""What the routes call: the heart, and what changes while it beats: items that come and go, releases."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hisam_jax.errors import UserError
from hisam_jax.serving.catalogue import Added, today
from hisam_jax.serving.core import Core, Serving
from hisam_jax.serving.describing import checked_picture
from hisam_jax.serving.errors import Refusal, busy, unknown_item
from hisam_jax.serving.explaining import Because, Why
from hisam_jax.serving.release import Release


class Service(Core):
    """A service whose items and release can be changed, one change at a time."""

    def __init__(self, *core: Any, **more: Any):
        super().__init__(*core, **more)
        self._loading, self._explaining = asyncio.Lock(), 0

    async def explain(self, ask: Why, deadline: float) -> Because:
        """Why an item is recommended; no more at once than the limits say, as others wait meanwhile."""
        self.serving()
        if self._explaining >= self.limits.explained:
            raise busy(f"{self.limits.explained} explanations are being made already")
        self._explaining += 1
        try:
            return await self.batcher.submit(ask, min(deadline, self.limits.deadline))
        finally:
            self._explaining -= 1

    async def add_item(self, item: Added, like: str | None = None, picture: str | None = None) -> Added:
        """Gives a new item an ID and keeps it; it can be recommended from then on.

        Args:
            item: new, or one that was removed.
            like: an item whose features it gets.
            picture: in base64.

        Raises:
            Refusal: it is there already, what it is told by cannot be used, or no ID can be given.
        """
        async with self.changing:
            release = self.serving().release
            if release.serves(item.item_id):
                raise Refusal(409, f"item {item.item_id!r} is there already")
            if like is not None:
                if like not in release.names.row:
                    raise unknown_item(like)
                item = dataclasses.replace(item, features=release.stock.features_of(like))
            if item.item_id not in release.names.row:
                item = await asyncio.to_thread(_described, release, item, picture, like is None)
            added = await asyncio.to_thread(_put, release, dataclasses.replace(item, day=today()))
            await self._keep_item(added, lambda: release.stock.remove(item.item_id))
            return added

    async def remove_item(self, item_id: str) -> None:
        """No longer recommends an item; what users did with it stays."""
        async with self.changing:
            release = self.serving().release
            if not release.serves(item_id):
                raise Refusal(404, f"no item {item_id!r} in this release")
            removed = await asyncio.to_thread(release.stock.remove, item_id)
            await self._keep_item(removed, lambda: release.stock.add(removed))

    async def load(self, workdir: str, expect: str | None = None) -> Release:
        """Loads, checks and compiles a run's folder, and then serves it; until then the present release serves."""
        path = _resolved(workdir)
        if path is None or not path.is_relative_to(self.root):
            raise Refusal(409, f"{workdir!r}; expected a folder under {self.root}")
        if self._loading.locked():
            raise Refusal(409, "another release is being loaded", retry=5)
        async with self._loading:
            release = await self._loaded(path, expect)
            async with self.changing:
                await asyncio.to_thread(self.restock, release)  # with what has come and gone meanwhile
                await self._switch(Serving(release, self.users_of(release)))
        return release

    async def roll_back(self) -> Release:
        """Serves the release before; the present one becomes that."""
        async with self.changing:
            if self.before is None:
                raise Refusal(409, "no release to go back to")
            await asyncio.to_thread(self.restock, self.before.release)
            await self._switch(self.before)
            return self.now.release

    async def _loaded(self, path: Path, expect: str | None) -> Release:
        try:
            release = await asyncio.to_thread(self.prepared, path)
        except UserError as error:
            raise Refusal(409, f"{error}; release {self.serving().release.id} goes on serving") from error
        if expect is not None and release.id != expect:
            raise Refusal(409, f"release {release.id}; expected {expect}")
        return release

    async def _switch(self, to: Serving) -> None:
        """Between two batches, so that none sees two releases."""

        def swap() -> None:
            self.now.users.clear()
            self.now, self.before = to, self.now

        await self.batcher.run_alone(swap)

    async def _keep_item(self, item: Added, undo: Callable[[], Any]) -> None:
        record = json.dumps(dataclasses.asdict(item))
        try:
            await self.kept(self.store.add_item(item.item_id, record))
        except Refusal:
            await asyncio.to_thread(undo)
            raise


def _resolved(workdir: str) -> Path | None:
    try:
        return Path(workdir).resolve()
    except (ValueError, OSError):  # no file can have such a name
        return None


def _described(release: Release, item: Added, picture: str | None, encode: bool) -> Added:
    try:
        data, small = (None, "") if picture is None else checked_picture(picture)
        item = dataclasses.replace(item, picture=small)
        return release.stock.describer.described(item, data) if encode else item
    except UserError as error:
        raise Refusal(422, str(error)) from error


def _put(release: Release, item: Added) -> Added:
    try:
        return release.stock.add(item)
    except UserError as error:
        raise Refusal(409, str(error)) from error
