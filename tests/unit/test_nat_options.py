"""What `load` is told of masquerading, made into addresses and ports."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_interface
from typing import Any

import pytest

from pydatapath.egress import Masquerade, few_ports
from pydatapath.errors import DatapathError
from pydatapath.kernel.host import Host, Interface
from pydatapath.kernel.layout import MAPS, TIMEOUTS, Family, NatType
from pydatapath.kernel.nattable import is_there
from pydatapath.node import Node, Options, resolve

LONG = "9" * 5000  # digits, more than int() takes


def interface(index: int, name: str, kind: str, *addresses: str, master: int = 0) -> Interface:
    return Interface(index, name, kind, f"02:00:00:00:00:{index:02x}", master, tuple(map(ip_interface, addresses)))


LO = interface(1, "lo", "", "127.0.0.1/8", "::1/128")
ETH0 = interface(2, "eth0", "", "192.0.2.11/24", "192.0.2.12/24", "fd00:50::11/64", "2001:db8::11/64")
ETH1 = interface(3, "eth1", "", "198.51.100.11/24")
BR0 = interface(4, "br0", "bridge", "10.244.1.1/24", "fd00:10:244:1::1/64")
POD = interface(5, "veth1", "veth", master=4)
HOST = Host((LO, ETH0, ETH1, BR0, POD), ("eth0",), ())
GLOBAL = replace(HOST, interfaces=(LO, ETH0, interface(4, "br0", "bridge", "10.244.1.1/24", "2001:db8:1::1/64"), POD))


def resolved(found: Host = HOST, **options: Any) -> Node:
    return resolve(Options.from_mapping({"masquerade": True, **options}), found, "worker")


def egress(node: Node, family: Family) -> list[str]:
    """Uplink, address, and the pods that are meant where not all are."""
    found = node.scopes[family].egress
    return [f"{one.uplink} {one.address}{f' {one.network}' if one.network else ''}" for one in found]


def refusal(found: Host = HOST, **options: Any) -> tuple[str, str]:
    with pytest.raises(DatapathError) as caught:
        resolved(found, **options)
    return str(caught.value), caught.value.hint


@pytest.mark.parametrize(
    ("found", "options", "families"),
    [
        pytest.param(HOST, {}, [], id="nothing said"),
        pytest.param(HOST, {"masquerade": True}, [4, 6], id="asked for"),
        pytest.param(GLOBAL, {"masquerade": True}, [4, 6], id="global pods, asked for"),
        pytest.param(HOST, {"snat_address": ["2001:db8::11"]}, [6], id="an address named"),
        pytest.param(HOST, {"cluster_cidr": ["10.244.0.0/16"]}, [4], id="the cluster's networks of one family"),
        pytest.param(HOST, {"cluster_cidr": ["10.244.0.0/16", "fd00:10::/32"]}, [4, 6], id="of both"),
        pytest.param(
            HOST, {"cluster_cidr": ["10.244.0.0/16"], "snat_address": ["2001:db8::11"]}, [4, 6], id="one of each"
        ),
        pytest.param(HOST, {"masquerade": False}, [], id="not wanted"),
        pytest.param(HOST, {"masquerade": False, "cluster_cidr": ["10.244.0.0/16"]}, [], id="all the same not wanted"),
        pytest.param(replace(HOST, default_interfaces=()), {"masquerade": True}, [], id="no uplink"),
        pytest.param(replace(HOST, default_interfaces=("eth1",)), {"masquerade": True}, [4], id="an uplink of IPv4"),
        pytest.param(
            Host((LO, ETH0, POD), ("eth0",), ()),
            {"pod_interface": ["veth*"], "masquerade": True},
            [],
            id="no pod network",
        ),
    ],
)
def test_which_families_are_masqueraded(found: Host, options: dict[str, Any], families: list[int]) -> None:
    """Where it is asked for, both; or that of which the cluster's networks or an address are named."""
    node = resolve(Options.from_mapping(options), found, "worker")
    assert [int(family) for family in node.masqueraded] == families
    for family in Family:
        for name, contract in MAPS.items():
            if name == f"mappings{family.suffix}":
                assert is_there(contract, node.families, node.masqueraded) == (family in families)


