"""A lab with IPv6 beside IPv4: who reaches whom, from its first moment on, and how it is told from one without."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from socket import AF_INET6, SOCK_DGRAM, SocketKind

import pytest
from calls import KINDS, Address, ask, ask_many, dial, pump, volley
from click.testing import CliRunner
from scene import PORT, Cluster

from pydatapath.cli import cli
from pydatapath.errors import KernelError, NotFound
from pydatapath.kernel import links
from pydatapath.lab import Host, Lab, LabSpec, client, labs, server
from pydatapath.lab.topology import topology_of

NAME = f"d{os.getpid()}"  # of this process, should two runs share /run/netns
SPEC = LabSpec(NAME, dual_stack=True)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(SPEC) as made:
        yield made


@pytest.fixture(scope="module")
def serving(lab: Lab) -> Iterator[Cluster]:
    """Echo servers in all pods but the first."""
    cluster = Cluster(lab)
    try:
        cluster.serve(*lab.pods[1:])
        yield cluster
    finally:
        cluster.close()


def ip(netns: str, *arguments: str) -> list[dict[str, object]]:
    done = subprocess.run(["ip", "-n", netns, "-j", "-d", *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def pings(host: Host, address: str) -> bool:
    return host.exec(["ping", "-c1", "-W1", address]).returncode == 0


# What is built


def test_addresses_are_as_planned_and_usable_at_once(lab: Lab):
    """pyroute2 drops what it does not know, so what was asked for is read back with ip."""
    plan = topology_of(SPEC)
    ends = [(bridge.netns, bridge.name, bridge.address6) for bridge in plan.bridges]
    ends += [(veth.peer_netns, "eth0", veth.address6) for veth in plan.veths]
    for netns, device, address in ends:
        (found,) = ip(netns, "-6", "address", "show", device)
        of_scope = {one["scope"]: one for one in found["addr_info"]}
        assert "tentative" not in str(found)
        assert "dynamic" not in str(found)
        if address:
            one = of_scope["global"]
            assert (f"{one['local']}/{one['prefixlen']}", one["nodad"]) == (address, True)
        else:
            assert set(of_scope) == {"link"}


def test_routes_are_as_planned(lab: Lab):
    for host in lab.hosts:
        found = {(route["dst"], route["gateway"]) for route in ip(host.netns, "-6", "route") if "gateway" in route}
        planned = {(one.destination, one.via) for one in topology_of(SPEC).routes if one.netns == host.netns}
        assert found == {(destination, via) for destination, via in planned if ":" in via}


def test_each_interface_of_a_node_forwards_and_no_other_does(lab: Lab):
    """bpf_fib_lookup asks the interface that the packet came in by: a pod's veth, though it is a bridge's port."""
    for host in lab.hosts:
        folder = f"/proc/sys/net/ipv6/conf/{'*' if host in lab.nodes else 'all'}/forwarding"
        said = host.exec(["sh", "-c", f"grep -H . {folder}"], check=True).stdout.split()
        states = {line.split("/")[-2]: line.rpartition(":")[2] for line in said}
        wanted = {"all", "default", "br0", "eth0", "lo", "pod1", "pod2"} if host in lab.nodes else {"all"}
        assert states == dict.fromkeys(wanted, "1" if host in lab.nodes else "0"), host.name


def test_the_first_packet_of_a_new_lab_arrives():
    """It waits for nothing: no duplicate address detection, no link-local address that is still to come."""
    name = f"{NAME}-first"
    start = time.monotonic()
    with Lab.up(LabSpec(name, dual_stack=True)) as made:
        seconds = time.monotonic() - start
        for caller, called in ((made.pod(1, 1), made.pod(2, 1)), (made.outside, made.node(2))):
            with called.socket(AF_INET6, SOCK_DGRAM) as there, caller.socket(AF_INET6, SOCK_DGRAM) as here:
                there.settimeout(0.5)
                there.bind((called.address6, PORT))
                here.sendto(b"first", (called.address6, PORT))
                assert there.recvfrom(99)[1][0] == caller.address6
    assert seconds < 1


@pytest.mark.parametrize("pods", [0, 1])
def test_a_lab_of_one_node_is_up_too(pods: int):
    """Without pods its bridge has no cable, and is not waited for."""
    name = f"{NAME}-small"
    with Lab.up(LabSpec(name, nodes=1, pods=pods, dual_stack=True)) as made:
        assert made.dual_stack is True
        assert pings(made.outside, made.node(1).address6)
        assert pings(made.node(1), made.node(1).gateway6)


# Who reaches whom


def test_pods_and_nodes_reach_each_other(lab: Lab):
    pod = lab.pod(1, 1)
    for address in (lab.pod(1, 2).address6, lab.pod(2, 1).address6, lab.node(1).gateway6, lab.node(2).address6):
        assert pings(pod, address), address
    assert pings(lab.node(1), lab.pod(1, 1).address6)
    assert pings(lab.node(1), lab.pod(2, 2).address6)
    assert pings(lab.node(1), lab.outside.address6)
    assert pings(lab.outside, lab.node(2).address6)
    assert not pings(lab.outside, lab.pod(1, 1).address6)  # it has no route to pods
    assert pings(pod, lab.pod(2, 1).address)  # IPv4 as ever


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("node", [1, 2], ids=["same node", "other node"])
def test_packets_of_pods_keep_their_addresses(lab: Lab, serving: Cluster, kind: SocketKind, node: int):
    """Pod to pod there is no NAT: each side sees the other's own address."""
    caller, called = lab.pod(1, 1), lab.pod(node, 2)
    with dial(caller, (called.address6, PORT), kind) as connected:
        answer = ask(connected)
    assert (answer.name, answer.source) == (called.name, (called.address6, PORT))
    assert answer.seen == answer.own
    assert answer.own[0] == caller.address6


