"""What was asked for, in a real SQLite file: kept whole or not at all, and read back as it was."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pydatapath import applying, record_files
from pydatapath.claims import Claim, Holding
from pydatapath.errors import DatapathError
from pydatapath.kernel.layout import Family
from pydatapath.plan import Address, Frontend, FrontendKind, Here, PortPlan
from pydatapath.record_faults import damage_in
from pydatapath.record_tables import SCHEMA_VERSION, STEPS
from pydatapath.records import HostChange, RecordedPort, Records, Stored

WEB = Stored("Service", "shop", "web", None, '{"kind":"Service"}')
SLICE = Stored("EndpointSlice", "shop", "web-1", "web", "{}")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An empty database."""
    path = tmp_path / "state.db"
    with Records(path, create=True):
        pass
    return path


def port(service: str, *called: str, name: str = "http", kind: FrontendKind = "cluster-ip") -> PortPlan:
    addresses = [text.split(":") for text in called]
    frontends = tuple(Frontend(Address(address, int(number), "TCP"), kind) for address, number in addresses)
    return PortPlan("shop", service, name, "TCP", frontends, ())


def register(records: Records, service: str, *ports: PortPlan) -> dict[str, int]:
    """Gives a service these ports, as applying does: released first. Returns their numbers by port name."""
    records.release([("shop", service)])
    return {key[2]: number for key, number in records.register({("shop", service): [*ports]}).items()}


def fail_after(path: Path, change: Callable[[Records], None]) -> None:
    """A command that makes a change and then fails."""

    def change_and_fail(records: Records) -> None:
        change(records)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), Records(path) as records:
        change_and_fail(records)


def test_objects_are_kept_as_they_were_stored(path: Path) -> None:
    """What one command stores the next one reads, by key, by kind and by service."""
    with Records(path) as records:
        records.store([WEB, SLICE, Stored("EndpointSlice", "shop", "other-1", "other", "{}")])
    with Records(path) as records:
        assert records.object("Service", "shop", "web") == WEB
        assert records.object("Service", "shop", "absent") is None
        assert records.objects("Service") == [WEB]
        assert [one.name for one in records.objects()] == ["other-1", "web-1", "web"]
        assert records.slices([("shop", "web")]) == {("shop", "web"): [SLICE.key]}
        assert records.keys() == {WEB.key, SLICE.key, ("EndpointSlice", "shop", "other-1")}


def test_an_object_is_replaced_and_forgotten(path: Path) -> None:
    """There is one object of a key: the last that was stored, and none after it is forgotten."""
    newer = Stored("Service", "shop", "web", None, '{"kind":"Service","spec":{}}')
    with Records(path) as records:
        records.store([WEB])
        records.store([newer])
        assert records.objects() == [newer]
        records.forget([WEB.key, ("Service", "shop", "never there")])
        assert records.objects() == []


def test_facts_are_kept_as_json_keeps_them(path: Path) -> None:
    """A fact is any JSON value; what was never put is the default."""
    with Records(path) as records:
        records.put({"netns": "node1", "options": {"uplink": ["eth0"], "max_flows": 5}})
        records.put({"netns": "node2"})
        assert (records.get("netns"), records.get("options")["uplink"]) == ("node2", ["eth0"])
        assert (records.get("absent"), records.get("absent", "")) == (None, "")


def test_the_node_that_is_planned_for_is_the_one_that_load_found(path: Path) -> None:
    """Its name, its node ports' addresses, its zone, and how flows are shared; nothing of it before the first load."""
    with Records(path) as records:
        assert applying.here(records) == Here("", (), "", "random")
        facts = {"node_name": "node1", "node_port_addresses": ["192.168.50.11"], "zone": "a", "algorithm": "maglev"}
        records.put(facts)
        assert applying.here(records) == Here("node1", ("192.168.50.11",), "a", "maglev")


