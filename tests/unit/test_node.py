"""What `load` was asked for and what a host has, made into what will be done."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_interface
from typing import Any

import click
import pytest

from pydatapath.cli.node import load
from pydatapath.egress import Masquerade
from pydatapath.errors import DatapathError, NotFound
from pydatapath.kernel.host import Host, Interface, Neighbour
from pydatapath.kernel.layout import ENDPOINT, TIMEOUTS, EndpointKind, Family, Hook, NatType
from pydatapath.kernel.packing import unpack_ip
from pydatapath.node import LIMITS, WORDS, Node, Options, Scope, resolve
from pydatapath.seeding import _endpoints


def interface(index: int, name: str, kind: str = "veth", master: int = 0, *addresses: str) -> Interface:
    mac = f"02:00:00:00:00:{index:02x}"
    return Interface(index, name, kind, mac, master, tuple(ip_interface(at) for at in addresses))


LO = interface(1, "lo", "", 0, "127.0.0.1/8", "::1/128")
ETH0 = interface(2, "eth0", "", 0, "192.168.50.11/24", "192.168.50.12/24")
BR0 = interface(3, "br0", "bridge", 0, "10.244.1.1/24")
POD1, POD2 = interface(4, "veth1", master=3), interface(5, "veth2", master=3)
CALI = interface(6, "cali7")
WG0 = Interface(7, "wg0", "wireguard", "", 0, (ip_interface("10.9.0.1/24"),))  # as tun and ppp, it has no MAC
HOST = Host((LO, ETH0, BR0, POD2, POD1, CALI), ("eth0",), ())
# The same with IPv6 beside IPv4
ETH0_6 = interface(2, "eth0", "", 0, "192.168.50.11/24", "192.168.50.12/24", "fd00:50::11/64", "2001:db8::11/64")
BR0_6 = interface(3, "br0", "bridge", 0, "10.244.1.1/24", "fd00:10:244:1::1/64")
DUAL = Host((LO, ETH0_6, BR0_6, POD2, POD1, CALI), ("eth0",), ())
# And with IPv6 alone
ALONE = Host(
    (LO, interface(2, "eth0", "", 0, "fd00:50::11/64"), interface(3, "br0", "bridge", 0, "fd00:10:244:1::1/64"), POD1),
    ("eth0",),
    (),
)


def host(*interfaces: Interface, uplinks: tuple[str, ...] = ("eth0",)) -> Host:
    return Host(interfaces, uplinks, ())


def resolved(found: Host = HOST, **options: Any) -> Node:
    return resolve(Options.from_mapping(options), found, "worker")


def six(found: Host = DUAL, **options: Any) -> Scope:
    return resolved(found, **options).scopes[Family.IPV6]


def four(found: Host = HOST, **options: Any) -> Scope:
    return resolved(found, **options).scopes[Family.IPV4]


def names(interfaces: tuple[Interface, ...]) -> list[str]:
    return [one.name for one in interfaces]


def refusal(found: Host = HOST, kind: type[DatapathError] = DatapathError, **options: Any) -> tuple[str, str]:
    with pytest.raises(kind) as caught:
        resolved(found, **options)
    return str(caught.value), caught.value.hint


def test_all_of_it_is_found_out_where_nothing_is_said() -> None:
    """The host's name, the default route's interface, the only bridge with its ports and network."""
    assert resolved() == Node(
        name="worker",
        bridges=(BR0,),
        uplinks=(ETH0,),
        pods=(POD1, POD2),
        loopback=LO,
        scopes={
            Family.IPV4: Scope(
                addresses=(IPv4Address("192.168.50.11"), IPv4Address("192.168.50.12")),
                pod_networks=(IPv4Network("10.244.1.0/24"),),
                cluster_networks=(IPv4Network("10.244.1.0/24"),),
                service_networks=(IPv4Network("10.96.0.0/12"),),
                masquerade_address=IPv4Address("10.244.1.1"),
                node_port_addresses=(IPv4Address("192.168.50.11"), IPv4Address("192.168.50.12")),
                exclusive_networks=(IPv4Network("10.244.1.0/24"),),
            )
        },
        zone="",
        masquerade=Masquerade(NatType.ENDPOINT_INDEPENDENT, (1024, 65535), (30000, 32767)),
        timeouts=TIMEOUTS,
    )


def test_a_host_is_named_as_kubelet_names_it() -> None:
    """In small letters, else no EndpointSlice would name it."""
    assert resolve(Options(), HOST, "Worker.Example").name == "worker.example"


def test_IPv6_is_found_out_as_IPv4_is() -> None:
    """A bridge with an IPv6 address is enough; what IPv4 has is what it has without."""
    found = resolved(DUAL)
    assert found.scopes[Family.IPV4] == four()
    assert found.scopes[Family.IPV6] == Scope(
        addresses=(IPv6Address("fd00:50::11"), IPv6Address("2001:db8::11")),
        pod_networks=(IPv6Network("fd00:10:244:1::/64"),),
        cluster_networks=(IPv6Network("fd00:10:244:1::/64"),),
        service_networks=(IPv6Network("fd00:10:96::/112"),),
        masquerade_address=IPv6Address("fd00:10:244:1::1"),
        node_port_addresses=(IPv6Address("fd00:50::11"), IPv6Address("2001:db8::11")),
        exclusive_networks=(IPv6Network("fd00:10:244:1::/64"),),
    )
    assert [str(at) for at in found.addresses] == ["192.168.50.11", "192.168.50.12", "fd00:50::11", "2001:db8::11"]
    assert [str(at) for at in found.service_networks] == ["10.96.0.0/12", "fd00:10:96::/112"]
    assert [str(at) for at in found.pod_networks] == ["10.244.1.0/24", "fd00:10:244:1::/64"]


@pytest.mark.parametrize(
    ("found", "options", "families"),
    [
        pytest.param(HOST, {}, [4], id="no IPv6 address"),
        pytest.param(DUAL, {}, [4, 6], id="the bridge has one"),
        pytest.param(host(LO, ETH0_6, BR0, POD1), {}, [4], id="only the uplink has one"),
        pytest.param(host(LO, ETH0_6, BR0), {"pod_cidr": ["fd00:10:244:1::/64"]}, [4, 6], id="a pod network is named"),
        pytest.param(host(LO, ETH0_6, BR0), {"service_cidr": ["fd00:96::/112"]}, [4, 6], id="a service network"),
        pytest.param(host(LO, ETH0_6, BR0), {"cluster_cidr": ["fd00:10::/32"]}, [4, 6], id="a cluster network"),
        pytest.param(HOST, {"node_ip": ["192.0.2.1", "2001:db8::1"]}, [4, 6], id="a node IP"),
        pytest.param(HOST, {"nodeport_addresses": ["0.0.0.0/0", "::/0"]}, [4], id="node ports wherever they are"),
        pytest.param(
            host(ETH0, interface(6, "cali7", "veth", 0, "fd00::1/128")),
            {"pod_interface": ["cali*"]},
            [4, 6],
            id="a pod's",
        ),
        pytest.param(ALONE, {}, [4, 6], id="IPv6 alone"),
    ],
)
def test_IPv6_is_loaded_where_it_is_used(found: Host, options: dict[str, Any], families: list[int]) -> None:
    """On the pods' side of the host, or in the options."""
    assert [int(family) for family in resolved(found, **options).families] == families