def test_a_pod_reaches_the_outside_which_answers_where_it_has_a_route(lab: Lab):
    """As with IPv4: out by the default routes, with its own address; also what is beyond the outside."""
    pod, outside, node = lab.pod(2, 1), lab.outside, lab.node(2)
    with outside.socket(AF_INET6, SOCK_DGRAM) as there, pod.socket(AF_INET6, SOCK_DGRAM) as here:
        there.settimeout(3)
        there.bind((outside.address6, PORT))
        here.sendto(b"hello", (outside.address6, PORT))
        assert there.recvfrom(99)[1][0] == pod.address6
    assert not pings(pod, outside.address6)
    beyond = "2001:db8:99::1"
    with links.Links(outside.netns) as inside:
        inside.route(node.pod_cidr6, via=node.address6)
        inside.address("lo", f"{beyond}/128")
    try:
        assert pings(pod, outside.address6)
        assert pings(pod, beyond)
    finally:
        outside.exec(["ip", "route", "del", node.pod_cidr6], check=True)
        outside.exec(["ip", "address", "del", f"{beyond}/128", "dev", "lo"], check=True)


# The helpers of tests, of either family


@pytest.mark.parametrize("family", ["address", "address6"])
def test_many_calls_long_connections_and_volleys_take_both_families(lab: Lab, serving: Cluster, family: str):
    called = lab.pod(2, 2)
    target = (getattr(called, family), PORT)
    for kind in KINDS.values():
        found = ask_many(lab.pod(1, 1), kind, target, 40)
        assert (found.failures, found.names) == ([], {called.name: 40})
        assert {one.seen[0] for one in found.answers} == {getattr(lab.pod(1, 1), family)}
    with dial(lab.pod(1, 1), target) as stream, dial(lab.pod(1, 1), target, SOCK_DGRAM) as datagrams:
        pump({"one": stream}, lines=50)
        volley({"two": datagrams}, rounds=5)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_call_comes_from_where_it_was_told_to(lab: Lab, serving: Cluster, kind: SocketKind):
    own = (lab.pod(1, 1).address6, 21000)
    with dial(lab.pod(1, 1), (lab.pod(2, 1).address6, PORT), kind, own) as connected:
        assert ask(connected).seen == own


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(
    ("at", "answers"),
    [
        (server.EVERYWHERE, {"address", "address6"}),
        ("::", {"address6"}),
        (server.ALL_ADDRESSES[0], {"address"}),
        ("fd00:10:244:1::12", {"address6"}),
    ],
    ids=["everywhere", "IPv6", "IPv4", "one address"],
)
def test_the_labs_server_serves_the_families_that_it_is_told(lab: Lab, at: str, answers: set[str], kind: SocketKind):
    pod, caller = lab.pod(1, 2), lab.pod(2, 1)
    with lab_server(pod, "web", at, 8090):
        for family in answers:
            found = call(caller, (getattr(pod, family), 8090), kind)
            assert (found.name, found.server_peer) == ("web", found.client_local)
            assert found.client_local[0] == getattr(caller, family)
            assert found.unchanged or kind == SOCK_DGRAM  # a datagram's own address is not told everywhere
        for family in {"address", "address6"} - answers:
            with pytest.raises(ConnectionRefusedError):
                call(caller, (getattr(pod, family), 8090), kind)


