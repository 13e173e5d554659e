"""The copy of the records beside them, which follows each change: `load` takes it where they are gone or damaged.

Records note the rows that a command changes; at its end these alone are written to the copy, in one transaction. So the
copy costs what the change does, however many objects there are, and damage elsewhere in the records does not get into
it. A count of changes, a fact of both, tells whether the copy has all before; where a command was killed in between it
has not, and is made anew of the whole. What follows from the objects is not in it, and a fact of its own says so: who
takes it plans them anew (applying.complete).
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from pydatapath.record_faults import SQLITE_ERRORS, copy_of, count_of, damage_in, damaged, remove_database, summed
from pydatapath.record_tables import SCHEMA_VERSION

__all__ = ["INCOMPLETE", "PLANNED", "Noted", "follow"]

INCOMPLETE: Final = "incomplete"  # a fact, of a copy: the tables PLANNED are not filled
PLANNED: Final = ("frontends", "claims")  # tables whose rows follow from the objects

Noted = Mapping[str, Collection[tuple[str | int, ...]]]  # tables, each with the keys of the rows that were changed

COPIED_BY_MEMORY: Final = 1 << 30  # bytes
_KEYS: Final[Mapping[str, str]] = {
    "facts": "name",
    "objects": "kind, namespace, name",
    "service_ports": "number",
    "members": "network, node",
    "host_changes": "kind, subject",
}
_NOTE: Final = "CREATE TEMP TABLE noted_{table} ({keys}, PRIMARY KEY ({keys})) WITHOUT ROWID"
_REMOVE: Final = "DELETE FROM copy.{table} WHERE ({keys}) IN noted_{table}"
_ADD: Final = "INSERT INTO copy.{table} SELECT now.* FROM noted_{table} CROSS JOIN main.{table} AS now USING ({keys})"
# All that is over goes first: a name may have gone from one row to another
_FOLLOW: Final = (
    *(_REMOVE.format(table=table, keys=keys) for table, keys in _KEYS.items()),
    *(_ADD.format(table=table, keys=keys) for table, keys in _KEYS.items()),
    # A copy of before they were left out has them. With a condition, for else SQLite writes also what is empty
    *(f"DELETE FROM copy.{table} WHERE true" for table in PLANNED),  # noqa: S608 - our own words
    "DELETE FROM copy.sqlite_sequence",
    "INSERT INTO copy.sqlite_sequence SELECT * FROM main.sqlite_sequence",
)
_MARK: Final = "INSERT OR REPLACE INTO {}.facts VALUES (?, ?, ?)"
_MARKED: Final = summed(INCOMPLETE, "true")


def follow(path: Path, records: sqlite3.Connection, since: int, noted: Noted) -> None:
    """Brings the copy up to date by what is noted; it must be as the records were after `since` changes.

    A full disk does not matter: then the copy is the one of before. Raises DamagedRecords where a whole copy would have
    to be made of records that are damaged; then it stays as it was. Damage in the copy itself is seen by `load`.
    """
    if not _followed(path, records, since, noted):
        _copy_whole(path, records)


def _followed(path: Path, records: sqlite3.Connection, since: int, noted: Noted) -> bool:
    if not copy_of(path).exists():
        return False
    try:
        records.execute("PRAGMA foreign_keys = OFF")  # all rows come from where they hold
        records.execute("ATTACH ? AS copy", (f"file:{copy_of(path)}?mode=rw",))
        records.execute("PRAGMA copy.synchronous = OFF")
        version = records.execute("PRAGMA copy.user_version").fetchone()[0]
        if version != SCHEMA_VERSION or count_of(records, "copy") != since:
            return False
        if count_of(records) == since:
            return True  # nothing was changed, and nothing is written
        records.execute("BEGIN")
        for table, keys in _KEYS.items():
            records.execute(_NOTE.format(table=table, keys=keys))
            values = ", ".join("?" * (keys.count(",") + 1))
            records.executemany(f"INSERT INTO noted_{table} VALUES ({values})", noted.get(table, ()))  # noqa: S608
        for statement in _FOLLOW:
            records.execute(statement)
        records.execute(_MARK.format("copy"), _MARKED)
        records.execute("COMMIT")
    except SQLITE_ERRORS:
        return False
    else:
        return True
    finally:
        with contextlib.suppress(*SQLITE_ERRORS):
            if records.in_transaction:
                records.execute("ROLLBACK")
            records.execute("DETACH copy")


def _copy_whole(path: Path, records: sqlite3.Connection) -> None:
    fresh, found = path.with_name(f"{path.name}.copy.new"), ""
    with contextlib.suppress(OSError, *SQLITE_ERRORS):
        remove_database(fresh)
        with contextlib.closing(sqlite3.connect(fresh)) as made:
            fresh.chmod(0o600)
            made.execute("PRAGMA synchronous = OFF")
            made.execute("PRAGMA journal_mode = OFF")
            records.execute(f"PRAGMA mmap_size = {COPIED_BY_MEMORY}")  # a third less to do than page by page
            records.backup(made)
            found = damage_in(made)
            made.execute("PRAGMA journal_mode = DELETE")  # it has one reader, and no log to leave behind
            made.execute("PRAGMA secure_delete = OFF")
            for table in PLANNED:
                made.execute(f"DELETE FROM {table}")  # noqa: S608 - our own words
            made.execute(_MARK.format("main"), _MARKED)
            made.commit()
        if not found:
            # It before its journal: with that it is what it was, without it could be torn
            copy_of(path).unlink(missing_ok=True)
            remove_database(copy_of(path))
            fresh.rename(copy_of(path))
            return
    with contextlib.suppress(OSError):
        remove_database(fresh)
    if found:
        raise damaged(path, f"{found} (what was to be changed is changed, but is in no copy)")
