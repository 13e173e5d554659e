"""What was asked of an instance, in SQLite beside its pins: objects, the numbers given to service ports, host changes.

The live maps are the truth about the kernel, this is the truth about the wish. A change is one transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from pydatapath.errors import Conflict, DatapathError
from pydatapath.plan import Address, Frontend, FrontendKind, PortPlan

__all__ = ["HostChange", "RecordedPort", "Records", "Stored"]

SCHEMA_VERSION: Final = 2
BUSY_SECONDS: Final = 30.0
_SCHEMA: Final = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE objects (
    kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
    service TEXT,                                -- of a slice: the name of its service
    manifest TEXT NOT NULL,
    PRIMARY KEY (kind, namespace, name)
) WITHOUT ROWID;
CREATE INDEX slices_of ON objects (namespace, service) WHERE service IS NOT NULL;
CREATE TABLE service_ports (
    number INTEGER PRIMARY KEY AUTOINCREMENT,    -- stands in the maps
    namespace TEXT NOT NULL, service TEXT NOT NULL, port TEXT NOT NULL, protocol TEXT NOT NULL,
    UNIQUE (namespace, service, port, protocol)
);
CREATE TABLE frontends (
    address TEXT NOT NULL, port INTEGER NOT NULL, protocol TEXT NOT NULL,
    number INTEGER NOT NULL REFERENCES service_ports (number) ON DELETE CASCADE,
    kind TEXT NOT NULL DEFAULT 'cluster-ip',     -- Frontend.kind
    PRIMARY KEY (address, port, protocol)
) WITHOUT ROWID;
CREATE INDEX frontends_of ON frontends (number);
CREATE TABLE host_changes (
    kind TEXT NOT NULL, subject TEXT NOT NULL,   -- what we did to the host, for unload to take back
    PRIMARY KEY (kind, subject)
) WITHOUT ROWID;
"""
# Version 1 knew cluster IPs only
_FROM_VERSION_1: Final = "ALTER TABLE frontends ADD COLUMN kind TEXT NOT NULL DEFAULT 'cluster-ip'"
# What to do where an address is taken, by how it is called
_CONFLICT_HINTS: Final[Mapping[FrontendKind, str]] = {
    "cluster-ip": "a cluster IP and port belong to one service: change spec.clusterIP or spec.ports",
    "node-port": "a node port belongs to one service: change spec.ports[].nodePort",
    "external-ip": "an external IP and port belong to one service: change spec.externalIPs or spec.ports",
    "load-balancer-ip": "a load balancer's IP and port belong to one service: change spec.ports, or ask for another IP",
}

Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Stored:
    """One object as it was applied: kind, namespace, name, the service of a slice, its manifest as JSON text."""

    kind: str
    namespace: str
    name: str
    service: str | None
    manifest: str

    @property
    def key(self) -> Key:
        """Kind, namespace, name."""
        return (self.kind, self.namespace, self.name)


class HostChange(StrEnum):
    """What load does to a host: a filter or clsact at an interface, a route, a neighbour entry."""

    CLSACT = "clsact"
    FILTER = "filter"
    ROUTE = "route"
    NEIGHBOUR = "neighbour"


class RecordedPort(NamedTuple):
    """A service port that has a number. `called` is the port that clients call (None: at no address now)."""

    namespace: str
    service: str
    port: str
    protocol: str
    called: int | None

    def __str__(self) -> str:
        return f"{self.namespace}/{self.service}:{self.port or self.called}"


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
            if create and version == 1:
                self._db.executescript(f"BEGIN;{_FROM_VERSION_1};PRAGMA user_version = {SCHEMA_VERSION};COMMIT;")
                version = SCHEMA_VERSION
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
        rows = self._db.execute(
            "SELECT kind, namespace, name, service, manifest FROM objects WHERE ? IS NULL OR kind = ?", (kind, kind)
        )
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
            "SELECT kind, namespace, name, service, manifest FROM objects WHERE (kind, namespace, name) = (?, ?, ?)",
            (kind, namespace, name),
        ).fetchone()
        return None if row is None else Stored(*row)

    def slices(self, namespace: str, service: str) -> list[Stored]:
        """The slices of one service, by name."""
        rows = self._db.execute(
            "SELECT kind, namespace, name, service, manifest FROM objects"
            " WHERE namespace = ? AND service = ? ORDER BY name",
            (namespace, service),
        )
        return [Stored(*row) for row in rows]

    def store(self, objects: Iterable[Stored]) -> None:
        """Writes objects, new or changed."""
        self._db.executemany(
            "INSERT OR REPLACE INTO objects VALUES (?, ?, ?, ?, ?)",
            [(one.kind, one.namespace, one.name, one.service, one.manifest) for one in objects],
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
            "SELECT p.number, f.address, f.port, f.protocol FROM service_ports p LEFT JOIN frontends f USING (number)"
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
        """Takes a service's addresses from it, so that others may claim them. Returns what it had."""
        had = self.frontends_of(namespace, service)
        self._db.executemany("DELETE FROM frontends WHERE number = ?", [(number,) for number in had])
        return had

    def register(self, namespace: str, service: str, ports: list[PortPlan]) -> dict[tuple[str, ...], int]:
        """Makes these the ports of a released service, each with its number and the addresses that call it.

        Raises Conflict where another service has one of the addresses.
        """
        staying = {port.key for port in ports}
        over = [number for number, key in self._numbers(namespace, service).items() if key not in staying]
        self._db.executemany("DELETE FROM service_ports WHERE number = ?", [(number,) for number in over])
        self._db.executemany(
            "INSERT OR IGNORE INTO service_ports (namespace, service, port, protocol) VALUES (?, ?, ?, ?)",
            [port.key for port in ports],
        )
        numbers = {key: number for number, key in self._numbers(namespace, service).items()}
        for port in ports:
            for frontend in port.frontends:
                self._claim(frontend, numbers[port.key], f"{namespace}/{service}")
        return {port.key: numbers[port.key] for port in ports}

    def _numbers(self, namespace: str, service: str) -> dict[int, tuple[str, str, str, str]]:
        rows = self._db.execute(
            "SELECT number, namespace, service, port, protocol FROM service_ports WHERE namespace = ? AND service = ?",
            (namespace, service),
        )
        return {row[0]: (row[1], row[2], row[3], row[4]) for row in rows}

    def _claim(self, frontend: Frontend, number: int, service: str) -> None:
        at = frontend.address
        try:
            self._db.execute(
                "INSERT INTO frontends (address, port, protocol, number, kind) VALUES (?, ?, ?, ?, ?)",
                (at.address, at.port, at.protocol, number, frontend.kind),
            )
        except sqlite3.IntegrityError:
            row = self._db.execute(
                "SELECT p.namespace, p.service FROM frontends f JOIN service_ports p USING (number)"
                " WHERE (f.address, f.port, f.protocol) = (?, ?, ?)",
                (at.address, at.port, at.protocol),
            ).fetchone()
            raise Conflict(
                f"Service {service}: {at} is taken by Service {row[0]}/{row[1]}", hint=_CONFLICT_HINTS[frontend.kind]
            ) from None

    def used_addresses(self) -> set[str]:
        """Every address that a service is called at."""
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