def test_a_host_with_IPv6_alone_has_nothing_of_IPv4() -> None:
    """IPv4's programs are loaded and have nothing to do."""
    assert four(ALONE) == Scope()
    assert six(ALONE).masquerade_address == IPv6Address("fd00:10:244:1::1")
    assert Hook.TO_LOOPBACK in {one.hook for one in resolved(ALONE).attachments}


@pytest.mark.parametrize(
    ("options", "networks"),
    [
        pytest.param({}, ["fd00:10:96::/112"], id="kind's"),
        pytest.param({"service_cidr": ["10.96.0.0/16"]}, ["fd00:10:96::/112"], id="another family's is said"),
        pytest.param({"service_cidr": ["10.96.0.0/16", "fd00:96::/112"]}, ["fd00:96::/112"], id="its own is said"),
        pytest.param({"pod_cidr": ["fd00:10:96::/64"]}, [], id="pods are there"),
        pytest.param({"cluster_cidr": ["fd00:10::/32"]}, [], id="pods of other nodes are there"),
    ],
)
def test_where_IPv6_services_are(options: dict[str, Any], networks: list[str]) -> None:
    """What is not said is kind's network, unless something else is there: kubeadm has no default."""
    assert [str(network) for network in six(**options).service_networks] == networks
    assert four(DUAL, service_cidr=["fd00:96::/112"]).service_networks == (IPv4Network("10.96.0.0/12"),)