def test_only_the_owner_can_read_them(path: Path) -> None:
    """The records tell about a cluster's inside: mode 0600."""
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_error_undoes_all_of_a_block(path: Path) -> None:
    """What a block did is kept when it ends well, and none of it is after an error."""
    with Records(path) as records:
        records.store([WEB])
        register(records, "web", port("web", "10.96.0.10:80"))

    def change(records: Records) -> None:
        records.forget([WEB.key])
        register(records, "web")
        register(records, "api", port("api", "10.96.0.10:80"))

    fail_after(path, change)
    with Records(path) as records:
        assert records.objects() == [WEB]
        assert records.frontends_of([("shop", "web")]) == {1: [Address("10.96.0.10", 80, "TCP")]}
        assert records.frontends_of([("shop", "api")]) == {}


def test_commit_keeps_and_rollback_undoes_what_is_done_so_far(path: Path) -> None:
    """In the middle of a block: after a commit an error undoes only what follows it."""
    with Records(path) as records:
        records.put({"kept": 1})
        records.commit()
        records.put({"kept": 2, "undone": 1})
        records.rollback()

    def change(records: Records) -> None:
        records.put({"kept": 3})
        records.commit()
        records.put({"kept": 4})

    fail_after(path, change)
    with Records(path) as records:
        assert (records.get("kept"), records.get("undone")) == (3, None)


def test_S11_a_service_port_has_one_number_as_long_as_it_is_there(path: Path) -> None:
    """Applied again or called elsewhere, a port keeps its number; the others of its service do not matter."""
    with Records(path) as records:
        first = register(records, "web", port("web", "10.96.0.10:80"), port("web", "10.96.0.10:443", name="https"))
        assert first == {"http": 1, "https": 2}
        assert register(records, "web", port("web", "10.96.0.11:80")) == {"http": 1}
        assert records.frontends_of([("shop", "web")]) == {1: [Address("10.96.0.11", 80, "TCP")]}
        assert records.ports() == {1: RecordedPort("shop", "web", "http", "TCP", 80)}
        assert records.used_addresses() == {"10.96.0.11"}


def test_a_number_is_never_given_twice(path: Path) -> None:
    """A flow or a map may still name a service port that is gone: its number is nobody else's, not the highest even."""
    numbers = []
    for _ in range(3):
        with Records(path) as records:
            numbers.append(register(records, "web", port("web", "10.96.0.10:80"))["http"])
        with Records(path) as records:
            register(records, "web")
            assert records.ports() == {}
    assert numbers == [1, 2, 3]


def test_release_tells_what_a_service_had(path: Path) -> None:
    """Each number with its addresses, also a number that has none; after it the addresses are free."""
    with Records(path) as records:
        register(records, "web", port("web", "10.96.0.10:80", "10.96.0.11:80"), port("web", name="none"))
        had = records.release([("shop", "web")])
        assert had == {1: [Address("10.96.0.10", 80, "TCP"), Address("10.96.0.11", 80, "TCP")], 2: []}
        assert records.used_addresses() == set()
        assert {str(one) for one in records.ports().values()} == {"shop/web:http", "shop/web:none"}


def test_services_at_once_are_as_one_after_the_other(path: Path, tmp_path: Path) -> None:
    """Numbers, who is called where, who is not, and what each had before."""
    shared = port("api", "10.96.0.10:80", "10.96.0.11:80")
    before = {("shop", "web"): [port("web", "10.96.0.10:80")], ("shop", "old"): [port("old", "10.96.0.12:80")]}
    after = {
        ("shop", "web"): [port("web", "10.96.0.10:80", "10.96.0.12:80"), port("web", "10.96.0.10:443", name="https")],
        ("shop", "api"): [shared, port("api", name="none")],
        ("shop", "old"): [],
    }

    def change(records: Records, steps: list[dict[tuple[str, str], list[PortPlan]]]) -> tuple[object, ...]:
        had = [records.release(step) for step in steps]
        numbers = [records.register(step) for step in steps]
        records.settle()
        return (
            {number: at for each in had for number, at in each.items()},
            {key: number for each in numbers for key, number in each.items()},
            records.ports(),
            holders(records),
            records.shadowed(),
        )

    found = []
    for name, together in (("state.db", True), ("other.db", False)):
        with Records(tmp_path / name, create=True) as records:
            store(records, ("web", OLD), ("api", NEW), ("old", OLD))
            steps = ([one] if together else [{key: ports} for key, ports in one.items()] for one in (before, after))
            found.append([change(records, step) for step in steps])
    assert found[0] == found[1]
    assert found[0][1][-1] == {5: {Address("10.96.0.10", 80, "TCP")}}, "web is older, and has it"


