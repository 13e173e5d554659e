"""What was asked of an instance, in SQLite beside its pins: objects, the numbers given to service ports, host changes.

The live maps are the truth about the kernel, this is the truth about the wish. A change is one transaction.
"""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from pydatapath.claims import Claim, ClaimKind, Holding
from pydatapath.errors import DatapathError
from pydatapath.kernel.layout import Family, MemberKind
from pydatapath.membership import Members, kind_of
from pydatapath.plan import Address, PortPlan
from pydatapath.record_copy import INCOMPLETE, PLANNED, follow
from pydatapath.record_faults import (
    CHANGES,
    SQLITE_ERRORS,
    copy_of,
    count_of,
    damage_in,
    damaged,
    explained,
    refuse_damaged,
    summed,
    wrong_number,
    wrong_version,
)
from pydatapath.record_files import make_database, open_database
from pydatapath.record_tables import SCHEMA_VERSION, STEPS

__all__ = ["HostChange", "RecordedPort", "Records", "Shadow", "Stored"]

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
PortKey = tuple[str, ...]


class Stored(NamedTuple):
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
        try:
            if create and not path.exists():
                make_database(path)
            if not path.exists():
                mends = "`pydatapath repair` takes their copy" if copy_of(path).exists() else "`pydatapath load`"
                raise DatapathError(f"the records {path} cannot be read: there are none", hint=mends)
            self._db, version = open_database(path)
            if version != SCHEMA_VERSION and (wrong := wrong_number(self._db)):
                self._db.close()
                raise damaged(path, wrong)
            if create:
                self._db.execute("PRAGMA journal_mode = WAL")  # a copy that has taken their place may have none
            while create and version in STEPS:
                steps = ("BEGIN", *STEPS[version], f"PRAGMA user_version = {version + 1}", "COMMIT")
                self._db.executescript(";\n".join(steps))
                version += 1
        except SQLITE_ERRORS as error:
            raise explained(path, error) from error
        if version != SCHEMA_VERSION:
            self._db.close()
            raise wrong_version(path, version)

    def __enter__(self) -> Self:
        try:
            self._db.execute("BEGIN")
            count = count_of(self._db)
        except SQLITE_ERRORS as error:
            self._db.close()
            raise explained(self._path, error) from error
        if count is None:
            self._db.close()
            raise damaged(self._path, f"the fact {CHANGES!r} makes no sense")
        self._since = self._changes = count
        self._seen, self._copied = self._db.total_changes, True
        self._noted: defaultdict[str, dict[tuple[str | int, ...], None]] = defaultdict(dict)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        try:
            if kind is None:
                self._commit()
            elif self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if isinstance(error, Exception) and not isinstance(error, DatapathError | sqlite3.Error):
                refuse_damaged(self._path, self._db, error)
            if not self._copied:
                follow(self._path, self._db, self._since, self._noted)
        except SQLITE_ERRORS as failed:
            raise explained(self._path, failed) from failed
        finally:
            self._db.close()
        if isinstance(error, sqlite3.Error):
            raise explained(self._path, error) from error

    def commit(self) -> None:
        """Keeps what was done so far, before something is done to the kernel that must be known afterwards."""
        self._commit()
        self._db.execute("BEGIN")

    def _commit(self) -> None:
        if self._db.total_changes != self._seen:
            self._changes += 1
            self.put({CHANGES: self._changes})
            self._copied = False
        self._db.execute("COMMIT")
        self._seen = self._db.total_changes

    def rollback(self) -> None:
        """Undoes what was done since the last commit."""
        self._db.execute("ROLLBACK")
        self._db.execute("BEGIN")
        self._seen = self._db.total_changes

    def _note(self, table: str, keys: Iterable[tuple[str | int, ...]]) -> None:
        """Rows of a table are changed: the copy follows."""
        self._noted[table].update(dict.fromkeys(keys))

    @property
    def incomplete(self) -> bool:
        """Whether they are a copy that lacks what follows from its objects."""
        return bool(self.get(INCOMPLETE, False))

    def begin_anew(self) -> None:
        """Nothing that follows from the objects is there: who calls this registers, and claims, for all of them."""
        for table in PLANNED:
            self._db.execute(f"DELETE FROM {table}")  # noqa: S608 - our own words
        self._db.execute("DELETE FROM facts WHERE name = ?", (INCOMPLETE,))

    def keep_copy(self) -> None:
        """At the end the copy is looked after, also where nothing is changed: a kill may have left it behind."""
        self._copied = False

    def damage(self) -> str:
        """What is wrong with what was written here, "" for nothing that can be seen. It takes a while for much."""
        return damage_in(self._db)

    def _asking(self, table: str, keys: Iterable[tuple[str | int, ...]], columns: str, query: str) -> sqlite3.Cursor:
        """The rows of a query of a table to which the keys, of which there may be thousands, are the table `asked`.

        CROSS JOIN keeps SQLite from reading the other table as a whole (sqlite.org/optoverview.html 8.2).
        """
        if not self._db.execute(f"SELECT EXISTS (SELECT * FROM {table})").fetchone()[0]:  # noqa: S608 - our own words
            keys = ()  # a first apply would ask for nothing some ten thousand times
        values = ", ".join(f"json_extract(value, '$[{place}]')" for place in range(columns.count(",") + 1))
        asked = f"WITH asked ({columns}) AS (SELECT {values} FROM json_each(?))"  # noqa: S608 - our own words
        return self._db.execute(f"{asked} {query}", (json.dumps(list(keys)),))

    # Facts: what load was given and found

    def get(self, name: str, default: Any = None) -> Any:
        """A fact, as JSON keeps it."""
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return default if row is None else json.loads(row[0])

    def put(self, facts: Mapping[str, Any]) -> None:
        """Keeps facts."""
        self._note("facts", ((name,) for name in facts))
        self._db.executemany(
            "INSERT OR REPLACE INTO facts VALUES (?, ?, ?)",
            [summed(name, json.dumps(value)) for name, value in facts.items()],
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
        return self.these([(kind, namespace, name)]).get((kind, namespace, name))

    def these(self, keys: Iterable[Key]) -> dict[Key, Stored]:
        """Those of these objects that there are."""
        joined = f"{_OBJECT} JOIN asked USING (kind, namespace, name)"
        rows = self._asking("objects", keys, "kind, namespace, name", joined)
        return {row[:3]: Stored(*row) for row in rows}

    def slices(self, services: Collection[ServiceKey]) -> dict[ServiceKey, list[Key]]:
        """The keys of the slices of each of these services, by name."""
        rows = self._asking(
            "objects",
            services,
            "namespace, service",
            "SELECT namespace, service, kind, name FROM asked CROSS JOIN objects USING (namespace, service)",
        )
        found: dict[ServiceKey, list[Key]] = {key: [] for key in services}
        for namespace, service, kind, name in rows:
            found[namespace, service].append((kind, namespace, name))
        return {key: sorted(each) for key, each in found.items()}

    def store(self, objects: Iterable[Stored]) -> None:
        """Writes objects, new or changed."""
        rows = {one[:3]: one for one in objects}
        keys = sorted(rows)  # in the order of its keys a table is written page by page
        self._note("objects", keys)
        self._db.executemany(
            "INSERT OR REPLACE INTO objects (kind, namespace, name, service, manifest, made, sum)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            [summed(*rows[key]) for key in keys],
        )

    def forget(self, keys: Iterable[Key]) -> None:
        """Deletes objects."""
        keys = list(keys)
        self._note("objects", keys)
        self._db.executemany("DELETE FROM objects WHERE (kind, namespace, name) = (?, ?, ?)", keys)

    # Nodes

    def join(self, node: str, members: Members) -> None:
        """Makes these all that a node brings; nothing, where it is over."""
        self._note("members", ((network, node) for network in {*members, *self.members_of(node)}))
        self._db.execute("DELETE FROM members WHERE node = ?", (node,))
        self._db.executemany(
            "INSERT INTO members VALUES (?, ?, ?)", [(network, node, kind) for network, kind in members.items()]
        )

    def members_of(self, node: str) -> set[str]:
        """The networks that a node brings."""
        return {row[0] for row in self._db.execute("SELECT network FROM members WHERE node = ?", (node,))}

    def members(self, networks: Iterable[str] | None = None) -> dict[str, MemberKind]:
        """All that nodes bring, or what of these networks they do."""
        if networks is None:
            rows = self._db.execute("SELECT network, kind FROM members").fetchall()
        else:
            rows = [
                row
                for network in networks
                for row in self._db.execute("SELECT network, kind FROM members WHERE network = ?", (network,))
            ]
        kinds: dict[str, list[MemberKind]] = {}
        for network, kind in rows:
            kinds.setdefault(network, []).append(MemberKind(kind))
        return {network: kind_of(each) for network, each in kinds.items()}

    def shared_members(self, nodes: Iterable[str] | None = None) -> dict[str, list[str]]:
        """The networks that several nodes bring, each with these, by name; only those that some of `nodes` bring."""
        query = "SELECT network, node FROM members WHERE network IN ({}) ORDER BY network, node"
        if nodes is None:
            rows = self._db.execute(query.format("SELECT network FROM members GROUP BY network HAVING count(*) > 1"))
        else:
            own = "SELECT network FROM asked CROSS JOIN members USING (node)"
            rows = self._asking("members", ((one,) for one in nodes), "node", query.format(own))
        found = {network: [row[1] for row in each] for network, each in groupby(rows, key=lambda row: row[0])}
        return {network: names for network, names in found.items() if len(names) > 1}

    def members_bound(self) -> int:
        """Than which nodes do not bring more networks: a network that two bring counts twice."""
        return int(self._db.execute("SELECT count(*) FROM members").fetchone()[0])

    def count_members(self) -> dict[Family, int]:
        """How many networks nodes bring, of each family."""
        rows = self._db.execute("SELECT instr(network, ':') > 0, count(DISTINCT network) FROM members GROUP BY 1")
        return {Family.IPV6 if six else Family.IPV4: count for six, count in rows}

    # Service ports and the addresses that call them

    def ports(self) -> dict[int, RecordedPort]:
        """Every service port by its number."""
        rows = self._db.execute(
            "SELECT p.number, p.namespace, p.service, p.port, p.protocol, min(f.port)"
            " FROM service_ports p LEFT JOIN frontends f ON f.number = p.number AND f.kind != 'node-port'"
            " GROUP BY p.number"
        )
        return {row[0]: RecordedPort(*row[1:]) for row in rows}

    def frontends_of(self, services: Iterable[ServiceKey]) -> dict[int, list[Address]]:
        """The numbers of these services' ports, each with the addresses that call it."""
        rows = self._asking(
            "service_ports",
            services,
            "namespace, service",
            "SELECT p.number, f.address, f.port, f.protocol FROM asked CROSS JOIN service_ports p"
            " USING (namespace, service) LEFT JOIN frontends f ON f.number = p.number AND f.held",
        )
        found: dict[int, list[Address]] = {}
        for number, address, port, protocol in rows:
            found.setdefault(number, [])
            if address is not None:
                found[number].append(Address(address, port, protocol))
        return found

    def release(self, services: Iterable[ServiceKey]) -> dict[int, list[Address]]:
        """Takes these services' addresses from them, so that others may have them. Returns what they had."""
        had = self.frontends_of(services)
        self._db.executemany("DELETE FROM frontends WHERE number = ?", [(number,) for number in had])
        return had

    def register(self, services: Mapping[ServiceKey, list[PortPlan]]) -> dict[PortKey, int]:
        """Makes these the ports of released services, each with its number and the addresses that it claims.

        Who has an address that several claim is decided by `settle`.
        """
        ports = {port.key: port for plans in services.values() for port in plans}
        self._db.executemany(
            "INSERT OR IGNORE INTO service_ports (namespace, service, port, protocol, family) VALUES (?, ?, ?, ?, ?)",
            list(ports),
        )
        numbers = self.numbers_of(services)
        self._note("service_ports", ((number,) for number in numbers.values()))
        over = [key for key in numbers if key not in ports]
        self._db.executemany("DELETE FROM service_ports WHERE number = ?", [(numbers.pop(key),) for key in over])
        self._db.executemany(
            "INSERT INTO frontends VALUES (?1, ?2, ?3, ?4, ?5, NOT EXISTS ("
            "SELECT 1 FROM frontends WHERE (address, port, protocol) = (?1, ?2, ?3) AND held))",
            sorted((*one.address, numbers[key], one.kind) for key, port in ports.items() for one in port.frontends),
        )
        return numbers

    def settle(self) -> dict[ServiceKey, dict[int, list[Address]]]:
        """Gives each address that several services claim to the first of them: the oldest, and of equals by name (C7).

        Returns the services that gain or lose one, each with the addresses that called its ports until now.
        """
        moved = [one for first, *others in self._contested() for one in (first, *others) if one.held != (one is first)]
        had = {one.service: self.frontends_of([one.service]) for one in moved}
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

    def shadowed(self) -> dict[int, set[Address]]:
        """The numbers of the service ports that are not called at an address which they claim, each with these."""
        found: dict[int, set[Address]] = {}
        for number, *address in self._db.execute(
            "SELECT number, address, port, protocol FROM frontends WHERE NOT held"
        ):
            found.setdefault(number, set()).add(Address(*address))
        return found

    def _contested(self) -> Iterator[list[_Contested]]:
        rows = [
            _Contested(Address(*row[:3]), row[3], bool(row[4]), row[5], (row[6], row[7]), row[8] or "")
            for row in self._db.execute(_CONTESTED)
        ]
        return (list(claims) for _, claims in groupby(rows, key=lambda one: one.at))

    def claim(self, claims: Mapping[ServiceKey, Mapping[Claim, ClaimKind]]) -> None:
        """Keeps what services claim, on whatever node."""
        over = "DELETE FROM claims WHERE (namespace, service) IN (SELECT namespace, service FROM asked)"
        self._asking("claims", claims, "namespace, service", over)
        self._db.executemany(
            "INSERT INTO claims VALUES (?, ?, ?, ?, ?, ?)",
            sorted((*claim, *service, kind) for service, each in claims.items() for claim, kind in each.items()),
        )

    def holdings(self, claims: Iterable[Claim]) -> dict[Claim, list[Holding]]:
        """Who claims these; of those that somebody does."""
        rows = self._asking(
            "claims",
            claims,
            "address, port, protocol",
            "SELECT address, port, protocol, c.namespace || '/' || c.service, o.made, c.kind"
            " FROM asked CROSS JOIN claims c USING (address, port, protocol)"
            " CROSS JOIN objects o ON (o.kind, o.namespace, o.name) = ('Service', c.namespace, c.service)",
        )
        found: dict[Claim, list[Holding]] = {}
        for row in rows:
            found.setdefault(Claim(*row[:3]), []).append(Holding(*row[3:]))
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

    def ports_of_services(self, addresses: Iterable[str]) -> dict[tuple[str, str], set[int]]:
        """By address and protocol, in small letters, the ports at which services and forwards are called there."""
        found: dict[tuple[str, str], set[int]] = {}
        for address in addresses:
            for protocol, port in self._db.execute(
                "SELECT lower(protocol), port FROM frontends WHERE address = ? AND held", (address,)
            ):
                found.setdefault((address, protocol), set()).add(port)
        return found

    def numbers_of(self, services: Iterable[ServiceKey]) -> dict[PortKey, int]:
        """The number of each of these services' ports, by what names it."""
        rows = self._asking(
            "service_ports",
            services,
            "namespace, service",
            "SELECT number, namespace, service, port, protocol, family"
            " FROM asked CROSS JOIN service_ports USING (namespace, service)",
        )
        return {row[1:]: row[0] for row in rows}

    def used_addresses(self) -> set[str]:
        """Every address that a service claims."""
        return {row[0] for row in self._db.execute("SELECT DISTINCT address FROM frontends")}

    # Changes to the host

    def note_host_change(self, kind: HostChange, subject: str) -> None:
        """Remembers, before it is done, something that unload must take back."""
        self._note("host_changes", [(kind, subject)])
        self._db.execute("INSERT OR IGNORE INTO host_changes VALUES (?, ?, ?)", summed(kind, subject))
        self.commit()

    def forget_host_change(self, kind: HostChange, subject: str) -> None:
        """It is taken back."""
        self._note("host_changes", [(kind, subject)])
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