def test_options_take_both_families() -> None:
    """Each family has those of a list that are its own."""
    found = resolved(
        DUAL,
        node_ip=["2001:db8::1", "192.0.2.1"],
        pod_cidr=["10.8.0.0/16", "fd00:8::/64"],
        cluster_cidr=["fd00:8::/48", "10.0.0.0/11"],
        service_cidr=["172.20.0.0/16", "fd00:20::/112", "fd00:21::/112"],
        nodeport_addresses=["fd00:50::/64"],
        masquerade=False,
    )
    assert found.scopes == {
        Family.IPV4: Scope(
            addresses=(IPv4Address("192.0.2.1"),),
            pod_networks=(IPv4Network("10.8.0.0/16"),),
            cluster_networks=(IPv4Network("10.0.0.0/11"),),
            service_networks=(IPv4Network("172.20.0.0/16"),),
            masquerade_address=IPv4Address("10.244.1.1"),
            node_port_addresses=(IPv4Address("192.0.2.1"),),
            exclusive_networks=(IPv4Network("10.8.0.0/16"),),
        ),
        Family.IPV6: Scope(
            addresses=(IPv6Address("2001:db8::1"),),
            pod_networks=(IPv6Network("fd00:8::/64"),),
            cluster_networks=(IPv6Network("fd00:8::/48"),),
            service_networks=(IPv6Network("fd00:20::/112"), IPv6Network("fd00:21::/112")),
            masquerade_address=IPv6Address("fd00:10:244:1::1"),
            node_port_addresses=(IPv6Address("fd00:50::11"),),
            exclusive_networks=(IPv6Network("fd00:8::/64"),),
        ),
    }


def test_N87_a_network_that_others_are_in_too_is_not_this_nodes_alone() -> None:
    """An uplink in it, as a port of the bridge or by an address of its own, or other nodes' pods."""
    found = resolved(pod_cidr=["10.244.0.0/16"], cluster_cidr=["10.244.0.0/16"])
    assert found.scopes[Family.IPV4].exclusive_networks == ()
    found = resolved(pod_cidr=["10.244.0.0/24"], cluster_cidr=["10.244.0.0/16"])
    assert found.scopes[Family.IPV4].exclusive_networks == (IPv4Network("10.244.0.0/24"),)
    found = resolved(pod_cidr=["192.168.50.0/24", "10.244.1.0/24"])
    assert found.scopes[Family.IPV4].exclusive_networks == (IPv4Network("10.244.1.0/24"),)


def test_each_option_stands_for_what_would_be_found_out() -> None:
    """What is said is taken instead of what the host shows."""
    br1 = interface(7, "br1", "bridge", 0, "10.9.0.1/24")
    found = resolved(
        host(LO, ETH0, BR0, POD1, CALI, br1, interface(8, "eth1"), interface(9, "port", master=7)),
        node_name="node1",
        uplink=["eth1"],
        bridge=["br1"],
        pod_interface=["cali*"],
        node_ip=["192.0.2.1"],
        pod_cidr=["10.8.0.0/16", "10.9.0.7/24"],
        service_cidr=["172.20.0.0/16"],
        zone="west",
    )
    assert (found.name, names(found.uplinks), names(found.bridges)) == ("node1", ["eth1"], ["br1"])
    assert names(found.pods) == ["cali7", "port"]
    assert found.addresses == found.node_port_addresses == [IPv4Address("192.0.2.1")]
    assert found.zone == "west"
    assert found.pod_networks == [IPv4Network("10.8.0.0/16"), IPv4Network("10.9.0.0/24")]
    assert found.service_networks == [IPv4Network("172.20.0.0/16")]
    assert found.scopes[Family.IPV4].masquerade_address == IPv4Address("10.9.0.1")


@pytest.mark.parametrize(
    ("networks", "addresses"),
    [
        (["192.168.50.12/32"], ["192.168.50.12"]),
        (["192.168.50.8/30", "10.0.0.0/8"], ["192.168.50.11", "10.244.1.1"]),
        (["172.16.0.0/12", "192.168.50.0/24", "192.168.0.0/16"], ["192.168.50.11", "192.168.50.12"]),
        (["0.0.0.0/0"], ["192.168.50.11", "192.168.50.12", "10.244.1.1"]),
        (["192.168.50.11/32", "::/0"], ["192.168.50.11"]),
    ],
)
def test_C5_S46_node_ports_answer_where_it_is_said(networks: list[str], addresses: list[str]) -> None:
    """At the host's addresses in the networks named (C5), once each, never at loopback (S47), whatever the node IPs."""
    found = resolved(node_ip=["192.0.2.1"], nodeport_addresses=networks)
    assert [str(address) for address in found.node_port_addresses] == addresses


