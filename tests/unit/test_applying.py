"""Objects to records to what the maps must hold: who is refused, who is called at an address that several claim."""

from __future__ import annotations

import contextlib
import copy
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapmodel import Maps

from pydatapath import applying, plan, schema
from pydatapath.applying import Outcome
from pydatapath.errors import Conflict, ManifestError, Refused
from pydatapath.model import EndpointSlice, Service
from pydatapath.record_copy import PLANNED
from pydatapath.record_faults import copy_of, take_copy
from pydatapath.records import Key, Records

OLD, NEW = "2024-05-06T07:08:09Z", "2025-05-06T07:08:09Z"
EXTERNAL, NODE = "192.0.2.1", "192.168.50.11"


def service(name: str, *external: str, made: str = "", ip: int = 0, number: int = 0, **spec: Any) -> Service:
    """A service of that name, with a cluster IP of its own unless one is said; `number` is its node port."""
    document = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "creationTimestamp": made or None},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": f"10.96.0.{ip or ord(name[0])}",
            "externalIPs": list(external),
            "ports": [{"port": 80, "nodePort": number}],
            **spec,
        },
    }
    found = schema.parse(document, "test")
    assert isinstance(found, Service)
    return found


def slice_of(name: str, *backends: int) -> EndpointSlice:
    """The endpoints of a service."""
    document = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"{name}-1", "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "ports": [{"port": 8080}],
        "endpoints": [{"addresses": [f"10.244.1.{last}"]} for last in backends],
    }
    found = schema.parse(document, "test")
    assert isinstance(found, EndpointSlice)
    return found


