"""The tables of an instance's records, as SQL, and the steps that make them of older ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["NEW_COLUMNS", "SCHEMA", "SCHEMA_VERSION", "STEPS"]

SCHEMA_VERSION: Final = 5
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
# What Nodes bring: two may bring the same, and then one stays when the other goes
_MEMBERS: Final = """
CREATE TABLE members (
    network TEXT NOT NULL, node TEXT NOT NULL,
    kind INTEGER NOT NULL,                       -- MemberKind
    PRIMARY KEY (network, node)
) WITHOUT ROWID;
CREATE INDEX members_of ON members (node);
"""
SCHEMA: Final = f"""
CREATE TABLE facts (
    name TEXT PRIMARY KEY, value TEXT NOT NULL,
    sum INTEGER                                  -- record_faults.sum_of all before it, as in the tables below
) WITHOUT ROWID;
CREATE TABLE objects (
    kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
    service TEXT,                                -- of a slice: the name of its service
    manifest TEXT NOT NULL,
    made TEXT NOT NULL DEFAULT '',               -- of a service: its creationTimestamp, as text that sorts
    sum INTEGER,
    PRIMARY KEY (kind, namespace, name)
) WITHOUT ROWID;
CREATE INDEX slices_of ON objects (namespace, service) WHERE service IS NOT NULL;
{_NUMBERS}
{_PLACES}
{_MEMBERS}
CREATE TABLE host_changes (
    kind TEXT NOT NULL, subject TEXT NOT NULL,   -- what we did to the host, for unload to take back
    sum INTEGER,
    PRIMARY KEY (kind, subject)
) WITHOUT ROWID;
"""
# Version 1 knew cluster IPs only, version 2 one service at an address and no IPv6; `load`, which alone brings records
# up to date, then plans all services anew and fills `claims`. Version 3 knew no Nodes,
# version 4 no sums
STEPS: Final[Mapping[int, tuple[str, ...]]] = {
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
    3: (_MEMBERS,),
    4: tuple(f"ALTER TABLE {table} ADD COLUMN sum INTEGER" for table in ("facts", "objects", "host_changes")),
}
# What each version has and the one before it has not: every one must have a column, or a table, of its own. By that a
# version that a flipped bit has changed is told from an older or a newer one
NEW_COLUMNS: Final[Mapping[int, frozenset[str]]] = {
    2: frozenset({"frontends.kind"}),
    3: frozenset(
        {
            *("objects.made", "service_ports.family", "frontends.held"),
            *(f"claims.{one}" for one in ("address", "port", "protocol", "namespace", "service", "kind")),
        }
    ),
    4: frozenset({"members.network", "members.node", "members.kind"}),
    5: frozenset({"facts.sum", "objects.sum", "host_changes.sum"}),
}
