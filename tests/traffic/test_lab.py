"""The lab on the real kernel: what it builds, how it is found, and that nothing stays when it goes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from pydatapath.errors import Conflict, LabError, NotFound
from pydatapath.kernel import links
from pydatapath.kernel.netns import RUN_NETNS
from pydatapath.lab import Host, Lab, LabSpec, find_host, labs
from pydatapath.lab.processes import processes_in
from pydatapath.lab.topology import topology_of

NAME = f"t{os.getpid()}"  # of this process, should two runs share /run/netns
SPEC = LabSpec(NAME)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(SPEC) as made:
        yield made


def read(host: Host, *command: str) -> str:
    return host.exec(command, check=True).stdout


def ip(netns: str, *arguments: str) -> list[dict[str, object]]:
    done = subprocess.run(["ip", "-n", netns, "-j", "-d", *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def namespaces_of(name: str) -> list[str]:
    return sorted(path.name for path in RUN_NETNS.glob(f"{name}-*"))


def pings(host: Host, address: str) -> bool:
    return host.exec(["ping", "-c1", "-W1", address]).returncode == 0


# What is built


def test_interfaces_are_as_planned(lab: Lab):
    """pyroute2 drops what it does not know, so what was asked for is read back with ip."""
    plan = topology_of(SPEC)
    for bridge in plan.bridges:
        (found,) = ip(bridge.netns, "address", "show", bridge.name)
        assert found["address"] == bridge.mac
        assert found["linkinfo"]["info_kind"] == "bridge"
        assert "UP" in found["flags"]
        addresses = [f"{one['local']}/{one['prefixlen']}" for one in found["addr_info"] if one["family"] == "inet"]
        assert addresses == ([bridge.address] if bridge.address else [])
    for veth in plan.veths:
        (port,) = ip(veth.netns, "link", "show", veth.port)
        assert (port["master"], port["operstate"]) == (veth.bridge, "UP")
        assert port["linkinfo"]["info_slave_data"]["state"] == "forwarding"
        (eth0,) = ip(veth.peer_netns, "address", "show", "eth0")
        addresses = [f"{one['local']}/{one['prefixlen']}" for one in eth0["addr_info"] if one["family"] == "inet"]
        assert (eth0["address"], eth0["operstate"], addresses) == (veth.mac, "UP", [veth.address])
    for space in plan.namespaces:
        assert "UP" in ip(space.name, "link", "show", "lo")[0]["flags"]


def test_routes_are_as_planned(lab: Lab):
    for host in lab.hosts:
        found = {(route["dst"], route["gateway"]) for route in ip(host.netns, "route") if "gateway" in route}
        planned = {(route.destination, route.via) for route in topology_of(SPEC).routes if route.netns == host.netns}
        assert found == planned


def test_sysctls_are_as_planned(lab: Lab):
    for space in topology_of(SPEC).namespaces:
        host = find_host(space.name)
        for name, value in (space.sysctls | space.optional).items():
            found = host.exec(["cat", f"/proc/sys/{name}"])
            assert found.stdout.strip() == value or (name in space.optional and found.returncode != 0), name
    # per interface too: all of them came after the defaults were set
    assert read(lab.node(1), "cat", "/proc/sys/net/ipv4/conf/br0/rp_filter") == "1\n"
    assert read(lab.node(1), "cat", "/proc/sys/net/ipv4/conf/br0/send_redirects") == "0\n"


def test_without_the_flag_there_is_no_ipv6_but_link_local(lab: Lab):
    for host in lab.hosts:
        own = [one.address for one in links.addresses6(host.netns)]
        assert [one for one in own if not one.is_link_local and not one.is_loopback] == []
        found = ip(host.netns, "-6", "address", "show", "scope", "global")
        assert [one for device in found for one in device.get("addr_info", [])] == []
        assert {route["dst"] for route in ip(host.netns, "-6", "route")} == {"fe80::/64"}
        assert read(host, "cat", "/proc/sys/net/ipv6/conf/all/forwarding") == "0\n"
    assert lab.dual_stack is Lab.open(NAME).dual_stack is False


def test_pods_and_nodes_reach_each_other(lab: Lab):
    pod = lab.pod(1, 1)
    for address in (lab.pod(1, 2).address, lab.pod(2, 1).address, lab.node(1).gateway, lab.node(2).address):
        assert pings(pod, address), address
    assert pings(lab.node(1), lab.pod(2, 2).address)
    assert pings(lab.node(1), lab.outside.address)
    assert pings(lab.outside, lab.node(2).address)
    assert not pings(lab.outside, lab.pod(1, 1).address)  # it has no route to pods


def test_packets_of_pods_keep_their_addresses(lab: Lab):
    """Pod to pod, also across nodes, there is no NAT: each side sees the other's own address."""
    client, server = lab.pod(1, 2), lab.pod(2, 1)
    with server.socket() as listening, client.socket() as calling:
        listening.bind((server.address, 8080))
        listening.listen()
        calling.settimeout(3)
        calling.connect((server.address, 8080))
        accepted, seen_from = listening.accept()
        with accepted:
            assert seen_from == calling.getsockname()
            assert calling.getpeername() == accepted.getsockname() == (server.address, 8080)
        assert seen_from[0] == client.address


