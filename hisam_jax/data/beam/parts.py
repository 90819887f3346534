"""A part: the sorted events of the users whose digests lie in one range, and the k-core as seen from it."""

from __future__ import annotations

import dataclasses

import numpy as np
import polars as pl

from hisam_jax.data.beam.state import State
from hisam_jax.data.preparation import Events, k_core


@dataclasses.dataclass(frozen=True)
class Core:
    """Which events of a part stay.

    Attributes:
        min_user: events that a user needs.
        min_item: events that an item needs; 1 keeps the catalogue whole.
        num_items: of the catalogue.
    """

    min_user: int
    min_item: int
    num_items: int

    def alive(self, items: pl.DataFrame | None) -> np.ndarray:
        """bool [num_items], from a table with the items (column `item`) that are in; None is all of them."""
        alive = np.full(self.num_items, items is None)
        if items is not None:
            alive[items["item"].to_numpy()] = True
        return alive


def write_part(state: State, part: int, users: pl.Series, events: Events) -> None:
    """Writes a part; `events.user` are places in `users`."""
    columns = {name: value for name, value in vars(events).items() if value is not None}
    state.write_frame(f"parts/{part:05d}-events.parquet", pl.DataFrame(columns))
    state.write_frame(f"parts/{part:05d}-users.parquet", pl.DataFrame({"user_id": users}))


def read_events(state: State, part: int, core: Core, items: pl.DataFrame | None) -> Events:
    """The events on `items` of the users that have enough of them."""
    frame = state.read_frame(f"parts/{part:05d}-events.parquet")
    names = [field.name for field in dataclasses.fields(Events)]
    events = Events(*(frame[name].to_numpy() if name in frame.columns else None for name in names))
    if items is not None:
        events = events.take(core.alive(items)[events.item])
    return events.take(k_core(events.user, np.zeros_like(events.item), core.min_user, 1))


def read_items(state: State, name: str | None) -> pl.DataFrame | None:
    """Table with the items that are in, by its file's name: a pipeline's description could not hold a large one."""
    return None if name is None else state.read_frame(name)


def read_users(state: State, part: int) -> pl.Series:
    """The part's users, those without an event that stays included."""
    return state.read_frame(f"parts/{part:05d}-users.parquet")["user_id"]