def call(caller: Host, target: Address, kind: SocketKind) -> client.Exchange:
    with dial(caller, target, kind) as connected:
        return client.ask(connected)


@contextlib.contextmanager
def lab_server(pod: Host, *arguments: object) -> Iterator[None]:
    """pydatapath.lab.server with these arguments, for the length of the block."""
    command = [sys.executable, "-I", "-S", server.__file__, *map(str, arguments)]
    with pod.popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert select.select([process.stdout], [], [], 5)[0], "it does not get ready"
            assert process.stdout.readline().strip() == server.READY
            yield
        finally:
            process.kill()


def test_the_labs_server_names_both_ends_by_address_and_port(lab: Lab):
    """IPv6's flow label and scope are not told."""
    pod = lab.pod(1, 2)
    with lab_server(pod, "web", pod.address6, 8092), dial(lab.pod(1, 1), (pod.address6, 8092)) as connected:
        connected.sendall(b"hello\n")
        answer = json.loads(connected.makefile().readline())
        assert (answer["local"], answer["peer"]) == ([pod.address6, 8092], list(connected.getsockname()[:2]))


def test_the_labs_client_writes_ipv6_addresses_in_brackets(lab: Lab):
    pod, caller = lab.pod(1, 2), lab.pod(2, 1)
    with lab_server(pod, "", pod.address6, 8091):
        command = [sys.executable, "-I", "-S", client.__file__, pod.address6, "8091"]
        said = caller.exec(command, check=True).stdout
    assert said.startswith(f"{pod.address6} answered at [{pod.address6}]:8091 and saw [{caller.address6}]:")


def test_sockets_and_commands_of_a_pod_take_ipv6(lab: Lab):
    pod = lab.pod(2, 1)
    with pod.socket(AF_INET6) as inside:
        inside.bind((pod.address6, 0))
    with socket.socket(AF_INET6) as here, pytest.raises(OSError, match="Cannot assign"):
        here.bind((pod.address6, 0))
    done = lab.pod(1, 1).exec(["ip", "-br", "-6", "address", "show", "eth0"], container="sidecar", check=True)
    assert f"{lab.pod(1, 1).address6}/64" in done.stdout


# How it is told


def test_a_lab_says_whether_it_has_ipv6_by_what_is_there(lab: Lab):
    """Not by what it was made with: there is no state file."""
    assert lab.dual_stack is Lab.open(NAME).dual_stack is True
    with Lab.up(LabSpec(f"{NAME}-four", nodes=1, pods=0)) as four:
        assert {one.name: one.dual_stack for one in labs()} == {NAME: True, four.name: False}
        with links.Links(four.outside.netns) as outside:
            outside.address("eth0", f"{four.outside.address6}/64")
        assert Lab.open(four.name).dual_stack is True


def test_who_may_not_look_does_not_know(lab: Lab):
    os.seteuid(65534)
    try:
        assert lab.dual_stack is None
        assert NAME in CliRunner().invoke(cli, ["lab", "list"]).output
        one = json.loads(CliRunner().invoke(cli, ["lab", "show", "--name", NAME, "-o", "json"]).output)
    finally:
        os.seteuid(0)
    assert (one["dual_stack"], one["outside"]["address6"]) == (None, "")