@pytest.mark.parametrize(
    ("options", "four", "six"),
    [
        pytest.param({}, ["2 192.0.2.11"], ["2 2001:db8::11"], id="the uplink's first, of IPv6 a global one"),
        pytest.param({"node_ip": ["192.0.2.12", "fd00:50::11"]}, ["2 192.0.2.12"], ["2 fd00:50::11"], id="the node's"),
        pytest.param({"node_ip": ["203.0.113.7"]}, ["2 192.0.2.11"], ["2 2001:db8::11"], id="the node's, not ours"),
        pytest.param(
            {"uplink": ["eth0", "eth1"]},
            ["2 192.0.2.11", "3 198.51.100.11"],
            ["2 2001:db8::11", "3 2001:db8::11"],
            id="two uplinks, one without an address of a family",
        ),
        pytest.param(
            {"uplink": ["eth1"], "node_ip": ["198.51.100.11", "2001:db8::11"]},
            ["3 198.51.100.11"],
            ["3 2001:db8::11"],
            id="an uplink without an address of the family: the node's elsewhere",
        ),
        pytest.param(
            {"snat_address": ["192.0.2.12", "fd00:50::11"]}, ["2 192.0.2.12"], ["2 fd00:50::11"], id="a named one"
        ),
        pytest.param(
            {"snat_address": ["10.244.1.0/24=192.0.2.12", "10.244.1.16/28 = 198.51.100.11"]},
            ["2 198.51.100.11 10.244.1.16/28", "2 192.0.2.12 10.244.1.0/24", "2 192.0.2.11"],
            ["2 2001:db8::11"],
            id="for some pods, the smallest network first",
        ),
        pytest.param(
            {"uplink": ["eth0", "eth1"], "snat_address": ["192.0.2.12"]},
            ["2 192.0.2.12", "3 192.0.2.12"],
            ["2 2001:db8::11", "3 2001:db8::11"],
            id="a named one by every uplink",
        ),
    ],
)
def test_N7_behind_which_address(options: dict[str, Any], four: list[str], six: list[str]) -> None:
    """By uplink; the first that fits counts."""
    node = resolved(**options)
    assert (egress(node, Family.IPV4), egress(node, Family.IPV6)) == (four, six)


def test_where_pods_are_seen_as_they_are() -> None:
    """Each family has its own of the networks."""
    node = resolved(non_masquerade_cidr=["192.0.2.0/24", "2001:db8:7::/48", "203.0.113.7"])
    assert [str(one) for one in node.scopes[Family.IPV4].unmasqueraded_networks] == ["192.0.2.0/24", "203.0.113.7/32"]
    assert [str(one) for one in node.scopes[Family.IPV6].unmasqueraded_networks] == ["2001:db8:7::/48"]


def test_how_it_is_done() -> None:
    """Type and ports."""
    assert resolved().masquerade == Masquerade(NatType.ENDPOINT_INDEPENDENT, (1024, 65_535), (30_000, 32_767))
    said = {"nat_type": "full-cone", "snat_ports": "20000 - 29999", "nodeport_range": "8000-9000"}
    assert resolved(**said).masquerade == Masquerade(NatType.FULL_CONE, (20_000, 29_999), (8_000, 9_000))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param({}, [], id="the default"),
        pytest.param({"snat_ports": "20000-20099"}, [], id="few were asked for"),
        pytest.param({"snat_ports": "27233-32767"}, ["of the 5,535 ports of --snat-ports 27233-32767 only 2,767 may"]),
        pytest.param({"snat_ports": "27232-32767"}, [], id="half of them"),
        pytest.param({"nodeport_range": "2000-65000"}, ["of the 64,512 ports of --snat-ports 1024-65535 only 1,511"]),
    ],
)
def test_N19_who_asks_for_ports_of_which_most_may_not_be_used_is_told(options: dict[str, Any], said: list[str]) -> None:
    """In one sentence, with how many are left."""
    found = few_ports(resolved(**options).masquerade)
    assert [one[: len(part)] for one, part in zip(found, said, strict=True)] == said


def test_N19_ports_that_nobody_needs_are_not_looked_at() -> None:
    """A node that does not masquerade may have all its ports for services."""
    assert resolved(masquerade=False, nodeport_range="1024-65535").masquerade.node_ports == (1024, 65_535)


def test_N24_how_many_flows_a_pod_may_begin() -> None:
    """As many as it wants, unless said."""
    assert resolved().masquerade.pod_flows is None
    assert resolved(pod_flow_rate=" 20000 / 120 ").masquerade.pod_flows == (20_000, 120)


