"""What a lab consists of, worked out without touching anything."""

from __future__ import annotations

import ipaddress
from dataclasses import FrozenInstanceError, replace

import pytest

from pydatapath.errors import LabError
from pydatapath.lab.topology import (
    UPLINK_NETWORK,
    UPLINK_NETWORK6,
    LabSpec,
    Place,
    containers_of,
    parse_place,
    places_of,
    pod_cidr6,
    topology_of,
)

TWO_BY_TWO = topology_of(LabSpec())
DUAL = topology_of(LabSpec(dual_stack=True))


def test_the_default_lab_has_these_namespaces():
    assert [space.name for space in TWO_BY_TWO.namespaces] == [
        "lab-switch",
        "lab-outside",
        "lab-node1",
        "lab-node2",
        "lab-node1-pod1",
        "lab-node1-pod2",
        "lab-node2-pod1",
        "lab-node2-pod2",
    ]


def test_each_veth_has_its_port_and_its_address():
    assert [(veth.netns, veth.port, veth.bridge, veth.peer_netns, veth.address) for veth in TWO_BY_TWO.veths] == [
        ("lab-switch", "outside", "uplink", "lab-outside", "192.168.50.100/24"),
        ("lab-switch", "node1", "uplink", "lab-node1", "192.168.50.11/24"),
        ("lab-switch", "node2", "uplink", "lab-node2", "192.168.50.12/24"),
        ("lab-node1", "pod1", "br0", "lab-node1-pod1", "10.244.1.11/24"),
        ("lab-node1", "pod2", "br0", "lab-node1-pod2", "10.244.1.12/24"),
        ("lab-node2", "pod1", "br0", "lab-node2-pod1", "10.244.2.11/24"),
        ("lab-node2", "pod2", "br0", "lab-node2-pod2", "10.244.2.12/24"),
    ]


def test_routes_lead_to_the_other_nodes_and_the_outside_knows_no_pod():
    assert [(route.netns, route.destination, route.via) for route in TWO_BY_TWO.routes] == [
        ("lab-node1", "10.244.2.0/24", "192.168.50.12"),
        ("lab-node2", "10.244.1.0/24", "192.168.50.11"),
        ("lab-node1", "default", "192.168.50.100"),
        ("lab-node2", "default", "192.168.50.100"),
        ("lab-node1-pod1", "default", "10.244.1.1"),
        ("lab-node1-pod2", "default", "10.244.1.1"),
        ("lab-node2-pod1", "default", "10.244.2.1"),
        ("lab-node2-pod2", "default", "10.244.2.1"),
    ]


def test_bridges_have_a_locally_administered_mac_of_their_own():
    assert [(bridge.netns, bridge.name, bridge.mac, bridge.address) for bridge in TWO_BY_TWO.bridges] == [
        ("lab-switch", "uplink", "02:00:c0:a8:32:00", ""),
        ("lab-node1", "br0", "02:00:0a:f4:01:01", "10.244.1.1/24"),
        ("lab-node2", "br0", "02:00:0a:f4:02:01", "10.244.2.1/24"),
    ]


def test_only_nodes_forward_and_check_the_way_back():
    forwarding = {space.name for space in TWO_BY_TWO.namespaces if space.sysctls.get("net/ipv4/ip_forward") == "1"}
    checking = {
        space.name for space in TWO_BY_TWO.namespaces if space.sysctls.get("net/ipv4/conf/all/rp_filter") == "1"
    }
    assert forwarding == checking == {"lab-node1", "lab-node2"}


@pytest.mark.parametrize(
    "spec",
    [
        LabSpec(nodes=1, pods=0),
        LabSpec(nodes=1, pods=244),
        LabSpec(nodes=89, pods=3),
        LabSpec(nodes=1, pods=244, dual_stack=True),
        LabSpec(nodes=89, pods=3, dual_stack=True),
    ],
    ids=str,
)
def test_no_two_things_share_a_name_a_mac_or_an_address(spec: LabSpec):
    plan = topology_of(spec)
    addresses = [address for thing in (*plan.veths, *plan.bridges) for address in thing.addresses]
    macs = [thing.mac for thing in (*plan.veths, *plan.bridges)]
    ports = [(veth.netns, veth.port) for veth in plan.veths]
    names = [space.name for space in plan.namespaces]
    for things in (addresses, macs, ports, names):
        assert len(set(things)) == len(things)
    uplink = ipaddress.ip_network(UPLINK_NETWORK)
    for veth in plan.veths:
        address = ipaddress.ip_interface(veth.address)
        assert (address.network == uplink) == (veth.bridge == "uplink")


def test_ipv6_stands_beside_ipv4_and_takes_nothing_away():
    """Veth by veth and bridge by bridge: the rest is the same."""
    assert [replace(veth, address6="") for veth in DUAL.veths] == list(TWO_BY_TWO.veths)
    assert [replace(bridge, address6="") for bridge in DUAL.bridges] == list(TWO_BY_TWO.bridges)
    assert [route for route in DUAL.routes if ":" not in route.via] == list(TWO_BY_TWO.routes)
    for space, dual in zip(TWO_BY_TWO.namespaces, DUAL.namespaces, strict=True):
        assert (space.name, space.optional) == (dual.name, dual.optional)
        assert space.sysctls.items() <= dual.sysctls.items()


