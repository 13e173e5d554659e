"""What was asked of an instance, in SQLite beside its pins: objects, the numbers given to service ports, host changes.

The live maps are the truth about the kernel, this is the truth about the wish. A change is one transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from pydatapath.claims import Claim, ClaimKind, Holding
from pydatapath.errors import DatapathError
from pydatapath.plan import Address, PortPlan

__all__ = ["HostChange", "RecordedPort", "Records", "Shadow", "Stored"]

SCHEMA_VERSION: Final = 3
BUSY_SECONDS: Final = 30.0
# A service port is there once for each family in which it is called
_NUMBERS: Final = """
CREATE TABLE service_ports (
    number INTEGER PRIMARY KEY AUTOINCREMENT,    -- stands in the maps
    namespace TEXT NOT NULL, service TEXT NOT NULL, port TEXT NOT NULL, protocol TEXT NOT NULL,
    family TEXT NOT NULL,                        -- IPv4, IPv6
    UNIQUE (namespace, service, port, protocol, family)
);
"""
# Every claim is kept; of those of one address and port one is held: there that service is called
_PLACES: Final = """
CREATE TABLE frontends (
    address TEXT NOT NULL, port INTEGER NOT NULL, protocol TEXT NOT NULL,
    number INTEGER NOT NULL REFERENCES service_ports (number) ON DELETE CASCADE,
    kind TEXT NOT NULL,                          -- Frontend.kind
    held INTEGER NOT NULL,
    PRIMARY KEY (address, port, protocol, number)
) WITHOUT ROWID;
CREATE INDEX frontends_of ON frontends (number);
CREATE UNIQUE INDEX held_frontends ON frontends (address, port, protocol) WHERE held;
CREATE INDEX shadowed_frontends ON frontends (address, port, protocol) WHERE NOT held;
CREATE TABLE claims (
    address TEXT NOT NULL, port INTEGER NOT NULL, protocol TEXT NOT NULL,
    namespace TEXT NOT NULL, service TEXT NOT NULL,
    kind TEXT NOT NULL,                          -- ClaimKind
    PRIMARY KEY (address, port, protocol, namespace, service)
) WITHOUT ROWID;
CREATE INDEX claims_of ON claims (namespace, service);
"""
_SCHEMA: Final = f"""
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE objects (
    kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
    service TEXT,                                -- of a slice: the name of its service
    manifest TEXT NOT NULL,
    made TEXT NOT NULL DEFAULT '',               -- of a service: its creationTimestamp, as text that sorts
    PRIMARY KEY (kind, namespace, name)
) WITHOUT ROWID;
CREATE INDEX slices_of ON objects (namespace, service) WHERE service IS NOT NULL;
{_NUMBERS}
{_PLACES}
CREATE TABLE host_changes (
    kind TEXT NOT NULL, subject TEXT NOT NULL,   -- what we did to the host, for unload to take back
    PRIMARY KEY (kind, subject)
) WITHOUT ROWID;
"""
# Version 1 knew cluster IPs only, version 2 one service at an address and no IPv6; `load`, which alone brings records
# up to date, then plans all services anew and fills `claims`
_STEPS: Final[Mapping[int, tuple[str, ...]]] = {
    1: ("ALTER TABLE frontends ADD COLUMN kind TEXT NOT NULL DEFAULT 'cluster-ip'",),
    2: (
        "ALTER TABLE objects ADD COLUMN made TEXT NOT NULL DEFAULT ''",
        """UPDATE objects
        SET made = coalesce(strftime('%Y-%m-%dT%H:%M:%SZ', json_extract(manifest, '$.metadata.creationTimestamp')), '')
        WHERE kind = 'Service'""",
        "ALTER TABLE service_ports RENAME TO old_service_ports",
        _NUMBERS,
        "INSERT INTO sqlite_sequence SELECT 'service_ports', seq FROM sqlite_sequence WHERE name = 'old_service_ports'",
        "INSERT INTO service_ports SELECT number, namespace, service, port, protocol, 'IPv4' FROM old_service_ports",
        "DROP INDEX frontends_of",
        "ALTER TABLE frontends RENAME TO old_frontends",
        _PLACES,
        "INSERT INTO frontends SELECT address, port, protocol, number, kind, 1 FROM old_frontends",
        "DROP TABLE old_frontends",
        "DROP TABLE old_service_ports",
    ),
}
_OBJECT: Final = "SELECT kind, namespace, name, service, manifest, made FROM objects"
# The claims of each contested address, in the order in which they may have it: a node port gives way to whoever names
# the address (S48), then the oldest comes first (C7)
_CONTESTED: Final = """
SELECT f.address, f.port, f.protocol, f.kind, f.held, f.number, p.namespace, p.service, o.made
FROM frontends f JOIN service_ports p USING (number)
LEFT JOIN objects o ON (o.kind, o.namespace, o.name) = ('Service', p.namespace, p.service)
WHERE (f.address, f.port, f.protocol) IN (SELECT address, port, protocol FROM frontends WHERE NOT held)
ORDER BY f.address, f.port, f.protocol,
    f.kind = 'node-port', coalesce(o.made, '') = '', o.made, p.namespace, p.service, f.number