def store(records: Records, *services: tuple[str, str]) -> None:
    """Services by name, each with the time it was made."""
    records.store([Stored("Service", "shop", name, None, "{}", made) for name, made in services])


def holders(records: Records) -> dict[str, str]:
    """Who is called where."""
    found = {}
    for port in records.ports().values():
        for addresses in records.frontends_of([(port.namespace, port.service)]).values():
            found |= {str(at): port.service for at in addresses}
    return found


OLD, NEW = "2024-05-06T07:08:09Z", "2025-05-06T07:08:09Z"


@pytest.mark.parametrize(
    ("one", "other", "reason"),
    [
        ((OLD, "external-ip"), (NEW, "external-ip"), "which is older"),
        ((OLD, "external-ip"), ("", "cluster-ip"), "which says when it was made"),
        ((NEW, "external-ip"), (NEW, "external-ip"), "which comes first by name"),
        (("", "external-ip"), ("", "external-ip"), "which comes first by name"),
        ((NEW, "external-ip"), (OLD, "node-port"), "which names the address itself"),
        (("", "load-balancer-ip"), (OLD, "node-port"), "which names the address itself"),
    ],
)
@pytest.mark.parametrize("order", ["web api", "api web"])
def test_S48_S70_C7_the_first_of_two_claims_holds_the_address(
    path: Path, one: tuple[str, FrontendKind], other: tuple[str, FrontendKind], reason: str, order: str
) -> None:
    """Whatever was registered first; the other keeps its claim and its own address, and has it when the first goes."""
    claims = {"api": one, "web": other}
    with Records(path) as records:
        store(records, *((name, made) for name, (made, _) in claims.items()))
        for name in order.split():
            own = port(name, f"10.96.0.7:{ord(name[0])}", name="own")
            register(records, name, port(name, "192.0.2.1:80", kind=claims[name][1]), own)
        records.settle()
        assert holders(records)["192.0.2.1:80/tcp"] == "api"
        assert len(holders(records)) == 3
        (shadow,) = records.shadows()
        assert str(shadow) == f"Service shop/web: 192.0.2.1:80/tcp belongs to Service shop/api, {reason}"
        register(records, "api")
        assert records.settle() == {("shop", "web"): had_before(records, "web")}
        assert holders(records)["192.0.2.1:80/tcp"] == "web"
        assert records.shadows() == []


def had_before(records: Records, service: str) -> dict[int, list[Address]]:
    """What a service had before it got the address that all claim."""
    return {
        number: [at for at in addresses if at.address != "192.0.2.1"]
        for number, addresses in records.frontends_of([("shop", service)]).items()
    }


def test_C7_settling_tells_who_gains_and_who_loses_and_what_each_had(path: Path) -> None:
    """A third that is older takes the address from the second; the last one, who never had it, is not told of."""
    with Records(path) as records:
        store(records, ("a", NEW), ("b", OLD), ("c", NEW))
        register(records, "a", port("a", "192.0.2.1:80"))
        register(records, "c", port("c", "192.0.2.1:80"))
        assert records.settle() == {}
        register(records, "b", port("b", "192.0.2.1:80"))
        assert records.settle() == {
            ("shop", "a"): {1: [Address("192.0.2.1", 80, "TCP")]},
            ("shop", "b"): {3: []},
        }
        assert records.settle() == {}
        assert [shadow.service for shadow in records.shadows()] == ["shop/a", "shop/c"]


