"""What was asked for, in a real SQLite file: kept whole or not at all, and read back as it was."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from pydatapath import applying
from pydatapath.errors import Conflict, DatapathError
from pydatapath.plan import Address, Frontend, FrontendKind, Here, PortPlan
from pydatapath.records import SCHEMA_VERSION, HostChange, RecordedPort, Records, Stored

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
    records.release("shop", service)
    return {key[2]: number for key, number in records.register("shop", service, list(ports)).items()}


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
        assert records.slices("shop", "web") == [SLICE]
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
        assert records.frontends_of("shop", "web") == {1: [Address("10.96.0.10", 80, "TCP")]}
        assert records.frontends_of("shop", "api") == {}


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
        assert records.frontends_of("shop", "web") == {1: [Address("10.96.0.11", 80, "TCP")]}
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
        had = records.release("shop", "web")
        assert had == {1: [Address("10.96.0.10", 80, "TCP"), Address("10.96.0.11", 80, "TCP")], 2: []}
        assert records.used_addresses() == set()
        assert {str(one) for one in records.ports().values()} == {"shop/web:http", "shop/web:none"}


def test_an_address_that_is_taken_names_both_services(path: Path) -> None:
    """Who asks and who has it, where, and what to do about it; and nothing of the asker's is kept."""
    with Records(path) as records:
        register(records, "web", port("web", "10.96.0.10:80"))

    def change(records: Records) -> None:
        records.store([Stored("Service", "shop", "api", None, "{}")])
        register(records, "api", port("api", "10.96.0.11:80", "10.96.0.10:80"))

    with pytest.raises(Conflict) as caught, Records(path) as records:
        change(records)
    assert str(caught.value) == "Service shop/api: 10.96.0.10:80/tcp is taken by Service shop/web"
    assert "spec.clusterIP" in caught.value.hint
    with Records(path) as records:
        assert records.objects() == []
        assert records.used_addresses() == {"10.96.0.10"}


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        ("cluster-ip", "spec.clusterIP"),
        ("node-port", "spec.ports[].nodePort"),
        ("external-ip", "spec.externalIPs"),
        ("load-balancer-ip", "ask for another IP"),
    ],
)
def test_S70_the_hint_fits_the_address_that_is_taken(path: Path, kind: FrontendKind, remedy: str) -> None:
    """What to change is told by how the second service is called there."""
    with Records(path) as records:
        register(records, "web", port("web", "192.168.50.11:30080", kind="node-port"))
        with pytest.raises(Conflict) as caught:
            register(records, "api", port("api", "192.168.50.11:30080", kind=kind))
    assert str(caught.value) == "Service shop/api: 192.168.50.11:30080/tcp is taken by Service shop/web"
    assert remedy in caught.value.hint


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
            records.release("shop", service)
        records.register("shop", "web", [port("web", "10.96.0.11:80")])
        records.register("shop", "api", [port("api", "10.96.0.10:80")])
    with Records(path) as records:
        assert records.frontends_of("shop", "web") == {1: [Address("10.96.0.11", 80, "TCP")]}
        assert records.frontends_of("shop", "api") == {2: [Address("10.96.0.10", 80, "TCP")]}


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
        assert records.frontends_of("shop", "web") == {1: sorted(one.address for one in called)}


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
        records.store([Stored("Service", "shop", f"web-{number}", None, "x" * 500) for number in range(200)])
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
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    database.close()
    with pytest.raises(DatapathError) as caught:
        Records(path)
    assert str(caught.value) == f"the records {path} are of version 3, this pydatapath writes 2"
    assert "unload" in caught.value.hint


def test_load_brings_records_of_version_1_up_to_date(path: Path) -> None:
    """They knew cluster IPs only: objects, numbers and addresses stay. Other commands leave them as they are."""
    with Records(path) as records:
        records.store([WEB])
        register(records, "web", port("web", "10.96.0.10:80", name=""))
    with sqlite3.connect(path) as database:
        database.executescript("ALTER TABLE frontends DROP COLUMN kind; PRAGMA user_version = 1;")
    database.close()
    with pytest.raises(DatapathError, match="are of version 1"):
        Records(path)
    for create in (True, False):
        with Records(path, create=create) as records:
            assert records.objects() == [WEB]
            assert [str(one) for one in records.ports().values()] == ["shop/web:80"]
            assert register(records, "web", port("web", "192.168.50.11:30080", name="", kind="node-port")) == {"": 1}
            records.rollback()


def test_a_second_reader_sees_the_last_whole_change(path: Path) -> None:
    """While a change is under way, `service list` shows what was before it, at once."""
    with Records(path) as writer:
        writer.store([WEB])
        with Records(path) as reader:
            assert reader.objects() == []
    with Records(path) as reader:
        assert reader.objects() == [WEB]