def test_ipv6_addresses_read_as_the_ipv4_ones_do():
    assert [(veth.peer_netns, veth.address6) for veth in DUAL.veths] == [
        ("lab-outside", "2001:db8:50::100/64"),
        ("lab-node1", "2001:db8:50::11/64"),
        ("lab-node2", "2001:db8:50::12/64"),
        ("lab-node1-pod1", "fd00:10:244:1::11/64"),
        ("lab-node1-pod2", "fd00:10:244:1::12/64"),
        ("lab-node2-pod1", "fd00:10:244:2::11/64"),
        ("lab-node2-pod2", "fd00:10:244:2::12/64"),
    ]
    assert [(bridge.netns, bridge.address6) for bridge in DUAL.bridges] == [
        ("lab-switch", ""),
        ("lab-node1", "fd00:10:244:1::1/64"),
        ("lab-node2", "fd00:10:244:2::1/64"),
    ]
    assert Place("x", node=89).address6 == "2001:db8:50::99"
    assert Place("x", node=89, pod=244).address6 == "fd00:10:244:89::254"


def test_ipv6_routes_lead_where_the_ipv4_ones_do():
    assert [(route.netns, route.destination, route.via) for route in DUAL.routes if ":" in route.via] == [
        ("lab-node1", "fd00:10:244:2::/64", "2001:db8:50::12"),
        ("lab-node2", "fd00:10:244:1::/64", "2001:db8:50::11"),
        ("lab-node1", "default", "2001:db8:50::100"),
        ("lab-node2", "default", "2001:db8:50::100"),
        ("lab-node1-pod1", "default", "fd00:10:244:1::1"),
        ("lab-node1-pod2", "default", "fd00:10:244:1::1"),
        ("lab-node2-pod1", "default", "fd00:10:244:2::1"),
        ("lab-node2-pod2", "default", "fd00:10:244:2::1"),
    ]


def test_only_nodes_of_a_dual_stack_lab_forward_ipv6():
    """`default` too: it is what interfaces have that come later."""
    for where in ("all", "default"):
        name = f"net/ipv6/conf/{where}/forwarding"
        assert {space.name for space in DUAL.namespaces if space.sysctls.get(name) == "1"} == {"lab-node1", "lab-node2"}
        assert not [space for space in TWO_BY_TWO.namespaces if name in space.sysctls]


def test_ipv6_addresses_are_written_as_the_kernel_writes_them_and_lie_in_their_network():
    plan = topology_of(LabSpec(nodes=89, pods=2, dual_stack=True))
    for thing in (*plan.veths, *plan.bridges):
        if thing.address6:
            assert str(ipaddress.ip_interface(thing.address6)) == thing.address6
    for veth in plan.veths:
        place = parse_place(veth.peer_netns)
        network = pod_cidr6(place.node) if place.kind == "pod" else UPLINK_NETWORK6
        assert str(ipaddress.ip_interface(veth.address6).network) == network


def test_a_spec_is_plain_data():
    assert topology_of(LabSpec("a", 3, 1)) == topology_of(LabSpec(name="a", nodes=3, pods=1))
    assert topology_of(LabSpec("a", 3, 1, True)) == topology_of(LabSpec(name="a", nodes=3, pods=1, dual_stack=True))
    with pytest.raises(FrozenInstanceError):
        LabSpec().nodes = 3  # type: ignore[misc]


@pytest.mark.parametrize("name", ["", "-lab", "a b", "a/b", "..", "a.b", "läb", "lab\n", "x" * 33])
def test_a_name_that_cannot_be_is_refused(name: str):
    with pytest.raises(LabError, match="cannot be the name of a lab") as caught:
        LabSpec(name=name)
    assert "letters, digits and dashes" in caught.value.hint


@pytest.mark.parametrize(("nodes", "pods"), [(0, 1), (90, 1), (-1, 1), (1, -1), (1, 245)])
def test_more_than_the_addresses_hold_is_refused(nodes: int, pods: int):
    with pytest.raises(LabError, match=r"lab has (1|0) to (89|244) (nodes|pods), not"):
        LabSpec(nodes=nodes, pods=pods)


@pytest.mark.parametrize(
    "place",
    [Place("lab", "switch"), Place("a-b-1", "outside"), Place("lab", node=12), Place("a-node1", node=2, pod=3)],
    ids=lambda place: place.netns,
)
def test_a_name_says_what_it_stands_for(place: Place):
    assert parse_place(place.netns) == place


@pytest.mark.parametrize(
    "name",
    [
        "lab",
        "lab-node",
        "lab-node0",
        "lab-node01",
        "lab-pod1",
        "-switch",
        "lab-node90",
        "lab-node1-pod245",
        "a.b-node1",
    ],
)
def test_other_peoples_names_are_not_ours(name: str):
    assert parse_place(name) is None


def test_a_lab_is_where_a_switch_is():
    names = ["a-node1", "a-node10", "a-node2", "a-switch", "b-node1", "a-node1-switch", "a-node1-node1", "c"]
    found = places_of(names)
    assert {lab: [place.netns for place in places] for lab, places in found.items()} == {
        "a": ["a-node1", "a-node2", "a-node10", "a-switch"],
        "a-node1": ["a-node1-node1", "a-node1-switch"],
    }


def test_places_know_their_addresses():
    places = [Place("x", "switch"), Place("x", "outside"), Place("x", node=3), Place("x", node=3, pod=4)]
    assert [(place.kind, place.short_name, place.address, place.address6) for place in places] == [
        ("switch", "switch", "", ""),
        ("outside", "outside", "192.168.50.100", "2001:db8:50::100"),
        ("node", "node3", "192.168.50.13", "2001:db8:50::13"),
        ("pod", "node3-pod4", "10.244.3.14", "fd00:10:244:3::14"),
    ]


def test_one_pod_has_two_containers():
    pods = [Place("x", node=node, pod=pod) for node in (1, 2) for pod in (1, 2)]
    assert [containers_of(pod) for pod in pods] == [("app", "sidecar"), (), (), ()]
