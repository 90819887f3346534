"""Many requests answered together by one release: what the worker thread runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from hisam_jax.inference.engine import Wanted, Way
from hisam_jax.serving.errors import Refusal, unknown_item
from hisam_jax.serving.explaining import Because, Why, why
from hisam_jax.serving.past import log_hours
from hisam_jax.serving.release import Release
from hisam_jax.serving.store import Event
from hisam_jax.serving.users import Member, Users


@dataclasses.dataclass(frozen=True)
class Ask:
    """A request for recommendations, or with `candidates` for their scores.

    Attributes:
        user, history: one of them.
        candidates: item ids to score.
        k: how many to recommend.
        way: to recommend; None: the first that the release has.
        by: head that ranks; None: ranking where it was trained, else retrieval.
        hide: item ids to leave out.
        repeat: whether seen items may come again.
        oldest: day; items that came earlier are left out.
        any_of: categories of which an item must have one.
        time: of the request, seconds since 1970; 0 unknown.
    """

    user: str | None = None
    history: tuple[Event, ...] | None = None
    candidates: tuple[str, ...] | None = None
    k: int = 10
    way: Way | None = None
    by: str | None = None
    hide: tuple[str, ...] = ()
    repeat: bool = False
    oldest: int = 0
    any_of: tuple[str, ...] = ()
    time: int = 0


@dataclasses.dataclass(frozen=True)
class Answer:
    """What comes back: items with scores, in the order of the ranks or of the candidates."""

    release: str
    how: str
    known: bool
    degraded: bool
    items: list[tuple[str, str, float]]


def answer_all(release: Release, users: Users, asks: Sequence[Ask | Why]) -> list[Answer | Because | Exception]:
    """An answer, or what is wrong with it, for each request; reasons one by one, after all else."""
    found = iter(answer(release, users, [ask for ask in asks if isinstance(ask, Ask)]))
    return [next(found) if isinstance(ask, Ask) else _reasons(release, users, ask) for ask in asks]


def answer(release: Release, users: Users, asks: Sequence[Ask]) -> list[Answer | Exception]:
    """An answer, or what is wrong with it, for each request for items or scores."""
    stored, there = users.members([ask.user for ask in asks if ask.user is not None])
    read = iter(users.read([ask.history for ask in asks if ask.user is None]))
    members = [next(read) if ask.user is None else stored[ask.user] for ask in asks]
    out: list[Any] = [None] * len(asks)
    groups: dict[tuple[bool, str], list[tuple[int, Any]]] = {}
    for place, (ask, member) in enumerate(zip(asks, members, strict=True)):
        try:
            key, prepared = _prepared(release, ask, member)
            groups.setdefault(key, []).append((place, prepared))
        except Refusal as refusal:
            out[place] = refusal
    for (ranks, how), group in groups.items():
        places = [place for place, _ in group]
        some = [asks[place] for place in places], [members[place] for place in places], [more for _, more in group]
        found = (_ranked if ranks else _recommended)(release, how, *some)
        for place, items in zip(places, found, strict=True):
            degraded = not there and asks[place].user is not None
            out[place] = Answer(release.id, how, members[place].known, degraded, items)
    return out


def _reasons(release: Release, users: Users, ask: Why) -> Because | Exception:
    try:
        return why(release, users, ask)
    except Exception as error:  # of this request alone
        return error


def _prepared(release: Release, ask: Ask, member: Member) -> tuple[tuple[bool, str], Any]:
    if ask.candidates is not None:
        return (True, _head(release, ask.by)), _rows(release, ask.candidates)
    way = ask.way or next(iter(release.engine.ways), None)
    if way not in release.engine.ways:
        raise Refusal(409, f"way {way!r}; this release has {' and '.join(release.engine.ways) or 'none'}")
    try:
        any_of = release.names.any_of(ask.any_of) if ask.any_of else None
    except KeyError as error:
        raise Refusal(404, f"no category {error.args[0]!r} in this release") from None
    seen = np.zeros(0, np.int32) if ask.repeat else member.seen
    return (False, way), Wanted(np.concatenate([seen, _rows(release, ask.hide)]), ask.oldest, any_of)


def _head(release: Release, by: str | None) -> str:
    heads = [name for name in ("ranking", "retrieval") if getattr(release.engine.model.config, name)]
    by = by or next(iter(heads), None)
    if by not in heads:
        raise Refusal(409, f"by {by!r}; this release ranks by {' and '.join(heads) or 'nothing'}")
    return by


def _rows(release: Release, names: Sequence[str]) -> np.ndarray:
    unknown = next((name for name in names if name not in release.names.row), None)
    if unknown is not None:
        raise unknown_item(unknown)
    return np.array([release.names.row[name] for name in names], np.int32)


def _gaps(asks: Sequence[Ask], members: Sequence[Member]) -> np.ndarray:
    pairs = zip(asks, members, strict=True)
    return np.array([log_hours(member.time, ask.time) for ask, member in pairs], np.float32)


def _recommended(release: Release, way: Way, asks: Sequence[Ask], members: Sequence[Member], wanted: Sequence[Wanted]):
    engine, most = release.engine, max(ask.k for ask in asks)
    by = "ranking" if engine.model.config.ranking else "retrieval"
    states = [member.state for member in members]
    found = engine.recommend(release.items, states, wanted, most, way, by, _gaps(asks, members))
    return [_named(release, item[: ask.k], score) for ask, (item, score) in zip(asks, found, strict=True)]


def _ranked(release: Release, by: str, asks: Sequence[Ask], members: Sequence[Member], rows: Sequence[np.ndarray]):
    states = [member.state for member in members]
    found = release.engine.rank(release.items, states, rows, by, _gaps(asks, members))
    return [_named(release, row, score) for row, score in zip(rows, found, strict=True)]


def _named(release: Release, rows: np.ndarray, scores: np.ndarray) -> list[tuple[str, str, float]]:
    names = release.names
    pairs = zip(rows.tolist(), scores.tolist(), strict=False)
    return [(names.ids[row], names.titles[row], score) for row, score in pairs]