class Node:
    """The records of a node and a model of its maps, changed as `applying.apply` changes the kernel's."""

    def __init__(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self.records = Records(path, create=True).__enter__()
        self.records.put({"node_name": "node1", "node_port_addresses": [NODE]})
        self.maps = Maps()
        self.last = plan.Change()

    def apply(self, *objects: Service | EndpointSlice, whole: bool = False, **how: Any) -> list[Outcome]:
        """What `apply` does; the last change is kept. Raises Refused."""
        made = applying.edit(self.records, objects, **how)
        wanted = applying.want(self.records, made, whole=whole)
        live = self.maps.read(None if whole else {*wanted.before, *wanted.numbers.values()})
        before = live.called if whole else wanted.before
        self.last = plan.change(wanted.ports, before, wanted.numbers, live)
        for write in self.maps.writes(self.last):
            write()
        return made.outcomes

    def called(self) -> dict[str, str]:
        """Which service the maps know at each address."""
        ports = self.records.ports()
        return {str(at): ports[one.number].service for at, one in self.maps.services.items()}

    def answers(self) -> dict[str, Any]:
        """All that a packet could notice: who answers at each address, and what stands around."""
        found: dict[str, Any] = {str(at): self.maps.answer(at) for at in self.maps.services}
        return {**found, "vips": self.maps.guards.vips, "targets": self.maps.targets, "called": self.called()}


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node without services."""
    made = Node(tmp_path / "state.db")
    yield made
    made.records.__exit__(None, None, None)


def actions(outcomes: Iterable[Outcome]) -> dict[str, str]:
    return {f"{one.kind} {one.name}": one.action for one in outcomes}


class TestRefused:
    def test_every_bad_object_is_named_and_nothing_is_done(self, node: Node) -> None:
        """A cluster IP and a node port that another one has, and what could not even be read."""
        node.apply(service("web", number=30080))
        fault = ManifestError("bad.yaml: Service default/bad: spec.ports[0].port: 0 is not a port")
        with pytest.raises(Refused) as caught:
            node.apply(service("a", ip=ord("w")), service("b"), service("c", number=30080), faults=[fault])
        assert [str(one) for one in caught.value.errors] == [
            str(fault),
            f"Service default/a: 10.96.0.{ord('w')}:80/tcp is taken by Service default/web",
            "Service default/c: node port 30080/tcp is taken by Service default/web",
        ]
        assert all(isinstance(one, Conflict) for one in caught.value.errors[1:])
        assert [word in caught.value.hint for word in ("spec.clusterIP", "nodePort")] == [True, True]
        assert {one.name for one in node.records.objects()} == {"web"}

    def test_what_could_not_be_read_alone_refuses_all(self, node: Node) -> None:
        """A good object beside it is not made without keep_going, and is with it."""
        fault = ManifestError("x.yaml:3: not YAML: ...")
        with pytest.raises(Refused, match=r"^x\.yaml:3: not YAML: \.\.\.$"):
            node.apply(service("web"), faults=[fault])
        assert node.records.objects() == []
        assert actions(node.apply(service("web"), faults=[fault], keep_going=True)) == {"Service web": "created"}

    def test_the_good_ones_are_made_and_the_bad_ones_stay_as_they_were(self, node: Node) -> None:
        """With keep_going, in one change; each that is refused has its error, in its place."""
        node.apply(service("web"), service("old"))
        before = node.records.object("Service", "default", "old")
        good, bad = service("new"), service("old", ip=ord("w"))
        outcomes = node.apply(bad, good, slice_of("new", 1), keep_going=True)
        assert actions(outcomes) == {
            "Service old": "refused",
            "Service new": "created",
            "EndpointSlice new-1": "created",
        }
        assert str(outcomes[0].error) == "Service default/old: 10.96.0.119:80/tcp is taken by Service default/web"
        assert str(outcomes[0]) == "service/default/old refused"
        assert node.records.object("Service", "default", "old") == before
        assert "10.96.0.110:80/tcp" in node.called()

    def test_a_service_that_is_not_there_yet_is_not_there_after(self, node: Node) -> None:
        """Refused means that nothing of it is kept."""
        outcomes = node.apply(service("a"), service("b", ip=ord("a")), keep_going=True)
        assert actions(outcomes) == {"Service a": "created", "Service b": "refused"}
        assert {one.name for one in node.records.objects()} == {"a"}

    def test_C7_a_bad_time_is_one_of_the_faults(self, node: Node) -> None:
        """It is found only here, and does not keep the others."""
        outcomes = node.apply(service("a", made="yesterday"), service("b"), keep_going=True)
        assert actions(outcomes) == {"Service a": "refused", "Service b": "created"}

    def test_addresses_are_exchanged_in_one_apply(self, node: Node) -> None:
        """Nobody is refused for what another one gives up at the same time, or what is deleted."""
        node.apply(service("a"), service("b"), service("c"))
        node.apply(service("a", ip=ord("b")), service("b", ip=ord("a")))
        assert node.called() == {"10.96.0.98:80/tcp": "a", "10.96.0.97:80/tcp": "b", "10.96.0.99:80/tcp": "c"}
        node.apply(service("d", ip=ord("c")), delete=[("Service", "default", "c")])
        assert node.called()["10.96.0.99:80/tcp"] == "d"
        node.apply(service("e", ip=ord("c")), prune=True)
        assert node.called() == {"10.96.0.99:80/tcp": "e"}

    def test_S80_a_health_check_port_is_no_node_port(self, node: Node) -> None:
        """Neither of another service nor, over TCP, its own; on the node with or without node ports."""
        node.records.put({"node_port_addresses": []})
        node.apply(service("web", number=30080))
        local = {"externalTrafficPolicy": "Local"}
        outcomes = node.apply(
            service("a", healthCheckNodePort=30080, **local),
            service("b", healthCheckNodePort=32000, **local),
            service("c", healthCheckNodePort=32000, made=OLD, **local),
            service("d", number=32000),
            service("e", number=32001, healthCheckNodePort=32001, **local),
            keep_going=True,
        )
        assert actions(outcomes) == {
            "Service a": "refused",
            "Service b": "created",
            "Service c": "refused",
            "Service d": "refused",
            "Service e": "refused",
        }
        assert "spec.healthCheckNodePort" in outcomes[0].error.hint  # type: ignore[union-attr]


class TestPrune:
    def test_what_is_bad_is_not_pruned(self, node: Node) -> None:
        """A refused object and one that could not be read are in the manifests: they stay as they were."""
        node.apply(service("web"), service("old"), service("bad"), service("gone"))
        fault = ManifestError("bad.yaml: Service default/bad: ...")
        fault.key = ("Service", "default", "bad")
        outcomes = node.apply(service("web"), service("old", ip=ord("w")), faults=[fault], prune=True, keep_going=True)
        assert actions(outcomes) == {"Service web": "unchanged", "Service old": "refused", "Service gone": "deleted"}
        assert {one.name for one in node.records.objects()} == {"web", "old", "bad"}

    def test_nothing_is_pruned_where_it_is_not_known_what_is_bad(self, node: Node) -> None:
        """The rest of a file may hold any object."""
        node.apply(service("web"), service("old"))
        outcomes = node.apply(service("web"), faults=[ManifestError("x.yaml:3: ...")], prune=True, keep_going=True)
        assert actions(outcomes) == {"Service web": "unchanged"}


class TestClash:
    @pytest.mark.parametrize("together", [True, False])
    @pytest.mark.parametrize("order", ["ab", "ba"])
    def test_S70_C7_the_older_service_has_the_address(self, node: Node, order: str, together: bool) -> None:
        """In whatever order they come; the other one is served at its other addresses."""
        both = {"a": service("a", EXTERNAL, made=NEW), "b": service("b", EXTERNAL, made=OLD)}
        ordered = [both[name] for name in order]
        for batch in [ordered] if together else [[one] for one in ordered]:
            node.apply(*batch)
        assert node.called() == {"10.96.0.97:80/tcp": "a", "10.96.0.98:80/tcp": "b", f"{EXTERNAL}:80/tcp": "b"}

    def test_C7_the_winner_is_left_alone_when_another_one_comes(self, node: Node) -> None:
        """Not a write for its ports, so its flows do not notice."""
        node.apply(service("a", EXTERNAL, made=OLD), slice_of("a", 1))
        number = self.number(node, "a")
        node.apply(service("b", EXTERNAL, made=NEW), slice_of("b", 2))
        assert number not in {one.number for one in node.last.services.values()}
        assert {one.service for one in node.last.gone_backends.values()} == set()
        node.apply(service("a", EXTERNAL, made=OLD), slice_of("a", 1))
        assert node.last.empty

    @staticmethod
    def number(node: Node, name: str) -> int:
        return next(number for number, port in node.records.ports().items() if port.service == name)

    @pytest.mark.parametrize("how", ["deleted", "gives it up", "pruned"])
    def test_C7_the_next_has_the_address_in_the_same_apply(self, node: Node, how: str) -> None:
        """In one write, when the winner goes or claims it no longer."""
        objects = [service("b", EXTERNAL, made=NEW), slice_of("b", 2)]
        node.apply(service("a", EXTERNAL, made=OLD), slice_of("a", 1), *objects, service("c", EXTERNAL))
        assert node.called()[f"{EXTERNAL}:80/tcp"] == "a"
        if how == "deleted":
            node.apply(delete=[("Service", "default", "a")])
        elif how == "pruned":
            node.apply(*objects, service("c", EXTERNAL), prune=True)
        else:
            node.apply(service("a", made=OLD))
        assert node.called()[f"{EXTERNAL}:80/tcp"] == "b"
        assert [str(at) for at in node.last.services] == [f"{EXTERNAL}:80/tcp"]
        assert [str(shadow) for shadow in node.records.shadows()] == [
            f"Service default/c: {EXTERNAL}:80/tcp belongs to Service default/b, which says when it was made"
        ]

    def test_S48_a_node_port_gives_way_to_who_names_the_address(self, node: Node) -> None:
        """An external IP may be a node's: the exact address comes first, whoever is older, and nobody is refused."""
        node.apply(service("a", made=OLD, number=80))
        node.apply(service("b", NODE))
        assert node.called()[f"{NODE}:80/tcp"] == "b"
        assert "which names the address itself" in str(node.records.shadows()[0])

    def test_C7_services_without_a_time_come_last(self, node: Node) -> None:
        """Nobody knows how old they are; one that says so is not refused for them."""
        node.apply(service("a", EXTERNAL))
        assert actions(node.apply(service("b", EXTERNAL, made=NEW))) == {"Service b": "created"}
        assert node.called()[f"{EXTERNAL}:80/tcp"] == "b"
        with pytest.raises(Refused, match=r"Service default/c: .* is taken by Service default/a"):
            node.apply(service("c", EXTERNAL))

    def test_S70_the_outcomes_warn_of_both(self, node: Node) -> None:
        """Each given service that has or has not an address that two claim."""
        node.apply(service("a", EXTERNAL, made=OLD))
        outcomes = applying._warned(node.records, node.apply(service("b", EXTERNAL, made=NEW), service("c")), ())
        said = f"Service default/b: {EXTERNAL}:80/tcp belongs to Service default/a, which is older"
        assert [one.warnings for one in outcomes] == [(said,), ()]
        outcomes = applying._warned(node.records, node.apply(service("a", EXTERNAL, made=OLD)), ())
        assert [(one.action, one.warnings) for one in outcomes] == [("unchanged", (said,))]


SPECS = st.builds(
    service,
    st.sampled_from("abc"),
    made=st.sampled_from(["", OLD, OLD, NEW]),
    ip=st.sampled_from([0, 0, 200]),
    number=st.sampled_from([0, 80, 30080]),
    externalIPs=st.sets(st.sampled_from([EXTERNAL, "192.0.2.2", NODE])).map(sorted),
)
SLICES = st.builds(
    lambda name, backends: slice_of(name, *sorted(backends)), st.sampled_from("abc"), st.sets(st.integers(1, 3))
)


def unique(objects: Sequence[Service | EndpointSlice]) -> list[Service | EndpointSlice]:
    """The last of each key."""
    return list({(type(one), one.name): one for one in objects}.values())


@settings(deadline=None, max_examples=60)
@given(
    history=st.lists(
        st.tuples(st.lists(SPECS | SLICES, max_size=5).map(unique), st.sets(st.sampled_from("abc"), max_size=1)),
        min_size=1,
        max_size=6,
    ),
    data=st.data(),
)
def test_S70_C7_what_the_maps_hold_is_a_function_of_the_objects(
    tmp_path_factory: pytest.TempPathFactory,
    history: list[tuple[list[Service | EndpointSlice], set[str]]],
    data: st.DataObject,
) -> None:
    """However the objects came to be what they are: as if they had been applied at once, or one by one in any order."""
    folder = tmp_path_factory.getbasetemp()
    node = Node(folder / "history.db")
    for objects, over in history:
        deleted: list[Key] = [("Service", "default", name) for name in sorted(over)]
        node.apply(*(one for one in objects if one.name not in over), delete=deleted, keep_going=True)
        node.maps.check(*wanted_now(node))
    objects = [applying.load_object(one) for one in node.records.objects()]
    assert node.called() == winners([one for one in objects if isinstance(one, Service)])
    for batches in ([objects], [[one] for one in data.draw(st.permutations(objects))]):
        other = Node(folder / "other.db")
        for batch in batches:
            other.apply(*batch)
        assert other.answers() == node.answers()
        other.records.__exit__(None, None, None)
    node.apply(whole=True)
    assert node.last.empty
    node.records.__exit__(None, None, None)


def wanted_now(node: Node) -> tuple[list[plan.PortPlan], dict[tuple[str, ...], int]]:
    """What the records want of all services, asked without a change."""
    wanted = applying.want(node.records, applying.Edit(), whole=True)
    return wanted.ports, wanted.numbers


def winners(services: list[Service]) -> dict[str, str]:
    """Who must be called where: by the rule, said once more."""
    claims: dict[str, list[tuple[bool, bool, str, str]]] = {}
    for one in services:
        made = one.manifest["metadata"].get("creationTimestamp", "")
        (port,) = one.ports
        exact = {*one.cluster_ips, *one.external_ips}
        for at in {f"{address}:80/tcp" for address in exact}:
            claims.setdefault(at, []).append((False, not made, made, one.name))
        if port.node_port and not (port.node_port == 80 and NODE in exact):
            claims.setdefault(f"{NODE}:{port.node_port}/tcp", []).append((True, not made, made, one.name))
    return {at: min(claimants)[3] for at, claimants in claims.items()}


def tables_of(path: Path) -> dict[str, list[Any]]:
    """What follows from the objects, and the numbers that it refers to."""
    with contextlib.closing(sqlite3.connect(path)) as records:
        return {name: sorted(records.execute(f"SELECT * FROM {name}")) for name in ("service_ports", *PLANNED)}  # noqa: S608


@pytest.mark.parametrize("way", ["followed", "made whole"])
def test_F8_what_a_copy_lacks_is_planned_anew(tmp_path: Path, way: str) -> None:
    """Numbers, claims, and who has an address that two claim are as they were; so is who is refused."""
    path = tmp_path / "state.db"
    node = Node(path)
    node.apply(service("a", EXTERNAL, made=NEW), service("b", number=30080), slice_of("b", 1))
    node.apply(service("c", EXTERNAL, made=OLD), service("b"), delete=[("Service", "default", "b")])
    node.apply(service("d", number=30080))
    node.records.__exit__(None, None, None)
    if way == "made whole":
        copy_of(path).unlink()
        with Records(path) as records:
            records.put({"any": "change"})
    wanted = tables_of(path)
    assert tables_of(copy_of(path)) == {"service_ports": wanted["service_ports"], **{name: [] for name in PLANNED}}
    path.write_bytes(b"garbage" * 1000)
    assert take_copy(path)
    with Records(path) as records:
        assert records.incomplete
        applying.complete(records)
        assert not records.incomplete
    assert tables_of(path) == wanted
    with Records(copy_of(path)) as records:
        assert records.incomplete
    with Records(path) as records, pytest.raises(Refused, match="node port 30080/tcp is taken by Service default/d"):
        applying.edit(records, [service("e", number=30080)])


def test_what_is_given_is_not_altered(node: Node) -> None:
    """A caller may apply the same objects again, elsewhere."""
    one = service("a", EXTERNAL, made=OLD)
    before = copy.deepcopy(one.manifest)
    node.apply(one)
    assert one.manifest == before