@pytest.mark.parametrize(
    ("networks", "addresses"),
    [
        ([], ["192.168.50.11", "192.168.50.12", "fd00:50::11", "2001:db8::11"]),
        (["192.168.50.12/32"], ["192.168.50.12", "fd00:50::11", "2001:db8::11"]),
        (["2001:db8::/32"], ["192.168.50.11", "192.168.50.12", "2001:db8::11"]),
        (["192.168.50.12/32", "::/0"], ["192.168.50.12", "fd00:50::11", "2001:db8::11", "fd00:10:244:1::1"]),
    ],
)
def test_C5_S46_a_family_of_which_nothing_is_said_has_its_node_ports(networks: list[str], addresses: list[str]) -> None:
    """Networks of one family leave the other one as it is without any."""
    assert [str(at) for at in resolved(DUAL, nodeport_addresses=networks).node_port_addresses] == addresses


def test_every_interface_gets_the_program_of_its_role() -> None:
    """Every hook of an interface's role has its program there, once, and no other."""
    interfaces = {"pod": ["veth1", "veth2"], "uplink": ["eth0"], "bridge": ["br0"], "loopback": ["lo"]}
    found = [(one.interface.name, one.hook) for one in resolved().attachments]
    assert sorted(found) == sorted((name, hook) for hook in Hook for name in interfaces[hook.role])


def test_S46_the_loopback_is_left_alone_where_no_node_port_answers() -> None:
    """Only the node's calls of its own node ports go that way."""
    found = resolved(replace(HOST, default_interfaces=()))
    assert Hook.TO_LOOPBACK not in {one.hook for one in found.attachments}


def test_who_answers_to_an_address_is_known_from_the_start() -> None:
    """Each family has the pods that the host has seen at their interfaces, and the node's own addresses."""
    mac = "02:00:00:00:00:0b"
    seen = [("10.244.1.11", POD1), ("fd00:10:244:1::11", POD1), ("10.9.0.1", POD1), ("fd00:9::1", POD1)]
    elsewhere = [("10.244.1.12", CALI), ("fd00:10:244:1::12", CALI)]
    found = replace(DUAL, neighbours=tuple(Neighbour(ip_address(at), mac, on.index) for at, on in [*seen, *elsewhere]))
    node = resolved(found)
    own = [str(at) for at in found.addresses]
    for family, pod in ((Family.IPV4, "10.244.1.11"), (Family.IPV6, "fd00:10:244:1::11")):
        entries = {unpack_ip(key): ENDPOINT.unpack(value) for key, value in _endpoints(node, found, family).items()}
        assert entries.pop(pod) == (POD1.index, bytes.fromhex(mac.replace(":", "")), EndpointKind.POD)
        assert entries.keys() == {at for at in own if Family.of(at) is family}
        bridge = (BR0.index, bytes.fromhex(BR0.mac.replace(":", "")), EndpointKind.NODE)
        assert set(entries.values()) == {bridge}


def test_an_uplink_that_is_a_port_of_the_bridge_is_no_pod() -> None:
    """On a bridge that the uplink is plugged into, only the other ports are pods."""
    found = resolved(host(replace(ETH0, master=3), BR0, POD1))
    assert (names(found.pods), names(found.uplinks)) == (["veth1"], ["eth0"])


def test_a_glob_takes_neither_bridges_nor_uplinks() -> None:
    """`*` means every other interface; the loopback is nobody's."""
    assert names(resolved(pod_interface=["*"]).pods) == ["cali7", "veth1", "veth2"]


def test_pods_without_a_bridge() -> None:
    """With pod interfaces named there need not be a bridge: the node shows its own address."""
    found = resolved(host(ETH0, CALI), pod_interface=["cali*"])
    assert (found.bridges, names(found.pods), found.pod_networks) == ((), ["cali7"], [])
    assert found.scopes[Family.IPV4].masquerade_address == IPv4Address("192.168.50.11")


def test_a_host_without_default_route_has_no_uplink() -> None:
    """A cluster on one machine needs none."""
    found = resolved(replace(HOST, default_interfaces=()))
    assert (found.uplinks, found.addresses) == ((), [])


def test_a_default_route_without_Ethernet_may_be_none_of_ours() -> None:
    """Where another uplink is named."""
    found = resolved(host(ETH0, WG0, BR0, POD1, uplinks=("wg0",)), uplink=["eth0"])
    assert found.uplinks == (ETH0,)


