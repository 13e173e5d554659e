"""Node objects in the records: which networks are the cluster's, what is written of a change, and this node's zone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydatapath import applying, schema
from pydatapath.errors import Refused
from pydatapath.kernel.layout import Family, MemberKind
from pydatapath.membership import MemberChange, kind_of, member_change, members_of
from pydatapath.model import Node
from pydatapath.records import Records

PODS, OWN = MemberKind.PODS, MemberKind.NODE


def node(name: str, *, pods: tuple[str, ...] = (), own: tuple[str, ...] = (), zone: str = "") -> Node:
    """A Node of a manifest."""
    found = schema.parse(
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, **({"labels": {"topology.kubernetes.io/zone": zone}} if zone else {})},
            "spec": {"podCIDRs": list(pods)},
            "status": {"addresses": [{"type": "InternalIP", "address": address} for address in own]},
        },
        "test",
    )
    assert isinstance(found, Node)
    return found


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    """Those of a node of its own."""
    with Records(tmp_path / "state.db", create=True) as made:
        made.put({"node_name": "here"})
        yield made


def edited(records: Records, *nodes: Node, **how: object) -> MemberChange:
    """The change of the maps that these bring."""
    made = applying.edit(records, nodes, **how)  # type: ignore[arg-type]
    return change_of(records, made)


def change_of(records: Records, made: applying.Edit) -> MemberChange:
    before = {one: kind for one, kind in made.members.items() if kind is not None}
    return member_change(before, records.members(made.members))


def test_a_node_brings_its_pods_networks_and_its_own_addresses() -> None:
    """An address is the network of its whole length."""
    one = node("w", pods=("10.1.0.0/24", "fd00:1::/64"), own=("192.0.2.7", "2001:db8::7"))
    assert members_of(one) == {"10.1.0.0/24": PODS, "fd00:1::/64": PODS, "192.0.2.7/32": OWN, "2001:db8::7/128": OWN}
    assert kind_of([PODS, OWN]) is OWN


def test_only_what_is_new_is_written(records: Records) -> None:
    """And the same again is nothing at all."""
    one = node("w", pods=("10.1.0.0/24",), own=("192.0.2.7",))
    assert edited(records, one) == MemberChange({"10.1.0.0/24": PODS, "192.0.2.7/32": OWN})
    assert edited(records, one) == MemberChange()
    moved = node("w", pods=("10.1.0.0/24",), own=("192.0.2.8",))
    assert edited(records, moved) == MemberChange({"192.0.2.8/32": OWN}, frozenset({"192.0.2.7/32"}))
    assert edited(records, delete=[("Node", "", "w")]) == MemberChange({}, frozenset({"10.1.0.0/24", "192.0.2.8/32"}))
    assert records.members() == {}


def test_what_two_nodes_have_stays_when_one_goes(records: Records) -> None:
    """A host network of an old Node and its successor's; and an address that changes hands in one change."""
    edited(records, node("a", own=("192.0.2.7",)), node("b", pods=("192.0.2.7/32",)))
    assert records.members() == {"192.0.2.7/32": OWN}
    assert edited(records, delete=[("Node", "", "a")]) == MemberChange({"192.0.2.7/32": PODS})
    edited(records, node("b", own=("192.0.2.9",)), node("c"))
    assert edited(records, node("b"), node("c", own=("192.0.2.9",))) == MemberChange()


def test_nodes_are_pruned_and_counted_by_family(records: Records) -> None:
    """As other objects."""
    edited(records, node("a", own=("192.0.2.7", "2001:db8::7")), node("b", own=("192.0.2.7", "192.0.2.8")))
    assert records.count_members() == {Family.IPV4: 2, Family.IPV6: 1}
    made = applying.edit(records, [node("b")], prune=True)
    assert [str(one) for one in made.outcomes] == ["node/b configured", "node/a deleted"]
    assert records.count_members() == {}


def test_S87_the_zone_is_the_nodes_own_where_load_was_not_told_one(records: Records) -> None:
    """By its Node object's label; other nodes' do not count."""
    assert applying.here(records).zone == ""
    edited(records, node("here", zone="west"), node("other", zone="east"))
    assert applying.here(records).zone == "west"
    records.put({"zone": "said"})
    assert applying.here(records).zone == "said"


networks = st.sampled_from(["10.1.0.0/24", "10.2.0.0/24", "192.0.2.7/32", "fd00:1::/64"])
addresses = st.sampled_from(["192.0.2.7", "192.0.2.8", "2001:db8::7"])
nodes = st.builds(
    node,
    st.sampled_from("abc"),
    pods=st.lists(networks, max_size=1).map(tuple),
    own=st.lists(addresses, max_size=2, unique=True).map(tuple),
)