def test_claims_are_kept_by_service(path: Path) -> None:
    """Who claims a place, as long as its service is there; what it claims no longer is forgotten."""
    web, node_port = Claim("10.96.0.10", 80, "TCP"), Claim("", 30080, "TCP")
    with Records(path) as records:
        store(records, ("web", OLD), ("api", ""))
        records.claim({("shop", "web"): {web: "cluster-ip", node_port: "node-port"}})
        records.claim({("shop", "api"): {node_port: "health-check"}})
        assert records.holdings([web, node_port]) == {
            web: [Holding("shop/web", OLD, "cluster-ip")],
            node_port: [Holding("shop/api", "", "health-check"), Holding("shop/web", OLD, "node-port")],
        }
        records.claim({("shop", "web"): {}})
        records.forget([("Service", "shop", "api")])
        assert records.holdings([web, node_port]) == {}


def test_S14_one_address_and_number_in_two_protocols_is_no_conflict(path: Path) -> None:
    """TCP and UDP on one port are two places to call."""
    udp = PortPlan("shop", "dns", "dns", "UDP", (Frontend(Address("10.96.0.10", 53, "UDP")),), ())
    with Records(path) as records:
        register(records, "web", port("web", "10.96.0.10:53"))
        assert register(records, "dns", udp) == {"dns": 2}


def test_addresses_move_between_services_in_one_transaction(path: Path) -> None:
    """Two services that are released together may exchange their addresses: nobody sees a conflict in between."""
    with Records(path) as records:
        register(records, "web", port("web", "10.96.0.10:80"))
        register(records, "api", port("api", "10.96.0.11:80"))
    with Records(path) as records:
        for service in ("web", "api"):
            records.release([("shop", service)])
        records.register({("shop", "web"): [port("web", "10.96.0.11:80")]})
        records.register({("shop", "api"): [port("api", "10.96.0.10:80")]})
    with Records(path) as records:
        assert records.frontends_of([("shop", "web")]) == {1: [Address("10.96.0.11", 80, "TCP")]}
        assert records.frontends_of([("shop", "api")]) == {2: [Address("10.96.0.10", 80, "TCP")]}


def test_a_port_without_a_name_is_shown_by_its_number(path: Path) -> None:
    """`flow list` says `shop/web:80` where the only port has no name."""
    with Records(path) as records:
        register(records, "web", port("web", "10.96.0.10:80", name=""))
        assert [str(one) for one in records.ports().values()] == ["shop/web:80"]


def test_a_node_port_is_not_the_name_of_a_port(path: Path) -> None:
    """`flow list` says the service's port number also where a node port is less."""
    called = (
        Frontend(Address("192.168.50.11", 30080, "TCP"), "node-port"),
        Frontend(Address("10.96.0.10", 60000, "TCP")),
    )
    with Records(path) as records:
        register(records, "web", PortPlan("shop", "web", "", "TCP", called, ()))
        assert [str(one) for one in records.ports().values()] == ["shop/web:60000"]
        assert records.frontends_of([("shop", "web")]) == {1: sorted(one.address for one in called)}


def test_host_changes_are_known_even_after_an_error(path: Path) -> None:
    """They are committed before they are done, so that unload finds them after a crash; noted twice they are one."""

    def change(records: Records) -> None:
        for subject in ("eth1", "eth0", "eth1"):
            records.note_host_change(HostChange.CLSACT, subject)
        records.note_host_change(HostChange.FILTER, "eth0 FROM_POD")

    fail_after(path, change)
    with Records(path) as records:
        assert records.host_changes(HostChange.CLSACT) == ["eth0", "eth1"]
        records.forget_host_change(HostChange.CLSACT, "eth0")
    with Records(path) as records:
        assert records.host_changes(HostChange.CLSACT) == ["eth1"]
        assert records.host_changes(HostChange.FILTER) == ["eth0 FROM_POD"]


