"""Our wrappers around pyroute2: what they are told arrives, and what they refuse names the object."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest

from pydatapath.errors import Conflict, KernelError, NotFound
from pydatapath.kernel import links, netns, sysctl
from pydatapath.kernel.attach import Attacher
from pydatapath.kernel.gateway import SERVICE_GATEWAY_MAC, SERVICE_GATEWAYS
from pydatapath.kernel.host import Host, Neighbour, service_routes, survey
from pydatapath.kernel.layout import Family


@pytest.fixture
def scratch() -> Iterator[str]:
    """An empty namespace."""
    name = f"l{os.getpid()}"
    links.create_namespace(name)
    yield name
    links.delete_namespace(name)


def ip(netns: str, *arguments: str) -> list[dict[str, object]]:
    done = subprocess.run(["ip", "-n", netns, "-j", "-d", *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_links_do_what_they_say(scratch: str):
    other = f"{scratch}2"
    links.create_namespace(other)
    try:
        with links.Links(scratch) as here:
            here.veth("a", "b", other, peer_mac="02:00:00:00:00:0b")
            here.bridge("br0", "02:00:00:00:00:01")
            here.enslave("a", "br0")
            here.address("br0", "10.0.0.1/24")
            here.address("br0", "fd00::1/64")
            here.neighbour("br0", "10.0.0.9", "02:00:00:00:00:09")
            here.route("10.9.0.0/16", via="10.0.0.9", device="br0")
            assert ip(scratch, "link", "show", "a")[0]["master"] == "br0"
            assert ip(other, "link", "show", "b")[0]["address"] == "02:00:00:00:00:0b"
            (neighbour,) = ip(scratch, "neigh", "show", "dev", "br0")
            assert (neighbour["lladdr"], neighbour["state"]) == ("02:00:00:00:00:09", ["PERMANENT"])
            (route,) = ip(scratch, "route", "show", "10.9.0.0/16")
            assert (route["gateway"], route["dev"]) == ("10.0.0.9", "br0")
            here.delete("a")
            assert [link["ifname"] for link in ip(other, "link")] == ["lo"]
    finally:
        links.delete_namespace(other)


def test_errors_name_the_object(scratch: str):
    with links.Links(scratch) as here:
        here.bridge("br0", "02:00:00:00:00:01")
        with pytest.raises(Conflict, match=f"cannot add bridge br0 in {scratch}: it exists already"):
            here.bridge("br0", "02:00:00:00:00:01")
        with pytest.raises(NotFound, match=f"there is no interface nic in {scratch}"):
            here.up("nic")
        with pytest.raises(KernelError, match=f"cannot add route to default via 1.2.3.4 in {scratch}: Network is"):
            here.route("default", via="1.2.3.4")
        with pytest.raises(NotFound, match="network namespace 'nowhere' does not exist"):
            here.veth("a", "b", "nowhere", peer_mac="02:00:00:00:00:0b")
    with pytest.raises(Conflict, match=f"network namespace '{scratch}' exists already"):
        links.create_namespace(scratch)
    with pytest.raises(NotFound, match="network namespace 'nowhere' does not exist"):
        links.delete_namespace("nowhere")
    with pytest.raises(NotFound, match="no sysctl net/ipv4/nonsense"):
        links.write_sysctls(scratch, {"net/ipv4/nonsense": "1"})
    with pytest.raises(KernelError, match="cannot set sysctl net/ipv4/ip_forward=x in"):
        links.write_sysctls(scratch, {"net/ipv4/ip_forward": "x"})


def test_offloads_are_switched(scratch: str):
    """Read with ethtool, as a user would."""
    if shutil.which("ethtool") is None:
        pytest.skip("ethtool is not installed")
    names = ("rx-checksumming", "tx-checksumming", "tx-tcp-segmentation", "generic-segmentation-offload")

    def states() -> set[str]:
        command = ["nsenter", f"--net=/run/netns/{scratch}", "ethtool", "-k", "a"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        pairs = (line.split(":") for line in done.stdout.splitlines()[1:])
        return {value.strip() for name, value in pairs if name.strip() in names}

    with links.Links(scratch) as here:
        here.veth("a", "b", scratch, peer_mac="02:00:00:00:00:0b")
    assert states() == {"on"}
    links.set_offloads(scratch, "a", on=False)
    assert states() == {"off"}
    links.set_offloads(scratch, "a", on=True)
    assert states() == {"on"}
    with pytest.raises(NotFound, match=f"cannot switch offload tso of nic in {scratch}: No such device"):
        links.set_offloads(scratch, "nic", on=False)


def run(name: str, *commands: str) -> None:
    for command in commands:
        subprocess.run(["nsenter", f"--net=/run/netns/{name}", *command.split()], check=True)


def look(name: str) -> Host:
    with netns.entered(netns.path_of(name)):
        return survey()


def test_a_survey_shows_both_families(scratch: str):
    """Addresses, lasting ones and the oldest first, none of link scope; the default routes; who is behind a bridge."""
    run(
        scratch,
        "ip link set lo up",
        "ip link add br0 type bridge",
        "ip link add pod1 type veth peer name in1",
        "ip link set pod1 master br0",
        "ip link add up0 type veth peer name up1",
        "ip link add up2 type veth peer name up3",
        *(f"ip link set {name} up" for name in ("br0", "pod1", "in1", "up0", "up1", "up2", "up3")),
        "ip address add 10.244.1.1/24 dev br0",
        "ip address add fd00:10:244:1::1/64 dev br0 nodad",
        "ip address add 192.168.50.11/24 dev up0",
        "ip address add fd00:50::99/64 dev up2 nodad valid_lft 600 preferred_lft 0",  # deprecated
        "ip address add fd00:50::11/64 dev up2 nodad",
        "ip address add fd00:50::12/64 dev up2 nodad",
        "ip route add default via 192.168.50.1 dev up0",
        "ip -6 route add default via fd00:50::1 dev up2",
        "ip -6 route add unreachable default metric 9000",
        "bridge fdb add 02:00:00:00:00:0b dev pod1 master static",
        "ip neigh add 10.244.1.11 lladdr 02:00:00:00:00:0b dev br0",
        "ip neigh add fd00:10:244:1::11 lladdr 02:00:00:00:00:0b dev br0",
        "ip neigh add fd00:10:244:1::12 lladdr 02:00:00:00:00:0c dev br0",  # behind no port
    )
    found = look(scratch)
    addresses = {one.name: [str(at) for at in one.addresses] for one in found.interfaces if one.addresses}
    assert addresses == {
        "lo": ["127.0.0.1/8", "::1/128"],
        "br0": ["10.244.1.1/24", "fd00:10:244:1::1/64"],
        "up0": ["192.168.50.11/24"],
        "up2": ["fd00:50::11/64", "fd00:50::12/64", "fd00:50::99/64"],
    }
    assert found.loopback == found.interface("lo")
    assert {str(at) for at in found.addresses} == {
        at.partition("/")[0] for name in addresses for at in addresses[name]
    } - {
        "127.0.0.1",
        "::1",
    }
    assert found.default_interfaces == ("up0", "up2")
    port = found.interface("pod1").index
    assert set(found.neighbours) == {
        Neighbour(ip_address(text), "02:00:00:00:00:0b", port) for text in ("10.244.1.11", "fd00:10:244:1::11")
    }


@pytest.mark.parametrize(
    ("family", "network", "own", "other"),
    [
        (Family.IPV4, "10.96.0.0/12", "10.244.1.1", "10.112.0.0/12"),
        (Family.IPV6, "fd00:10:96::/112", "fd00:10:244:1::1", "fd00:10:97::/112"),
    ],
    ids=["IPv4", "IPv6"],
)
def test_a_service_route_is_made_found_and_taken_away(scratch: str, family: Family, network: str, own: str, other: str):
    """Over the bridge to a next hop with a permanent MAC, from the bridge's own address. Another's is never meant."""
    run(
        scratch,
        "ip link add br0 type bridge",
        "ip link set br0 up",
        f"ip address add {own}/24 dev br0" if family is Family.IPV4 else f"ip address add {own}/64 dev br0 nodad",
        f"ip route add {other} dev br0",
    )
    services, others, source = ip_network(network), ip_network(other), ip_address(own)
    gateway = str(SERVICE_GATEWAYS[family])
    flag = f"-{int(family)}"
    with netns.entered(netns.path_of(scratch)), Attacher() as attacher:
        bridge = survey().interface("br0").index
        assert (services, bridge) not in service_routes()
        for one in (services, ip_network(gateway)):
            attacher.add_service_route(one, bridge, source)
        assert (services, bridge) in service_routes()
        assert (others, bridge) not in service_routes(), "it has not our protocol"
        (route,) = ip(scratch, flag, "route", "show", network)
        assert (route["gateway"], route["dev"], route["prefsrc"], route["protocol"]) == (gateway, "br0", own, "218")
        (neighbour,) = ip(scratch, flag, "neigh")
        assert (neighbour["dst"], neighbour["lladdr"], neighbour["state"]) == (
            gateway,
            SERVICE_GATEWAY_MAC,
            ["PERMANENT"],
        )
        with pytest.raises(Conflict, match=f"cannot add a route to the service network {other}: it exists already"):
            attacher.add_service_route(others, bridge, source)
        attacher.delete_service_route(others, bridge)
        attacher.delete_all_service_routes()
        attacher.delete_service_route(services, bridge)  # not there is well, too
        attacher.delete_service_gateway(SERVICE_GATEWAYS[family], bridge)
    assert ip(scratch, flag, "route", "show", "proto", "218") == ip(scratch, flag, "neigh") == []
    assert ip(scratch, flag, "route", "show", other) != []


def test_a_sysctl_is_read_and_set_where_we_are(scratch: str):
    """In the namespace that was entered, and none that there is not."""
    name = "net/ipv4/conf/lo/accept_local"
    outside = sysctl.read(name)
    with netns.entered(netns.path_of(scratch)):
        sysctl.write(name, "1")
        assert sysctl.read(name) == "1"
        assert sysctl.read("net/ipv4/conf/none/accept_local") is None
        with pytest.raises(KernelError, match="cannot set sysctl net/ipv4/conf/lo/accept_local=x: Invalid argument"):
            sysctl.write(name, "x")
    assert sysctl.read(name) == outside