@pytest.mark.parametrize("text", ["20000", "0/60", "10/0", "10/3601", "100001/60", "10/1m", "-1/60", "/", "10/60/2"])
def test_N24_what_is_no_rate_is_said_in_one_sentence(text: str) -> None:
    """With the form, and the bounds."""
    message, hint = refusal(pod_flow_rate=text)
    assert message == f"--pod-flow-rate {text!r} is no rate of flows"
    assert "such as 20000/120" in hint


def test_C14_how_long_flows_live() -> None:
    """As said; what is not said stays."""
    assert resolved(timeout=["udp=180"]).timeouts == {**TIMEOUTS, "UDP_ESTABLISHED": 180}
    said, _ = refusal(timeout=["udp=0"])
    assert said == "--timeout 'udp=0' is no time"


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        (
            {"snat_address": ["192.0.2.99"]},
            "--snat-address 192.0.2.99: 192.0.2.99 is none of this host's addresses",
            "an answer to it would never come here",
        ),
        (
            {"snat_address": ["10.9.0.0/24=192.0.2.11"]},
            "--snat-address 10.9.0.0/24=192.0.2.11: none of this node's pods is in 10.9.0.0/24",
            "they are in 10.244.1.0/24",
        ),
        (
            {"snat_address": ["10.244.1.0/24=2001:db8::11"]},
            "--snat-address '10.244.1.0/24=2001:db8::11' names pods of one family and an address of the other",
            "",
        ),
        (
            {"snat_address": ["192.0.2.11", "192.0.2.12"]},
            "--snat-address names two addresses for all pods of IPv4: 192.0.2.11 and 192.0.2.12",
            "an uplink has one of them",
        ),
        (
            {"snat_address": ["10.244.1.0/24=192.0.2.11", "10.244.1.7/24=192.0.2.12"]},
            "--snat-address names two addresses for the pods of 10.244.1.0/24: 192.0.2.11 and 192.0.2.12",
            "an uplink has one of them",
        ),
        ({"snat_address": ["eth0"]}, "--snat-address 'eth0' is not an IP address", "such as 192.168.50.11"),
        ({"snat_address": ["pods=192.0.2.11"]}, "--snat-address 'pods' is not an IP network", "such as 10.96.0.0/12"),
        (
            {"snat_address": ["192.0.2.11"], "masquerade": False},
            "--snat-address 192.0.2.11 says behind what pods leave, and --no-masquerade that they do not",
            "leave one of them out",
        ),
        ({"non_masquerade_cidr": ["lan"]}, "--non-masquerade-cidr 'lan' is not an IP network", "such as 10.96.0.0/12"),
        ({"snat_ports": "1024"}, "--snat-ports '1024' is no range of ports", "such as 1024-65535"),
        ({"snat_ports": "1024-"}, "--snat-ports '1024-' is no range of ports", "such as 1024-65535"),
        ({"snat_ports": "0-100"}, "--snat-ports '0-100' is no range of ports", "the first is less than the last"),
        ({"snat_ports": "9-8"}, "--snat-ports '9-8' is no range of ports", "the first is less than the last"),
        ({"snat_ports": "9-9"}, "--snat-ports '9-9' is no range of ports", "the first is less than the last"),
        ({"snat_ports": f"1-{LONG}"}, f"--snat-ports '1-{LONG}' is no range of ports", "such as 1024-65535"),
        ({"nodeport_range": "1-70000"}, "--nodeport-range '1-70000' is no range of ports", "the first is less"),
        (
            {"snat_ports": "30000-32767"},
            "--snat-ports 30000-32767: all of these are node ports (30000-32767) or tunnels'",
            "another range",
        ),
        (
            {"snat_ports": "8471-8472", "nodeport_range": "8000-8471"},
            "--snat-ports 8471-8472: all of these are node ports (8000-8471) or tunnels'",
            "another range",
        ),
        (
            {"nat_type": "restricted"},
            "option 'nat_type' must be endpoint-independent or symmetric or full-cone, not 'restricted'",
            "",
        ),
        ({"masquerade": "yes"}, "option 'masquerade' must be true or false, not 'yes'", ""),
        ({"snat_ports": 1024}, "option 'snat_ports' must be str, not 1024", ""),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(options: dict[str, Any], message: str, hint: str) -> None:
    """The sentence names the option, the hint says what to do."""
    said, advice = refusal(**options)
    assert said == message
    assert advice.startswith(hint)


def test_what_is_not_said_of_masquerade_is_kept_as_that() -> None:
    """The records know yes, no, and neither."""
    for said in (None, True, False):
        options = Options(masquerade=said)
        assert Options.from_mapping(options.as_mapping()) == options