def test_the_command_line_goes_up_dual_stack_and_shows_it():
    name = f"{NAME}-cli"
    arguments = ["lab", "up", "--nodes", "1", "--pods", "1", "--dual-stack", "--name", name]
    try:
        result = CliRunner().invoke(cli, arguments)
        assert (result.exit_code, result.exception) == (0, None)
        assert f"lab {name}: 1 node with 1 pod each, IPv4 and IPv6, up in" in result.output
        assert f"lab exec {name}-node1-pod1 -- ping -c 3 fd00:10:244:1::11" in result.output
        assert CliRunner().invoke(cli, ["lab", "show", "--name", name]).output.splitlines() == [
            f"{name}-switch   bridge uplink, 192.168.50.0/24 2001:db8:50::/64",
            f"├── {name}-node1   eth0 192.168.50.11 2001:db8:50::11, br0 10.244.1.1/24 fd00:10:244:1::1/64",
            f"│   └── {name}-node1-pod1   eth0 10.244.1.11 fd00:10:244:1::11, containers app and sidecar",
            f"└── {name}-outside   eth0 192.168.50.100 2001:db8:50::100",
        ]
        found = json.loads(CliRunner().invoke(cli, ["lab", "show", "--name", name, "-o", "json"]).output)
        assert (found["dual_stack"], found["outside"]["address6"]) == (True, "2001:db8:50::100")
        (node,) = found["nodes"]
        assert (node["address6"], node["pods"][0]["address6"]) == ("2001:db8:50::11", "fd00:10:244:1::11")
        lines = [line.split() for line in CliRunner().invoke(cli, ["lab", "list"]).output.splitlines()]
        assert [name, "pod", f"{name}-node1-pod1", "10.244.1.11,fd00:10:244:1::11", "app,sidecar"] in lines
        assert [name, "switch", f"{name}-switch", "-", "-"] in lines
    finally:
        Lab.open(name).down()


# The wrappers around pyroute2


def test_links_take_ipv6():
    name = f"{NAME}-links"
    links.create_namespace(name)
    try:
        with links.Links(name) as here:
            here.bridge("br0", "02:00:00:00:00:01")
            here.address("br0", "fd00::1/64")
            here.neighbour("br0", "fd00::9", "02:00:00:00:00:09")
            here.route("2001:db8:1::/48", via="fd00::9")
            here.route("2001:db8:2::/48", via="2001:db8:9::9", device="br0", onlink=True)
            here.route("default", via="fd00::9")
            here.address("br0", "10.0.0.1/24")
            here.route("10.9.0.0/16", via="169.254.0.1", device="br0", onlink=True)
            with pytest.raises(KernelError, match=f"cannot add route to 2001:db8:3::/48 via fd01::1 in {name}"):
                here.route("2001:db8:3::/48", via="fd01::1")
        (neighbour,) = ip(name, "-6", "neigh", "show", "dev", "br0")
        assert (neighbour["dst"], neighbour["lladdr"]) == ("fd00::9", "02:00:00:00:00:09")
        assert neighbour["state"] == ["PERMANENT"]
        routes = {one["dst"]: one for one in ip(name, "-6", "route") if "gateway" in one}
        assert {dst: (one["gateway"], "onlink" in one["flags"]) for dst, one in routes.items()} == {
            "2001:db8:1::/48": ("fd00::9", False),
            "2001:db8:2::/48": ("2001:db8:9::9", True),
            "default": ("fd00::9", False),
        }
        (route,) = ip(name, "-4", "route", "show", "10.9.0.0/16")
        assert (route["dst"], route["gateway"], "onlink" in route["flags"]) == ("10.9.0.0/16", "169.254.0.1", True)
        found = [one for one in links.addresses6(name) if not one.address.is_link_local]
        assert [(one.device, str(one.address), one.tentative) for one in found] == [("br0", "fd00::1", False)]
    finally:
        links.delete_namespace(name)
    with pytest.raises(NotFound, match="network namespace 'nowhere' does not exist"):
        links.addresses6("nowhere")