def test_it_is_up_in_well_under_a_second():
    start = time.monotonic()
    with Lab.up(LabSpec(f"{NAME}-fast")):
        seconds = time.monotonic() - start
    assert seconds < 1


# Found by name


def test_hosts_are_found_by_name(lab: Lab):
    assert find_host(f"{NAME}-node1-pod2") == lab.pod(1, 2)
    assert lab.pod(2, 1).node == lab.node(2)
    assert [pod.name for pod in lab.pods_of(lab.node(2))] == ["node2-pod1", "node2-pod2"]
    assert lab.pod(1, 2).interface == "pod2"
    with pytest.raises(NotFound, match="has no node3"):
        lab.node(3)
    with pytest.raises(NotFound, match="no lab has a namespace 'node9'"):
        find_host("node9")


def test_two_labs_do_not_meet(lab: Lab):
    """Same addresses, same interface names, and each reaches only its own."""
    with Lab.up(LabSpec(f"{NAME}-b", nodes=1, pods=1)) as other:
        assert {one.name for one in labs()} >= {NAME, f"{NAME}-b"}
        assert lab.pod(1, 1).address == other.pod(1, 1).address
        assert pings(lab.pod(1, 1), lab.pod(1, 2).address)
        assert not pings(other.pod(1, 1), lab.pod(1, 2).address)
        with pytest.raises(Conflict, match="several labs have a node1-pod1"):
            find_host("node1-pod1")
    assert namespaces_of(f"{NAME}-b") == []
    assert pings(lab.pod(1, 1), lab.pod(2, 2).address)


def test_a_lab_that_is_up_is_not_made_again(lab: Lab):
    with pytest.raises(Conflict, match="is up already") as caught:
        Lab.up(SPEC)
    assert f"lab down --name {NAME}" in caught.value.hint
    assert pings(lab.pod(1, 1), lab.pod(2, 1).address)


def test_only_root_makes_and_enters_labs(lab: Lab):
    """Looking at what there is needs no root."""
    os.seteuid(65534)
    try:
        with pytest.raises(LabError, match="lab needs root"):
            Lab.up(LabSpec(f"{NAME}-g"))
        with pytest.raises(LabError, match="lab needs root"):
            lab.down()
        with pytest.raises(LabError, match="lab needs root"):
            lab.node(1).become(["true"])
        assert NAME in {one.name for one in labs()}
    finally:
        os.seteuid(0)
    assert namespaces_of(f"{NAME}-g") == []


# Nothing stays


def test_the_machines_own_network_is_never_touched():
    def own() -> tuple[str, ...]:
        commands = ("ip -br link", "ip -br address", "ip route show table all", "cat /proc/sys/net/ipv4/ip_forward")
        return tuple(subprocess.run(one.split(), capture_output=True, text=True, check=True).stdout for one in commands)

    before = own()
    with Lab.up(LabSpec(f"{NAME}-c", nodes=1, pods=1)):
        assert own() == before
    assert own() == before


def test_what_failed_half_way_is_taken_away_and_what_was_there_stays():
    foreign = f"{NAME}-d-node2-pod1"
    links.create_namespace(foreign)
    try:
        with pytest.raises(Conflict, match=f"network namespace '{foreign}' exists already"):
            Lab.up(LabSpec(f"{NAME}-d"))
        assert namespaces_of(f"{NAME}-d") == [foreign]
    finally:
        links.delete_namespace(foreign)


def test_down_ends_the_processes_inside():
    """Also those that will not go by themselves; those of others stay."""
    with Lab.up(LabSpec(f"{NAME}-e", nodes=1, pods=1)) as lab:
        polite = lab.pod(1, 1).popen(["sleep", "60"])
        stubborn = lab.node(1).popen(
            ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 60; done"], stdout=subprocess.PIPE
        )
        contained = lab.pod(1, 1).popen(["sleep", "60"], container="sidecar")
        assert stubborn.stdout is not None
        assert stubborn.stdout.readline() == "up\n"
        names = [host.netns for host in lab.hosts]
        deadline = time.monotonic() + 5
        while len(processes_in(names)) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)  # until the container's launcher, process 1 and command are there
    with stubborn:
        assert stubborn.wait(5) == -signal.SIGKILL
    assert polite.wait(5) == -signal.SIGTERM
    assert contained.wait(5) in (128 + signal.SIGTERM, -signal.SIGTERM)
    assert namespaces_of(f"{NAME}-e") == []
    with pytest.raises(NotFound, match="there is no lab") as caught:
        lab.down()
    assert "lab list" in caught.value.hint


def test_half_a_lab_goes_down_too():
    """As after a crash in the middle of up: the switch and a node, one of them no more than a file."""
    name = f"{NAME}-f"
    links.create_namespace(f"{name}-switch")
    (RUN_NETNS / f"{name}-node1").touch()
    Lab.open(name).down()
    assert namespaces_of(name) == []


def test_down_never_ends_the_processes_of_this_machine():
    """Should somebody have given a name of the lab to the namespace that we are in."""
    name = f"{NAME}-h"
    links.create_namespace(f"{name}-switch")
    subprocess.run(["ip", "netns", "attach", f"{name}-node1", str(os.getpid())], check=True)
    assert processes_in([f"{name}-node1"]) == []
    Lab.open(name).down()
    assert namespaces_of(name) == []