"""

Key = tuple[str, str, str]
ServiceKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Stored:
    """One object as it was applied: kind, namespace, name, the service of a slice, its manifest as JSON text, and when
    a service was made ("" where nobody says).
    """

    kind: str
    namespace: str
    name: str
    service: str | None
    manifest: str
    made: str = ""

    @property
    def key(self) -> Key:
        """Kind, namespace, name."""
        return (self.kind, self.namespace, self.name)


class HostChange(StrEnum):
    """What load does to a host: a filter or clsact at an interface, a route, a neighbour entry, a sysctl."""

    CLSACT = "clsact"
    FILTER = "filter"
    ROUTE = "route"
    NEIGHBOUR = "neighbour"
    SYSCTL = "sysctl"


class RecordedPort(NamedTuple):
    """A service port that has a number. `called` is the port that clients call (None: at no address now)."""

    namespace: str
    service: str
    port: str
    protocol: str
    called: int | None

    def __str__(self) -> str:
        if not self.namespace:
            return f"port-forward {self.service}"
        return f"{self.namespace}/{self.service}:{self.port or self.called}"


class _Contested(NamedTuple):
    """One claim of an address that several services claim."""

    at: Address
    kind: str
    held: bool
    number: int
    service: ServiceKey
    made: str


class Shadow(NamedTuple):
    """A service that is not called at an address, because another one is. Both are `namespace/name`."""

    address: Address
    service: str
    holder: str
    reason: str

    def __str__(self) -> str:
        return f"{titled(self.service)}: {self.address} belongs to {titled(self.holder)}, {self.reason}"


class Records:
    """The database of one instance. A context manager: what was done in the block is kept, or after an error undone."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        self._path = path
        fresh = create and not path.exists()
        try:
            # mode=rw: an absent database is NotLoaded's business, not an empty one made in passing
            self._db = sqlite3.connect(
                f"file:{path}?mode={'rwc' if create else 'rw'}", uri=True, timeout=BUSY_SECONDS, isolation_level=None
            )
            if fresh:
                path.chmod(0o600)
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")
            # The folder is a tmpfs that a power cut empties anyway
            self._db.execute("PRAGMA synchronous = OFF")
            self._db.execute("PRAGMA foreign_keys = ON")
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            while create and version in _STEPS:
                steps = ("BEGIN", *_STEPS[version], f"PRAGMA user_version = {version + 1}", "COMMIT")
                self._db.executescript(";\n".join(steps))
                version += 1
        except sqlite3.Error as error:
            raise self._damaged(error) from error
        if version != SCHEMA_VERSION:
            raise DatapathError(
                f"the records {path} are of version {version}, this pydatapath writes {SCHEMA_VERSION}",
                hint="use the version that made them, or `pydatapath unload`",
            )

    def _damaged(self, error: sqlite3.Error) -> DatapathError:
        return DatapathError(
            f"the records {self._path} cannot be read: {error}",
            hint="traffic goes on as it is; `pydatapath unload` and `load` start afresh",
        )

    def __enter__(self) -> Self:
        try:
            self._db.execute("BEGIN")
        except sqlite3.Error as error:
            raise self._damaged(error) from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        try:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK" if kind is not None else "COMMIT")
        finally:
            self._db.close()
        if isinstance(error, sqlite3.Error):
            raise self._damaged(error) from error

    def commit(self) -> None:
        """Keeps what was done so far, before something is done to the kernel that must be known afterwards."""
        self._db.execute("COMMIT")
        self._db.execute("BEGIN")

    def rollback(self) -> None:
        """Undoes what was done since the last commit."""
        self._db.execute("ROLLBACK")
        self._db.execute("BEGIN")

    # Facts: what load was given and found

    def get(self, name: str, default: Any = None) -> Any:
        """A fact, as JSON keeps it."""
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return default if row is None else json.loads(row[0])

    def put(self, facts: Mapping[str, Any]) -> None:
        """Keeps facts."""
        self._db.executemany(
            "INSERT OR REPLACE INTO facts VALUES (?, ?)", [(name, json.dumps(value)) for name, value in facts.items()]
        )

    # Objects

    def objects(self, kind: str | None = None) -> list[Stored]:
        """All objects, of one kind or of any, ordered."""
        rows = self._db.execute(f"{_OBJECT} WHERE ? IS NULL OR kind = ?", (kind, kind))
        return [Stored(*row) for row in rows]

    def count(self, kind: str) -> int:
        """How many objects of one kind there are."""
        return int(self._db.execute("SELECT count(*) FROM objects WHERE kind = ?", (kind,)).fetchone()[0])

    def keys(self) -> set[Key]:
        """The key of every object."""
        return {(row[0], row[1], row[2]) for row in self._db.execute("SELECT kind, namespace, name FROM objects")}

    def object(self, kind: str, namespace: str, name: str) -> Stored | None:
        """One object."""
        row = self._db.execute(
            f"{_OBJECT} WHERE (kind, namespace, name) = (?, ?, ?)", (kind, namespace, name)
        ).fetchone()
        return None if row is None else Stored(*row)

    def slices(self, namespace: str, service: str) -> list[Stored]:
        """The slices of one service, by name."""
        rows = self._db.execute(f"{_OBJECT} WHERE namespace = ? AND service = ? ORDER BY name", (namespace, service))
        return [Stored(*row) for row in rows]

    def store(self, objects: Iterable[Stored]) -> None:
        """Writes objects, new or changed."""
        self._db.executemany(
            "INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?, ?)",
            [(one.kind, one.namespace, one.name, one.service, one.manifest, one.made) for one in objects],
        )

    def forget(self, keys: Iterable[Key]) -> None:
        """Deletes objects."""
        self._db.executemany("DELETE FROM objects WHERE (kind, namespace, name) = (?, ?, ?)", list(keys))

    # Service ports and the addresses that call them

    def ports(self) -> dict[int, RecordedPort]:
        """Every service port by its number."""
        rows = self._db.execute(
            "SELECT p.number, p.namespace, p.service, p.port, p.protocol, min(f.port)"
            " FROM service_ports p LEFT JOIN frontends f ON f.number = p.number AND f.kind != 'node-port'"
            " GROUP BY p.number"
        )
        return {row[0]: RecordedPort(*row[1:]) for row in rows}

    def frontends_of(self, namespace: str, service: str) -> dict[int, list[Address]]:
        """The numbers of a service's ports, each with the addresses that call it."""
        rows = self._db.execute(
            "SELECT p.number, f.address, f.port, f.protocol"
            " FROM service_ports p LEFT JOIN frontends f ON f.number = p.number AND f.held"
            " WHERE p.namespace = ? AND p.service = ?",
            (namespace, service),
        )
        found: dict[int, list[Address]] = {}
        for number, address, port, protocol in rows:
            found.setdefault(number, [])
            if address is not None:
                found[number].append(Address(address, port, protocol))
        return found

    def release(self, namespace: str, service: str) -> dict[int, list[Address]]:
        """Takes a service's addresses from it, so that others may have them. Returns what it had."""
        had = self.frontends_of(namespace, service)
        self._db.executemany("DELETE FROM frontends WHERE number = ?", [(number,) for number in had])
        return had

    def register(self, namespace: str, service: str, ports: list[PortPlan]) -> dict[tuple[str, ...], int]:
        """Makes these the ports of a released service, each with its number and the addresses that it claims.

        Who has an address that several claim is decided by `settle`.
        """
        staying = {port.key for port in ports}
        over = [(number,) for key, number in self.numbers_of(namespace, service).items() if key not in staying]
        self._db.executemany("DELETE FROM service_ports WHERE number = ?", over)
        self._db.executemany(
            "INSERT OR IGNORE INTO service_ports (namespace, service, port, protocol, family) VALUES (?, ?, ?, ?, ?)",
            [port.key for port in ports],
        )
        numbers = self.numbers_of(namespace, service)
        self._db.executemany(
            "INSERT INTO frontends VALUES (?1, ?2, ?3, ?4, ?5, NOT EXISTS ("
            "SELECT 1 FROM frontends WHERE (address, port, protocol) = (?1, ?2, ?3) AND held))",
            [
                (one.address.address, one.address.port, one.address.protocol, numbers[port.key], one.kind)
                for port in ports
                for one in port.frontends
            ],
        )
        return numbers

    def settle(self) -> dict[ServiceKey, dict[int, list[Address]]]:
        """Gives each address that several services claim to the first of them: the oldest, and of equals by name (C7).

        Returns the services that gain or lose one, each with the addresses that called its ports until now.
        """
        moved = [one for first, *others in self._contested() for one in (first, *others) if one.held != (one is first)]
        had = {one.service: self.frontends_of(*one.service) for one in moved}
        for one in sorted(moved, key=lambda one: not one.held):  # an address is held once
            self._db.execute(
                "UPDATE frontends SET held = NOT held WHERE (address, port, protocol, number) = (?, ?, ?, ?)",
                (one.at.address, one.at.port, one.at.protocol, one.number),
            )
        return had

    def shadows(self) -> list[Shadow]:
        """Every service that is not called at an address which it claims, and why."""
        return [
            Shadow(one.at, "/".join(one.service), "/".join(first.service), _reason(first, one))
            for first, *others in self._contested()
            for one in others
        ]

    def _contested(self) -> Iterator[list[_Contested]]:
        rows = [
            _Contested(Address(*row[:3]), row[3], bool(row[4]), row[5], (row[6], row[7]), row[8] or "")
            for row in self._db.execute(_CONTESTED)
        ]
        return (list(claims) for _, claims in groupby(rows, key=lambda one: one.at))

    def claim(self, namespace: str, service: str, claims: Mapping[Claim, ClaimKind]) -> None:
        """Keeps what a service claims, on whatever node."""
        self._db.execute("DELETE FROM claims WHERE (namespace, service) = (?, ?)", (namespace, service))
        self._db.executemany(
            "INSERT INTO claims VALUES (?, ?, ?, ?, ?, ?)",
            [(*claim, namespace, service, kind) for claim, kind in claims.items()],
        )

    def holdings(self, claims: Iterable[Claim]) -> dict[Claim, list[Holding]]:
        """Who claims these."""
        found = {}
        for claim in claims:
            rows = self._db.execute(
                "SELECT c.namespace || '/' || c.service, o.made, c.kind FROM claims c"
                " JOIN objects o ON (o.kind, o.namespace, o.name) = ('Service', c.namespace, c.service)"
                " WHERE (c.address, c.port, c.protocol) = (?, ?, ?)",
                claim,
            )
            found[claim] = [Holding(*row) for row in rows]
        return found

    def holders(self, places: Iterable[Address]) -> list[str]:
        """Who has a claim to one of these places of the node, titled: those called there, and those who may be called
        at every node's.
        """
        found: dict[str, None] = {}
        for at in places:
            rows = self._db.execute(
                "SELECT p.namespace, p.service FROM frontends f JOIN service_ports p USING (number)"
                " WHERE (f.address, f.port, f.protocol) = (?1, ?2, ?3)"
                " UNION SELECT namespace, service FROM claims WHERE (address, port, protocol) IN"
                " (VALUES ('', ?2, ?3), (?1, ?2, ?3))",
                (at.address, at.port, at.protocol),
            )
            found |= dict.fromkeys(titled(f"{namespace}/{service}") for namespace, service in rows)
        return list(found)

    def numbers_of(self, namespace: str, service: str) -> dict[tuple[str, ...], int]:
        """The number of each of a service's ports, by what names it."""
        rows = self._db.execute(
            "SELECT number, namespace, service, port, protocol, family FROM service_ports"
            " WHERE namespace = ? AND service = ?",
            (namespace, service),
        )
        return {tuple(names): number for number, *names in rows}

    def used_addresses(self) -> set[str]:
        """Every address that a service claims."""
        return {row[0] for row in self._db.execute("SELECT DISTINCT address FROM frontends")}

    # Changes to the host

    def note_host_change(self, kind: HostChange, subject: str) -> None:
        """Remembers, before it is done, something that unload must take back."""
        self._db.execute("INSERT OR IGNORE INTO host_changes VALUES (?, ?)", (kind, subject))
        self.commit()

    def forget_host_change(self, kind: HostChange, subject: str) -> None:
        """It is taken back."""
        self._db.execute("DELETE FROM host_changes WHERE (kind, subject) = (?, ?)", (kind, subject))

    def host_changes(self, kind: HostChange) -> list[str]:
        """What was done of one kind."""
        rows = self._db.execute("SELECT subject FROM host_changes WHERE kind = ? ORDER BY subject", (kind,))
        return [row[0] for row in rows]


def titled(key: str) -> str:
    """What stands behind `namespace/name`: a forward of a port has no namespace."""
    return f"port-forward {key[1:]}" if key.startswith("/") else f"Service {key}"


def _reason(holder: _Contested, other: _Contested) -> str:
    """Why one of two has the address."""
    if (holder.kind == "node-port") != (other.kind == "node-port"):
        return "which names the address itself"
    if holder.made == other.made:
        return "which comes first by name"
    return "which is older" if other.made else "which says when it was made"
