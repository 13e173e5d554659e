"""The file of the records: made whole or not at all, opened to be written or only to be read, and waited for."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from pydatapath.record_faults import UNWRITABLE, primary_code, remove_database
from pydatapath.record_tables import SCHEMA, SCHEMA_VERSION

__all__ = ["BUSY_SECONDS", "make_database", "open_database"]

BUSY_SECONDS: Final = 30.0
_PAUSE: Final = 0.01  # seconds between two tries


class _Patient(sqlite3.Connection):
    """Waits for the writers' lock also where its own transaction began by reading.

    SQLite's busy handler is not asked then (sqlite.org/c3ref/busy_handler.html), and who only reads has that lock for a
    moment, too, where it meets a commit (wal.c, walIndexReadHdr). One writer of ours at a time has the instance's lock;
    who changes the records beside it makes what it has read old, which is an error after all.
    """

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        return _waiting(lambda: super(_Patient, self).execute(*arguments))

    def executemany(self, statement: str, rows: Iterable[Any], /) -> sqlite3.Cursor:
        again = list(rows)
        return _waiting(lambda: super(_Patient, self).executemany(statement, again))


def _waiting(statement: Callable[[], sqlite3.Cursor]) -> sqlite3.Cursor:
    """A statement of a transaction, tried until nobody is in its way; one that failed so has changed nothing."""
    until = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return statement()
        except sqlite3.OperationalError as error:
            # Where somebody has changed what was read (SQLITE_BUSY_SNAPSHOT) waiting does not help
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(_PAUSE)


def make_database(path: Path) -> None:
    """An empty database, which is there as a whole or not at all."""
    fresh = path.with_name(f"{path.name}.new")
    remove_database(fresh)
    with contextlib.closing(sqlite3.connect(fresh, isolation_level=None)) as made:
        fresh.chmod(0o600)
        made.execute("PRAGMA journal_mode = WAL")
        made.executescript(f"BEGIN;{SCHEMA}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")
    fresh.rename(path)


def open_database(path: Path) -> tuple[sqlite3.Connection, int]:
    """The database and its version; where the disk is full or read-only, to be read only."""
    try:
        # mode=rw: an absent database is NotLoaded's business, not an empty one made in passing
        return _connected(f"file:{path}?mode=rw")
    except sqlite3.Error as error:
        # Without a log beside it (as each command leaves it) it can be read as it lies there
        if primary_code(error) not in UNWRITABLE or not path.exists() or _has_log(path):
            raise
    return _connected(f"file:{path}?immutable=1")


def _connected(uri: str) -> tuple[sqlite3.Connection, int]:
    opened = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, factory=_Patient)
    try:
        # The folder is a tmpfs that a power cut empties anyway
        opened.execute("PRAGMA synchronous = OFF")
        opened.execute("PRAGMA foreign_keys = ON")
        opened.execute("PRAGMA temp_store = MEMORY")  # no other disk than theirs is asked for room
        return opened, opened.execute("PRAGMA user_version").fetchone()[0]
    except BaseException:
        opened.close()
        raise


def _has_log(path: Path) -> bool:
    logs = [path.with_name(path.name + side) for side in ("-wal", "-journal")]
    return any(log.exists() and log.stat().st_size > 0 for log in logs)