def test_a_bridge_without_address_is_not_taken_for_the_pods() -> None:
    """docker0 may be there and down: the bridge that is meant has an address."""
    other = interface(7, "docker0", "bridge")
    assert names(resolved(host(ETH0, other, BR0, POD1)).bridges) == ["br0"]


@pytest.mark.parametrize(
    ("found", "options", "kind", "message", "hint"),
    [
        pytest.param(
            HOST,
            {"uplink": ["eth9"]},
            NotFound,
            "interface 'eth9' does not exist",
            "there are: br0, cali7, eth0, lo, veth1, veth2",
            id="uplink",
        ),
        pytest.param(HOST, {"bridge": ["br9"]}, NotFound, "interface 'br9' does not exist", "there are: ", id="bridge"),
        pytest.param(
            HOST,
            {"bridge": ["veth1"]},
            DatapathError,
            "interface 'veth1' is no bridge",
            "--pod-interface names single interfaces",
            id="no bridge",
        ),
        pytest.param(
            host(ETH0, BR0, interface(7, "br1", "bridge", 0, "10.9.0.1/24")),
            {},
            DatapathError,
            "this host has several bridges: br0, br1",
            "say which with --bridge",
            id="several bridges",
        ),
        pytest.param(
            host(ETH0, POD1),
            {},
            NotFound,
            "this host has no bridge with an address",
            "--bridge or --pod-interface say where pods are",
            id="nowhere for pods",
        ),
        pytest.param(
            HOST,
            {"pod_interface": ["tap*"]},
            NotFound,
            "--pod-interface 'tap*' matches no interface",
            "`ip link` lists them",
            id="glob",
        ),
        pytest.param(
            host(CALI, uplinks=()),
            {"pod_interface": ["cali*"]},
            DatapathError,
            "this host has no address to show to pods",
            "give the bridge one, or --node-ip",
            id="no address",
        ),
        pytest.param(
            HOST,
            {"node_ip": ["node1"]},
            DatapathError,
            "--node-ip 'node1' is not an IP address",
            "such as 192.168.50.11 or fd00:192:168:50::11",
            id="node IP",
        ),
        pytest.param(
            HOST,
            {"node_ip": ["fe80::1"]},
            DatapathError,
            "--node-ip 'fe80::1' is of one link only",
            "a global or unique local one, please",
            id="link-local node IP",
        ),
        pytest.param(
            HOST,
            {"pod_cidr": ["fe80::/64"]},
            DatapathError,
            "--pod-cidr 'fe80::/64' is of one link only",
            "a global or unique local one, please",
            id="link-local pod CIDR",
        ),
        pytest.param(
            HOST,
            {"service_cidr": ["fd00:96::/112"]},
            DatapathError,
            "this host has no IPv6 address to show to pods, and IPv6 networks are named",
            "give the bridge one, or --node-ip",
            id="no IPv6 address",
        ),
        pytest.param(
            ALONE,
            {"pod_cidr": ["10.244.1.0/24"]},
            DatapathError,
            "this host has no IPv4 address to show to pods, and IPv4 networks are named",
            "give the bridge one, or --node-ip",
            id="no IPv4 address",
        ),
        pytest.param(
            DUAL,
            {"service_cidr": ["fd00:10:244::/48"]},
            DatapathError,
            "the service network fd00:10:244::/48 overlaps fd00:10:244:1::/64, which this host or its pods are in",
            "--service-cidr names another one",
            id="overlap",
        ),
        pytest.param(
            DUAL,
            {"nodeport_addresses": ["0.0.0.0/0", "2001:db8:7::/48"]},
            DatapathError,
            "--nodeport-addresses 2001:db8:7::/48: none of this host's addresses is in there",
            "`ip address` lists them",
            id="no IPv6 node port address",
        ),
        pytest.param(
            host(ETH0, WG0, BR0, POD1),
            {"uplink": ["eth0", "wg0"]},
            DatapathError,
            "uplink 'wg0' has no Ethernet, and its packets cannot be read",
            "--uplink names others, such as eth0; what pods send by 'wg0' is left as it is then",
            id="an uplink without Ethernet",
        ),
        pytest.param(
            host(ETH0, WG0, BR0, POD1, uplinks=("wg0",)),
            {},
            DatapathError,
            "uplink 'wg0' has no Ethernet, and its packets cannot be read",
            "--uplink names others, such as eth0; what pods send by 'wg0' is left as it is then",
            id="a default route by WireGuard",
        ),
        pytest.param(
            host(replace(WG0, name="sit1", mac="c0:00:02:01"), BR0, POD1, uplinks=("sit1",)),
            {},
            DatapathError,
            "uplink 'sit1' has no Ethernet, and its packets cannot be read",
            "--uplink names others; what pods send by 'sit1' is left as it is then",
            id="a tunnel whose address is IPv4's",
        ),
        pytest.param(
            HOST,
            {"pod_cidr": ["10.244.1.0/33"]},
            DatapathError,
            "--pod-cidr '10.244.1.0/33' is not an IP network",
            "such as 10.96.0.0/12 or fd00:10:96::/112",
            id="pod CIDR",
        ),
        pytest.param(
            HOST,
            {"service_cidr": ["services"]},
            DatapathError,
            "--service-cidr 'services' is not an IP network",
            "such as 10.96.0.0/12 or fd00:10:96::/112",
            id="service CIDR",
        ),
        pytest.param(
            HOST,
            {"nodeport_addresses": ["primary"]},
            DatapathError,
            "--nodeport-addresses 'primary' is not an IP network",
            "such as 10.96.0.0/12 or fd00:10:96::/112",
            id="no node port network",
        ),
        pytest.param(
            HOST,
            {"nodeport_addresses": ["127.0.0.0/8", "192.0.2.0/24"]},
            DatapathError,
            "--nodeport-addresses 127.0.0.0/8, 192.0.2.0/24: none of this host's addresses is in there",
            "`ip address` lists them",
            id="no node port address",
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(
    found: Host, options: dict[str, Any], kind: type[DatapathError], message: str, hint: str
) -> None:
    """The sentence names the interface or option, the hint says what to do."""
    said, advice = refusal(found, kind, **options)
    assert said == message
    assert advice.startswith(hint)


def test_options_are_kept_and_read_back() -> None:
    """What load was given goes to the records as JSON knows it, lists for tuples, and comes back the same."""
    options = Options(node_name="node1", uplink=("eth0", "eth1"), algorithm="maglev", max_flows=4096)
    as_json = {name: list(value) if isinstance(value, tuple) else value for name, value in options.as_mapping().items()}
    assert Options.from_mapping(as_json) == options
    assert Options.from_mapping({}) == Options()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"uplinks": ["eth0"]}, "option 'uplinks' is unknown"),
        ({"uplink": "eth0"}, "option 'uplink' must be a list of strings, not 'eth0'"),
        ({"uplink": ["eth0", 1]}, "option 'uplink' must be a list of strings, not ['eth0', 1]"),
        ({"node_name": 1}, "option 'node_name' must be str, not 1"),
        ({"node_name": "Node_1"}, "option 'node_name' must be a name that Kubernetes allows, not 'Node_1'"),
        ({"zone": "a\0"}, "option 'zone' must be a name that Kubernetes allows, not 'a\\x00'"),
        ({"algorithm": 1}, "option 'algorithm' must be str, not 1"),
        ({"algorithm": "Maglev"}, "option 'algorithm' must be random or maglev, not 'Maglev'"),
        ({"max_flows": "many"}, "option 'max_flows' must be int, not 'many'"),
        ({"max_flows": True}, "option 'max_flows' must be int, not True"),
        ({"max_flows": 0}, "option 'max_flows' must be from 1,024 to 16,777,216, not 0"),
        ({"max_backends": 1 << 40}, "option 'max_backends' must be from 16 to 4,194,304, not 1,099,511,627,776"),
    ],
)
def test_F25_a_bad_option_is_one_sentence(values: dict[str, Any], message: str) -> None:
    """From a configuration file may come any name, type and number."""
    with pytest.raises(DatapathError) as caught:
        Options.from_mapping(values)
    assert str(caught.value) == message
    assert ("known are: algorithm, bridge, " in caught.value.hint) == ("unknown" in message)


def test_the_command_line_has_the_same_limits() -> None:
    """A number or word that `load` takes as an option it takes from a file, and the other way round."""
    ranges = {one.name: one.type for one in load.params if isinstance(one.type, click.IntRange)}
    assert {name: (one.min, one.max) for name, one in ranges.items()} == LIMITS
    words = {one.name: one.type.choices for one in load.params if isinstance(one.type, click.Choice)}
    assert {name: tuple(choices) for name, choices in words.items()} == WORDS