def test_reading_makes_no_database(tmp_path: Path) -> None:
    """Records that are not there are an error, not an empty database made in passing."""
    with pytest.raises(DatapathError, match=r"the records .*state\.db cannot be read: "):
        Records(tmp_path / "state.db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("garbage", [b"not a database, but long enough to be read as one\n" * 100, b"\0" * 4096, b""])
def test_F25_a_damaged_file_is_one_error(path: Path, garbage: bytes) -> None:
    """Garbage in the records is said in one sentence, with what still works and the way out."""
    path.write_bytes(garbage)
    with pytest.raises(DatapathError) as caught, Records(path) as records:
        records.objects()
    assert str(caught.value).startswith(f"the records {path} ")
    assert "pydatapath unload" in caught.value.hint


def test_F25_damage_found_later_is_one_error_too(path: Path) -> None:
    """A good first page and garbage behind it: found in the middle of a command, and still one sentence."""
    with Records(path) as records:
        records.store([Stored("Service", "shop", f"web-{number}", None, f'"{"x" * 500}"') for number in range(200)])
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    with pytest.raises(DatapathError, match="cannot be read"), Records(path) as records:
        records.objects()


def test_records_of_another_version_are_refused(path: Path) -> None:
    """The sentence has both versions, the hint both ways out."""
    with sqlite3.connect(path) as database:
        database.executescript(f"CREATE TABLE later (what TEXT); PRAGMA user_version = {SCHEMA_VERSION + 1}")
    database.close()
    with pytest.raises(DatapathError) as caught:
        Records(path)
    versions = f"are of version {SCHEMA_VERSION + 1}, this pydatapath writes {SCHEMA_VERSION}"
    assert str(caught.value) == f"the records {path} {versions}"
    assert "unload" in caught.value.hint


VERSION_2 = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE objects (
    kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, service TEXT, manifest TEXT NOT NULL,
    PRIMARY KEY (kind, namespace, name)
) WITHOUT ROWID;
CREATE INDEX slices_of ON objects (namespace, service) WHERE service IS NOT NULL;
CREATE TABLE service_ports (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    namespace TEXT NOT NULL, service TEXT NOT NULL, port TEXT NOT NULL, protocol TEXT NOT NULL,
    UNIQUE (namespace, service, port, protocol)
);
CREATE TABLE frontends (
    address TEXT NOT NULL, port INTEGER NOT NULL, protocol TEXT NOT NULL,
    number INTEGER NOT NULL REFERENCES service_ports (number) ON DELETE CASCADE,
    kind TEXT NOT NULL DEFAULT 'cluster-ip',
    PRIMARY KEY (address, port, protocol)
) WITHOUT ROWID;
CREATE INDEX frontends_of ON frontends (number);
CREATE TABLE host_changes (kind TEXT NOT NULL, subject TEXT NOT NULL, PRIMARY KEY (kind, subject)) WITHOUT ROWID;
INSERT INTO objects VALUES
    ('Service', 'shop', 'old', NULL, '{"metadata":{"creationTimestamp":"2024-05-06T09:08:09+02:00"}}'),
    ('Service', 'shop', 'web', NULL, '{"kind":"Service"}'), ('EndpointSlice', 'shop', 'web-1', 'web', '{}');
INSERT INTO service_ports VALUES (7, 'shop', 'web', '', 'TCP');
INSERT INTO frontends VALUES ('10.96.0.10', 80, 'TCP', 7, 'cluster-ip');
PRAGMA user_version = 2;
"""
VERSION_1 = "ALTER TABLE frontends DROP COLUMN kind; PRAGMA user_version = 1;"


@pytest.mark.parametrize("version", [1, 2])
def test_load_brings_older_records_up_to_date(tmp_path: Path, version: int) -> None:
    """Objects, numbers and addresses stay, and it is known when services were made. Other commands change nothing."""
    path = tmp_path / "old.db"
    with sqlite3.connect(path) as database:
        database.executescript(VERSION_2 + (VERSION_1 if version == 1 else ""))
    database.close()
    with pytest.raises(DatapathError, match=f"are of version {version}"):
        Records(path)
    for create in (True, False):
        with Records(path, create=create) as records:
            assert [(one.name, one.made) for one in records.objects("Service")] == [("old", OLD), ("web", "")]
            assert records.slices([("shop", "web")]) == {("shop", "web"): [SLICE.key]}
            assert [str(one) for one in records.ports().values()] == ["shop/web:80"]
            assert records.frontends_of([("shop", "web")]) == {7: [Address("10.96.0.10", 80, "TCP")]}
            assert register(records, "web", port("web", "192.168.50.11:30080", name="", kind="node-port")) == {"": 7}
            register(records, "old", port("old", "192.168.50.11:30080"))
            assert [shadow.service for shadow in records.shadows()] == ["shop/web"]
            records.rollback()


@pytest.mark.parametrize("version", range(1, SCHEMA_VERSION + 1))
def test_F8_each_version_is_known_by_its_columns(tmp_path: Path, version: int) -> None:
    """Also older ones; under any other number they are damaged."""
    path = tmp_path / "old.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(VERSION_2 + VERSION_1)
        for before in range(1, version):
            database.executescript(";".join(STEPS[before]))
    for number in range(1, SCHEMA_VERSION + 3):
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute(f"PRAGMA user_version = {number}")
            found = damage_in(database)
        assert found == (
            ""
            if number == version
            else f"they say that they are of version {number}, and have the tables of version {version}"
        )


def test_a_number_that_older_records_gave_is_never_given_again(tmp_path: Path) -> None:
    """Flows and maps may still name it. What was there is IPv4's."""
    path = tmp_path / "old.db"
    with sqlite3.connect(path) as database:
        database.executescript(VERSION_2)
        database.execute("INSERT INTO service_ports VALUES (9, 'shop', 'gone', '', 'TCP')")
        database.execute("DELETE FROM service_ports WHERE number = 9")
    database.close()
    with Records(path, create=True) as records:
        assert records.numbers_of([("shop", "web")]) == {("shop", "web", "", "TCP", "IPv4"): 7}
        assert register(records, "new", port("new", "10.96.0.11:80")) == {"http": 10}


def test_S8_each_family_of_a_service_port_has_its_own_number(path: Path) -> None:
    """One stays while the other comes and goes."""
    four = port("web", "10.96.0.10:80")
    six = four._replace(frontends=(Frontend(Address("fd00::10", 80, "TCP")),), family=Family.IPV6)
    with Records(path) as records:
        first = records.register({("shop", "web"): [four]})
        for _ in range(2):
            records.release([("shop", "web")])
            both = records.register({("shop", "web"): [four, six]})
            assert both[four.key] == first[four.key] != both[six.key]
            assert records.frontends_of([("shop", "web")]) == {
                both[one.key]: [frontend.address for frontend in one.frontends] for one in (four, six)
            }
            records.release([("shop", "web")])
            assert records.register({("shop", "web"): [four]}) == first


def test_a_second_reader_sees_the_last_whole_change(path: Path) -> None:
    """While a change is under way, `service list` shows what was before it, at once."""
    with Records(path) as writer:
        writer.store([WEB])
        with Records(path) as reader:
            assert reader.objects() == []
    with Records(path) as reader:
        assert reader.objects() == [WEB]


@pytest.mark.parametrize(
    "write", [lambda one: one.store([WEB]), lambda one: one.join("node", {})], ids=["many rows", "one statement"]
)
def test_a_writer_waits_for_another_connection_also_when_it_has_read(
    path: Path, write: Callable[[Records], None]
) -> None:
    """SQLite's own patience ends where a transaction begins by reading, as each command's does."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        begun = time.monotonic()
        release = threading.Timer(0.3, other.execute, ["ROLLBACK"])
        release.start()
        with Records(path) as records:
            assert records.objects() == []
            write(records)
            assert time.monotonic() - begun >= 0.3
        release.join()


def test_a_writer_does_not_wait_for_ever(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor for what no waiting mends: somebody else has changed what it has read."""
    monkeypatch.setattr(record_files, "BUSY_SECONDS", 0.2)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatapathError, match="are busy"), Records(path) as records:
            records.store([WEB])
        other.execute("ROLLBACK")
        monkeypatch.undo()
        begun = time.monotonic()
        with Records(path) as records:
            other.execute("INSERT INTO facts VALUES ('x', '1', 0)")
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                records.store([WEB])
        assert time.monotonic() - begun < 10
