"""Records that cannot be read or written: why, what to do, and how `load` takes their copy in their place.

Traffic never depends on the records: what is loaded goes on, whatever becomes of them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sqlite3
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from ipaddress import ip_network
from pathlib import Path
from typing import Final, NamedTuple

from pydatapath.errors import DatapathError, KernelError
from pydatapath.record_tables import NEW_COLUMNS, SCHEMA, SCHEMA_VERSION

__all__ = [
    "CHANGES",
    "SQLITE_ERRORS",
    "UNWRITABLE",
    "DamagedRecords",
    "copy_of",
    "count_of",
    "damage_in",
    "damaged",
    "explained",
    "primary_code",
    "refuse_damaged",
    "remove_database",
    "sum_of",
    "summed",
    "take_copy",
    "wrong_number",
    "wrong_version",
]

CHANGES: Final = "changes"  # a fact: how often something was changed
# SQLite's primary result codes (sqlite.org/rescode.html) for a disk that is full or read-only, or a folder that is
UNWRITABLE: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR)
# Where a bit has flipped in the text of the tables' definitions, SQLite quotes it, and that may be no UTF-8
SQLITE_ERRORS: Final = (sqlite3.Error, UnicodeDecodeError)
_SIDES: Final = ("", "-wal", "-shm", "-journal")  # a database and what SQLite puts beside it
# What is no JSON where JSON must be; what `load` did and cannot be told what it was. And of what follows from the
# objects, which has no sums, what nobody could read
_CONTENT: Final = """
SELECT 1 FROM facts WHERE NOT json_valid(value) UNION ALL SELECT 1 FROM objects WHERE NOT json_valid(manifest)
UNION ALL SELECT 1 FROM host_changes WHERE kind NOT IN ('clsact', 'filter', 'route', 'neighbour', 'sysctl')
LIMIT 1
"""
_DERIVED: Final = """
SELECT 1 FROM members WHERE kind NOT IN (1, 2) OR NOT is_place(network)
UNION ALL SELECT 1 FROM service_ports WHERE protocol NOT IN ('TCP', 'UDP', 'SCTP') OR family NOT IN ('IPv4', 'IPv6')
UNION ALL SELECT 1 FROM frontends WHERE typeof(port) <> 'integer' OR held NOT IN (0, 1) OR NOT is_place(address)
    OR kind NOT IN ('cluster-ip', 'node-port', 'external-ip', 'load-balancer-ip')
    OR protocol NOT IN ('TCP', 'UDP', 'SCTP')
UNION ALL SELECT 1 FROM claims WHERE typeof(port) <> 'integer' OR NOT (address = '' OR is_place(address))
    OR kind NOT IN ('cluster-ip', 'node-port', 'external-ip', 'load-balancer-ip', 'health-check')
