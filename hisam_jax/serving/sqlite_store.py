"""The store in one SQLite file: write-ahead log, a flush to disk before a commit returns."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hisam_jax.errors import UserError
from hisam_jax.serving.store import Event, KeyReused, Once, Store, StoreAway, Stored, told

TABLES = """
CREATE TABLE IF NOT EXISTS events (user TEXT, position INTEGER, item TEXT, action INTEGER, time INTEGER,
  PRIMARY KEY (user, position)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS states (user TEXT PRIMARY KEY, state BLOB, covered INTEGER, time INTEGER);
CREATE TABLE IF NOT EXISTS keys (number INTEGER PRIMARY KEY AUTOINCREMENT, user TEXT, key TEXT, content TEXT,
  events INTEGER, time INTEGER, UNIQUE (user, key));
CREATE TABLE IF NOT EXISTS items (number INTEGER PRIMARY KEY, item TEXT UNIQUE, record TEXT);
"""
NOT_OURS = "an SQLite file that `hisam serve` made, or a new one"


class SQLiteStore(Store):
    """Events, states and items in a file.

    Args:
        path: made where it is not there.

    Raises:
        UserError: no database, or a folder that cannot be written.
    """

    def __init__(self, path: str | Path):
        self._path, self._local = Path(path), threading.local()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.closing(self._connect()) as connection:
                connection.executescript(TABLES)
        except sqlite3.Error as error:
            raise UserError(f"no store ({error})", path=self._path, field="store", expected=NOT_OURS) from error
        super().__init__()

    def events(self, wanted: Mapping[str, int]) -> dict[str, list[Event]]:
        text = "SELECT item, action, time FROM events WHERE user = ? AND position >= ? ORDER BY position"
        found = ((user, self._read(text, (user, start))) for user, start in wanted.items())
        return {user: [Event(*row) for row in rows] for user, rows in found if rows}

    def latest(self, user: str, most: int) -> tuple[int, list[Event]]:
        text = "SELECT position, item, action, time FROM events WHERE user = ? ORDER BY position DESC LIMIT ?"
        rows = self._read(text, (user, most))[::-1]
        return (rows[0][0] if rows else 0), [Event(*row[1:]) for row in rows]

    def seen(self, user: str) -> list[str]:
        return [item for (item,) in self._read("SELECT DISTINCT item FROM events WHERE user = ?", (user,))]

    def state(self, user: str) -> Stored | None:
        rows = self._read("SELECT state, covered, time FROM states WHERE user = ?", (user,))
        return Stored(*rows[0]) if rows else None

    def drop_state(self, user: str) -> None:
        self._write(lambda connection: connection.execute("DELETE FROM states WHERE user = ?", (user,)) and None)

    def items(self) -> list[tuple[str, str]]:
        return self._read("SELECT item, record FROM items ORDER BY number", ())

    def alive(self) -> bool:
        try:
            return bool(self._read("SELECT 1", ()))
        except StoreAway:
            return False

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, timeout=10.0)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        return connection

    @property
    def _mine(self) -> sqlite3.Connection:
        """This thread's connection."""
        if not hasattr(self._local, "connection"):
            self._local.connection = self._connect()
        return self._local.connection

    def _read(self, text: str, values: tuple) -> list[tuple]:
        try:
            return self._mine.execute(text, values).fetchall()
        except sqlite3.Error as error:
            raise StoreAway(str(error)) from error

    def _commit(self, work: Sequence[Callable[[Any], Any]]) -> list[Any]:
        connection = self._mine
        try:
            connection.execute("BEGIN IMMEDIATE")
            results = [call(connection) for call in work]
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise StoreAway(str(error)) from error
        return results

    def _add_events(self, handle: sqlite3.Connection, user: str, events: Sequence[Event]) -> int:
        (last,) = handle.execute("SELECT max(position) FROM events WHERE user = ?", (user,)).fetchone()
        first = 0 if last is None else last + 1
        rows = [(user, position, *event) for position, event in enumerate(events, start=first)]
        handle.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", rows)
        return first + len(rows)

    def _add_once(
        self, handle: sqlite3.Connection, user: str, events: Sequence[Event], key: str, content: str
    ) -> Once | KeyReused:
        now, mine = int(time.time()), (user, key)
        text = "SELECT content, events FROM keys WHERE user = ? AND key = ? AND time > ?"
        if before := handle.execute(text, (*mine, now - self.key_seconds)).fetchone():
            return told(before, content, key)
        count = self._add_events(handle, user, events)
        handle.execute("DELETE FROM keys WHERE user = ? AND key = ?", mine)
        row = (*mine, content, count, now)
        number = handle.execute(
            "INSERT INTO keys (user, key, content, events, time) VALUES (?, ?, ?, ?, ?)", row
        ).lastrowid
        handle.execute("DELETE FROM keys WHERE number <= ?", (number - self.most_keys,))
        return Once(count, True)

    def _save_states(self, handle: sqlite3.Connection, states: Mapping[str, Stored]) -> None:
        rows = [(user, *stored) for user, stored in states.items()]
        handle.executemany("INSERT OR REPLACE INTO states VALUES (?, ?, ?, ?)", rows)

    def _add_item(self, handle: sqlite3.Connection, item_id: str, record: str) -> None:
        handle.execute(
            "INSERT INTO items (item, record) VALUES (?, ?) ON CONFLICT (item) DO UPDATE SET record = excluded.record",
            (item_id, record),
        )
