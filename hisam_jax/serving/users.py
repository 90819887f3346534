"""States of users in memory, the least recently used dropped first; made again from what is stored when missing."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence

import numpy as np

from hisam_jax.inference.histories import History
from hisam_jax.inference.user_state import BrokenState, Form, UserState
from hisam_jax.serving.metrics import Metrics
from hisam_jax.serving.past import NOTHING, history_of, joined
from hisam_jax.serving.release import Release
from hisam_jax.serving.store import Event, Store, StoreAway, Stored

ONE_BY_ONE = 8  # new events that are appended; more are read anew with all before them


@dataclasses.dataclass
class Member:
    """A user in memory.

    Attributes:
        state: of the model.
        seen: rows of all items of the history, however long, ascending, each once.
        time: of the last event, 0 unknown.
        covered: stored events that `state` holds.
        kept: of those, how many a stored state holds too.
        known: whether anything is known of the user.
    """

    state: UserState
    seen: np.ndarray
    time: int
    covered: int
    kept: int
    known: bool


class Users:
    """States of one release; for the worker thread only.

    Args:
        release: whose model made them.
        store: of events and packed states.
        most: states in memory.
        metrics: counts hits, rebuilds and broken states.
        form: of packed states; None: no rounding.
    """

    def __init__(self, release: Release, store: Store, most: int, metrics: Metrics, form: Form | None = None):
        self._release, self._store, self._most, self._metrics = release, store, most, metrics
        self._dtype = np.dtype(release.engine.model.config.compute_dtype)
        self._form: Form = form or self._dtype.name
        self._members: collections.OrderedDict[str, Member] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._members)

    def members(self, users: Sequence[str]) -> tuple[dict[str, Member], bool]:
        """`(user -> member with all stored events, whether the store was there)`."""
        users, there = list(dict.fromkeys(users)), True
        for user in users:
            there &= self._fetch(user)
        try:
            self._catch_up(self._store.events({user: self._members[user].covered for user in users}) if users else {})
        except StoreAway:
            there = False
        found = {user: self._members[user] for user in users}
        self._evict()
        return found, there

    def read(self, histories: Sequence[Sequence[Event]]) -> list[Member]:
        """Members of histories that came with requests, kept nowhere."""
        parts = [self._history(events, 0) for events in histories]
        states = self._release.engine.read(self._release.items, [history for history, _ in parts])
        return [
            Member(state, np.unique(history.item), time, 0, 0, True)
            for state, (history, time) in zip(states, parts, strict=True)
        ]

    def history(self, user: str, member: Member) -> History:
        """The latest events that a member's state holds, as many as it depends on or more."""
        first, events = self._latest(user)
        base, time = self._release.past(user) or (NOTHING, 0)
        return joined([base, self._history(events[: max(member.covered - first, 0)], time)[0]])

    def flush(self) -> None:
        """Stores the states that have changed."""
        self._save({user: member for user, member in self._members.items() if member.covered > member.kept})

    def clear(self) -> None:
        """Forgets all that is in memory; of another release's states, stored ones are of no use."""
        self._members.clear()

    def _fetch(self, user: str) -> bool:
        """Sees to it that a user is in memory; whether the store answered if it was needed."""
        if user in self._members:
            self._members.move_to_end(user)
            self._metrics.states.labels("memory").inc()
            return True
        try:
            self._members[user] = self._load(user)
            return True
        except StoreAway:
            self._members[user] = self._made(user, 0, [])
            self._members[user].covered = -1  # of events that are not known: read again when the store is back
            return False

    def _load(self, user: str) -> Member:
        first, events = self._latest(user)
        state = self._stored(user) if events else None
        if state is not None and first <= state[1].covered <= first + len(events):
            self._metrics.states.labels("store").inc()
            return self._restored(user, first, events, *state)
        self._metrics.states.labels("events").inc()
        return self._made(user, first, events)

    def _latest(self, user: str) -> tuple[int, list[Event]]:
        """As many events as a state depends on, and one for its time."""
        return self._store.latest(user, self._release.deep + 1)

    def _stored(self, user: str) -> tuple[UserState, Stored] | None:
        stored = self._store.state(user)
        if stored is None:
            return None
        try:
            state = UserState.unpacked(stored.state, self._release.id)
        except (BrokenState, ValueError, KeyError, TypeError):
            self._metrics.states.labels("broken").inc()
            self._store.drop_state(user)
            return None
        k, v = (x.astype(self._dtype) for x in (state.k, state.v))
        return dataclasses.replace(state, k=k, v=v), stored

    def _restored(self, user: str, first: int, events: Sequence[Event], state: UserState, stored: Stored) -> Member:
        seen = self._seen(user, first, events)
        return Member(state, seen, stored.time, stored.covered, stored.covered, True)

    def _made(self, user: str, first: int, events: Sequence[Event]) -> Member:
        """A state of the dataset's history, unless stored events outnumber what a state depends on, and of those."""
        past = self._release.past(user)
        base, time = past or (NOTHING, 0)
        history, time = self._history(events, time)
        whole = joined([base, history])
        (state,) = self._release.engine.read(self._release.items, [whole])
        covered = first + len(events)
        seen = self._seen(user, first, events)
        return Member(state, seen, time, covered, 0, past is not None or covered > 0)

    def _catch_up(self, new: dict[str, list[Event]]) -> None:
        for user in [user for user, events in new.items() if len(events) > ONE_BY_ONE or self._unsure(user)]:
            del new[user]
            self._members[user] = self._made(user, *self._latest(user))
        for turn in range(max(map(len, new.values()), default=0)):
            self._append({user: events[turn] for user, events in new.items() if len(events) > turn})

    def _unsure(self, user: str) -> bool:
        return self._members[user].covered < 0

    def _append(self, one: dict[str, Event]) -> None:
        members = [self._members[user] for user in one]
        parts = [self._history([event], member.time) for event, member in zip(one.values(), members, strict=True)]
        known = [row for row, (history, _) in enumerate(parts) if len(history)]
        if known:
            states, events = [members[row].state for row in known], joined([parts[row][0] for row in known])
            grown = self._release.engine.append(self._release.items, states, events)
            for row, state in zip(known, grown, strict=True):
                member, (history, time) = members[row], parts[row]
                member.state, member.seen, member.time = state, np.union1d(member.seen, history.item), time
        for member in members:
            member.covered, member.known = member.covered + 1, True

    def _evict(self) -> None:
        old = {}
        while len(self._members) > self._most:
            user, member = self._members.popitem(last=False)
            old[user] = member
            self._metrics.evictions.inc()
        self._save({user: member for user, member in old.items() if member.covered > member.kept})

    def _save(self, members: dict[str, Member]) -> None:
        if not members:
            return
        packed = {user: m.state.packed(self._release.id, self._form) for user, m in members.items()}
        self._store.save_states({user: Stored(packed[user], m.covered, m.time) for user, m in members.items()})
        for member in members.values():
            member.kept = member.covered

    def _history(self, events: Sequence[Event], time: int) -> tuple[History, int]:
        return history_of(events, self._release.names.row, time)

    def _seen(self, user: str, first: int, events: Sequence[Event]) -> np.ndarray:
        """Of the dataset, of the latest events, and where there are earlier ones, of all that are stored."""
        past, _ = self._release.past(user) or (NOTHING, 0)
        names = {event.item for event in events}.union(self._store.seen(user) if first else ())
        row = self._release.names.row
        return np.union1d(past.item, np.array([row[name] for name in names if name in row], np.int32))