LIMIT 1
"""
_SUMS: Final = """
SELECT 1 FROM facts WHERE sum <> sum_of(name, value)
UNION ALL SELECT 1 FROM objects WHERE sum <> sum_of(kind, namespace, name, service, manifest, made)
UNION ALL SELECT 1 FROM host_changes WHERE sum <> sum_of(kind, subject)
LIMIT 1
"""
_COLUMNS: Final = """
SELECT made.name || '.' || has.name FROM main.sqlite_schema made, pragma_table_info(made.name, 'main') has
WHERE made.type = 'table' AND made.name NOT LIKE 'sqlite%'
"""
# By the word for its type SQLite makes numbers of what looks like one (sqlite.org/datatype3.html 3.1): names, too
_TYPES: Final = """
SELECT 1 FROM main.sqlite_schema made, pragma_table_info(made.name, 'main') has
WHERE made.type = 'table' AND made.name NOT LIKE 'sqlite%' AND has.type NOT IN ('TEXT', 'INTEGER') LIMIT 1
"""
SUMMED_SINCE: Final = 5  # version of the records


class DamagedRecords(DatapathError):
    """The records are no database of ours any more."""


def sum_of(*values: str | None) -> int:
    """What tells values from those that they are when a bit has flipped."""
    return zlib.crc32("\0".join([one or "" for one in values]).encode())


def summed(*values: str | None) -> tuple[str | int | None, ...]:
    """A row, and the sum of all that is in it."""
    return (*values, sum_of(*values))


def primary_code(error: sqlite3.Error) -> int:
    """What went wrong, without the details; SQLITE_ERROR where nobody says."""
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def explained(path: Path, error: Exception) -> DatapathError:
    """Our error for one of SQLITE_ERRORS: the disk's fault, somebody else's, or damage."""
    if not isinstance(error, sqlite3.Error):
        return damaged(path, "what SQLite says of them is no text")
    code = primary_code(error)
    if code == sqlite3.SQLITE_BUSY:
        return DatapathError(f"the records {path} are busy: {error}", hint="end the program that has them open")
    # Where there is no room for what it keeps beside a database, SQLite takes that for one that is read-only
    full = code == sqlite3.SQLITE_FULL or not os.statvfs(path.parent).f_bavail
    if code in UNWRITABLE and (full or code != sqlite3.SQLITE_READONLY or not os.access(path, os.W_OK)):
        what = "no room is left on the disk" if full else str(error)
        return KernelError(
            f"the records {path} cannot be written: {what}",
            errno=errno.ENOSPC if full else errno.EROFS,
            hint=f"traffic goes on as it is; make room in {path.parent}, or make it writable",
        )
    return damaged(path, str(error))


def damaged(path: Path, what: str) -> DamagedRecords:
    """They are there, and cannot be read."""
    afresh = "`pydatapath unload` and `load` start afresh"
    way = f"`pydatapath repair` takes their copy; {afresh}" if copy_of(path).exists() else afresh
    return DamagedRecords(
        f"the records {path} are damaged and cannot be read: {what}", hint=f"traffic goes on as it is; {way}"
    )


def wrong_version(path: Path, version: int) -> DatapathError:
    """They are of another version of pydatapath, or of none."""
    if not version:
        return damaged(path, "they have no version")
    return DatapathError(
        f"the records {path} are of version {version}, this pydatapath writes {SCHEMA_VERSION}",
        hint="use the version that made them, or `pydatapath unload`",
    )


def wrong_number(records: sqlite3.Connection) -> str:
    """What is wrong where a database has the tables of another version than it says; "" where it may be what it says.

    It says so in a number without a sum, by which nobody may take it for an older or a newer one.
    """
    said: int = records.execute("PRAGMA user_version").fetchone()[0]
    tables = _versions().get(_columns(records), said)
    if tables == said:
        return ""
    return f"they say that they are of version {said}, and have the tables of version {tables}"


def _columns(records: sqlite3.Connection) -> frozenset[str]:
    return frozenset(row[0] for row in records.execute(_COLUMNS))


@cache
def _versions() -> Mapping[frozenset[str], int]:
    """The versions that this pydatapath knows, by their columns."""
    with contextlib.closing(sqlite3.connect(":memory:")) as made:
        made.executescript(SCHEMA)
        columns, found = _columns(made), {}
    for version in range(SCHEMA_VERSION, 0, -1):
        found[columns] = version
        columns -= NEW_COLUMNS.get(version, frozenset())
    return found


def refuse_damaged(path: Path, records: sqlite3.Connection, error: Exception) -> None:
    """Raises DamagedRecords where what is read makes no sense to us, because it is not what was written."""
    if found := damage_in(records):
        raise damaged(path, found) from error


def damage_in(records: sqlite3.Connection) -> str:
    """What is wrong with a database, "" for nothing that can be seen."""
    try:
        # Not quick_check, which does not compare indexes with what they are of: that tells a flipped bit in a name
        found: str = records.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            return found.splitlines()[-1]
        if found := wrong_number(records):
            return found
        if records.execute(_TYPES).fetchone():
            return "a column has another type than the one that was made"
        if records.execute("PRAGMA user_version").fetchone()[0] >= SUMMED_SINCE:
            records.create_function("sum_of", -1, sum_of, deterministic=True)
            if records.execute(_SUMS).fetchone():
                return "a value is not the one that was written"
            records.create_function("is_place", 1, _is_place, deterministic=True)
            if records.execute(_DERIVED).fetchone():
                return "a value makes no sense"
        return "a value makes no sense" if records.execute(_CONTENT).fetchone() else ""
    except SQLITE_ERRORS as error:
        return str(error)


def _is_place(text: object) -> bool:
    """Whether it is an address or a network."""
    try:
        return isinstance(text, str) and bool(ip_network(text, strict=False))
    except ValueError:
        return False


def copy_of(path: Path) -> Path:
    """Where the copy lies."""
    return path.with_name(f"{path.name}.copy")


def count_of(records: sqlite3.Connection, where: str = "main") -> int | None:
    """How often a database was changed; None where what it says of that makes no sense."""
    row = records.execute(f"SELECT value FROM {where}.facts WHERE name = ?", (CHANGES,)).fetchone()  # noqa: S608 - main or copy
    if row is None:
        return 0
    try:
        found = json.loads(row[0])
    except (TypeError, ValueError):
        return None
    return found if isinstance(found, int) else None


def take_copy(path: Path) -> str | None:
    """Where records are gone, damaged or older than their copy, that takes their place: a sentence, "" where they are
    well. Where they are, and it is not, it is thrown away: the next change makes another.

    None: they are not well, and there is no copy that is. Raises DatapathError where the disk is to blame, or they are
    of another version.
    """
    copy, state = copy_of(path), _look_at(path)
    if state.wrong or copy.exists():
        other = _look_at(copy)
        if not state.wrong and other.wrong:
            remove_database(copy)
        elif other.wrong:
            return None
        elif not state.wrong and other.changes > state.changes:
            state = _State("older than their copy")
    if not state.wrong:
        return ""
    made = datetime.fromtimestamp(copy.stat().st_mtime, UTC).isoformat(" ", "seconds")
    for side in _SIDES[1:]:
        path.with_name(path.name + side).unlink(missing_ok=True)
    copy.rename(path)
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path)) as records:
        records.execute("PRAGMA journal_mode = WAL")  # a copy has none
    return f"the records {path} were {state.wrong}: they are as their copy of {made} has them"


class _State(NamedTuple):
    """Why a database cannot be used, in a word or some ("": it can), and how often it was changed."""

    wrong: str
    changes: int = 0


def _look_at(path: Path) -> _State:
    """Raises DatapathError where the disk is to blame, or it is of another version."""
    if not path.exists():
        return _State("gone")
    count: int | None = 0
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True)) as records:
            version = records.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION and not wrong_number(records):
                raise wrong_version(path, version)
            found = damage_in(records) if version else "they have no version"
            if not found:
                records.execute("DELETE FROM facts WHERE 0")  # whether it can be written, too
                count = count_of(records)
    except SQLITE_ERRORS as error:
        why = explained(path, error)
        if not isinstance(why, DamagedRecords):
            raise why from error
        found = str(error)
    if count is None:
        found = f"the fact {CHANGES!r} makes no sense"
    return _State(f"damaged ({found})" if found else "", count or 0)


def remove_database(path: Path) -> None:
    """Takes a database away, with what SQLite has put beside it."""
    for side in reversed(_SIDES):
        path.with_name(path.name + side).unlink(missing_ok=True)