@given(st.lists(st.tuples(st.lists(nodes, max_size=3), st.sets(st.sampled_from("abc")), st.booleans()), max_size=6))
def test_the_map_is_a_function_of_the_objects(
    tmp_path_factory: pytest.TempPathFactory, history: list[tuple[list[Node], set[str], bool]]
) -> None:
    """Whatever the order in which nodes come, change and go: one after the other gives what all at once would."""
    live: dict[str, MemberKind] = {}
    with Records(tmp_path_factory.mktemp("records") / "state.db", create=True) as records:
        standing: dict[str, Node] = {}
        for given_nodes, gone, prune in history:
            wished = {one.name: one for one in given_nodes}
            over = {("Node", "", name) for name in gone & standing.keys() - wished.keys()}
            change = edited(records, *wished.values(), delete=over, prune=prune)
            standing = wished if prune else {**standing, **wished}
            standing = {name: one for name, one in standing.items() if ("Node", "", name) not in over}
            assert not change.written.keys() & change.removed
            assert all(live.get(network) != kind for network, kind in change.written.items())
            live = {**{one: kind for one, kind in live.items() if one not in change.removed}, **change.written}
            kinds: dict[str, list[MemberKind]] = {}
            for one in standing.values():
                for network, kind in members_of(one).items():
                    kinds.setdefault(network, []).append(kind)
            assert live == records.members() == {network: kind_of(each) for network, each in kinds.items()}


@pytest.mark.parametrize(
    ("pods", "own", "said"),
    [
        pytest.param("10.96.4.0/24", "192.0.2.7", "10.96.4.0/24 overlaps the service network 10.96.0.0/12", id="in it"),
        pytest.param("10.0.0.0/8", "192.0.2.7", "10.0.0.0/8 overlaps the service network 10.96.0.0/12", id="over it"),
        pytest.param(
            "fd00:10:96::/64",
            "192.0.2.7",
            "fd00:10:96::/64 overlaps the service network fd00:10:96::/112",
            id="of the other family",
        ),
        pytest.param(
            "10.244.2.0/24", "10.96.0.7", "10.96.0.7 overlaps the service network 10.96.0.0/12", id="the node itself"
        ),
    ],
)
def test_a_node_in_a_service_network_is_refused(records: Records, pods: str, own: str, said: str) -> None:
    """As `load` refuses this node's own; the others are made with --keep-going, and what was there stays."""
    records.put({"service_networks": ["10.96.0.0/12", "fd00:10:96::/112"]})
    good, bad = node("a", pods=("10.112.0.0/24",), own=("192.0.2.6",)), node("b", pods=(pods,), own=(own,))
    with pytest.raises(Refused) as caught:
        applying.edit(records, [good, bad])
    assert str(caught.value) == f"Node b: {said}"
    assert "--service-cidr" in caught.value.hint
    assert records.members() == {}
    outcomes = applying.edit(records, [good, bad], keep_going=True).outcomes
    assert [(one.name, one.action) for one in outcomes] == [("a", "created"), ("b", "refused")]
    assert records.members_of("b") == set()


def test_what_two_nodes_say_is_their_own_is_told(records: Records) -> None:
    """Of either that is given, and by `status`; it is the cluster's as long as one has it."""
    one = node("a", pods=("10.244.2.0/24",), own=("192.0.2.7", "192.0.2.8"))
    two = node("b", pods=("10.244.2.0/24",), own=("192.0.2.7", "192.0.2.9"))
    applying.edit(records, [one, node("c", pods=("10.244.3.0/24",))])
    outcomes = applying._warned(records, applying.edit(records, [two, node("c", pods=("10.244.3.0/24",))]).outcomes, ())
    said = tuple(
        f"Node b: {shared} is Node a's, too, and counts until neither has it"
        for shared in ("10.244.2.0/24", "192.0.2.7")
    )
    assert [each.warnings for each in outcomes] == [said, ()]
    assert [sentence for _, sentence in applying.node_conflicts(records)] == [*said]
    applying.edit(records, [], delete=[("Node", "", "a")])
    assert records.members().keys() == {"10.244.2.0/24", "10.244.3.0/24", "192.0.2.7/32", "192.0.2.9/32"}
    assert applying.node_conflicts(records) == []


def test_several_nodes_may_be_behind_one_address(records: Records) -> None:
    """An ExternalIP is often a router's, and nobody's own."""
    text = {
        "apiVersion": "v1",
        "kind": "Node",
        "status": {"addresses": [{"type": "ExternalIP", "address": "192.0.2.1"}]},
    }
    applying.edit(records, [schema.parse({**text, "metadata": {"name": name}}, "test") for name in "ab"])
    assert records.shared_members() == {"192.0.2.1/32": ["a", "b"]}
    assert applying.node_conflicts(records) == []
