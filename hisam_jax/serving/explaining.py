"""Why an item is recommended to a user, named: what the worker thread runs for `POST /explain`."""

from __future__ import annotations

import dataclasses

from hisam_jax.inference import explain
from hisam_jax.inference.engine import Way
from hisam_jax.inference.histories import History
from hisam_jax.serving.errors import Refusal, busy, unknown_item
from hisam_jax.serving.past import history_of
from hisam_jax.serving.release import Release
from hisam_jax.serving.store import Event, StoreAway
from hisam_jax.serving.users import Users


@dataclasses.dataclass(frozen=True)
class Why:
    """Asks why.

    Attributes:
        item: what is to be explained.
        user, history: one of them.
        way: of recommending; None: the first that can be explained.
    """

    item: str
    user: str | None = None
    history: tuple[Event, ...] | None = None
    way: Way | None = None


@dataclasses.dataclass(frozen=True)
class Because:
    """What comes back.

    Attributes:
        past: `(row, drop)` of each past item that the model still holds, oldest first.
        codes: the item's ID.
    """

    release: Release
    way: str
    known: bool
    row: int
    codes: list[int]
    found: explain.Explanation
    past: list[tuple[int, float]]


def why(release: Release, users: Users, ask: Why) -> Because:
    """The reasons.

    Raises:
        Refusal: a way that cannot be explained, no such item, the store is away.
    """
    way = _way(release, ask.way)
    if not release.serves(ask.item):
        raise unknown_item(ask.item)
    row = release.names.row[ask.item]
    member, history = _member(release, users, ask)
    codes = release.stock.codes(row)
    found = release.engine.explain(release.items, member.state, history, row, codes, way)
    kept = history.item[max(0, len(history) - len(found.drops)) :].tolist()
    past = list(zip(kept, found.drops.tolist(), strict=True))
    return Because(release, way, member.known, row, codes, found, past)


def _way(release: Release, wanted: str | None) -> str:
    ways = [way for way in release.engine.ways if way in explain.WAYS]
    way = wanted or next(iter(ways), None)
    if way not in ways:
        raise Refusal(409, f"way {way!r}; this release explains {' and '.join(ways) or 'none'}")
    return way


def _member(release: Release, users: Users, ask: Why):
    if ask.user is None:
        (member,) = users.read([ask.history])
        return member, history_of(ask.history, release.names.row)[0]
    try:
        members, there = users.members([ask.user])
        history: History = users.history(ask.user, members[ask.user]) if there else None
    except StoreAway:
        there = False
    if not there:
        raise busy("the store cannot be reached: past items are not known")
    return members[ask.user], history
