"""A server behind a router and a narrow link outside: what a pod that leaves behind its node learns of the path."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from socket import AF_INET6, SOCK_DGRAM, SOCK_STREAM

import pytest
from calls import dial
from nat_scene import FAMILIES, IPV4, Ends, Eye, nat_cluster, server, wait_until
from scene import Cluster
from test_far import IP_RECVERR, IPV6_RECVERR, Far, error_of, hops_of

from pydatapath.kernel import links

NARROW, SIZE, SINK_PORT = 1400, 4_000_000, 9_400
IP_MTU_DISCOVER, IPV6_MTU_DISCOVER, ALWAYS, PROBING = 10, 23, 2, 3
# Says how many bytes it got
SINK = (
    "import socket; s = socket.create_server(('::', {port}), family=socket.AF_INET6, dualstack_ipv6=True)\n"
    "print('ready', flush=True)\n"
    "while True:\n    c, _ = s.accept(); n = 0\n    while d := c.recv(1 << 17): n += len(d)\n"
    "    c.sendall(str(n).encode()); c.close()"
)
families = pytest.mark.parametrize(**FAMILIES)


@dataclass(frozen=True)
class Link:
    """One family's addresses at the narrow link: the router's, and the server's behind it."""

    router: str
    server: str
    length: int


def link_of(ends: Ends) -> Link:
    if ends is IPV4:
        return Link("198.51.100.1", "198.51.100.9", 24)
    return Link("2001:db8:51::1", "2001:db8:51::9", 64)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two loaded nodes."""
    with nat_cluster(f"natpath-{os.getpid()}", servers=False) as made:
        yield made


@pytest.fixture(scope="module")
def far(cluster: Cluster) -> Iterator[Far]:
    """The server's namespace behind the outside, which routes for it by a link that carries 1400 bytes."""
    outside, name = cluster.lab.outside.netns, f"{cluster.lab.name}-far"
    links.create_namespace(name)
    try:
        links.write_sysctls(outside, {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"})
        with links.Links(outside) as router, links.Links(name) as there:
            router.veth("far", "eth0", name, peer_mac="02:00:00:00:00:fa")
            router.mtu("far", NARROW)
            there.up("eth0")
            for one in map(link_of, FAMILIES["argvalues"]):
                router.address("far", f"{one.router}/{one.length}")
                there.address("eth0", f"{one.server}/{one.length}")
                there.route("default", via=one.router)
        yield Far(name)
    finally:
        links.delete_namespace(name)


@pytest.fixture(scope="module")
def sink(far: Far) -> Iterator[None]:
    """A server that takes bulk data, behind the narrow link."""
    with sink_in(far.netns, SINK_PORT):
        yield


@contextlib.contextmanager
def sink_in(netns: str, port: int) -> Iterator[None]:
    """A server that takes bulk data."""
    inside = ["nsenter", f"--net=/run/netns/{netns}", "--"]
    command = [*inside, sys.executable, "-I", "-S", "-c", SINK.format(port=port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == "ready\n"
            yield
        finally:
            running.kill()


def ask_for_errors(one: socket.socket) -> None:
    """Never fragment, and be told what comes of it."""
    if one.family == AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
        one.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, ALWAYS)
    else:
        one.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        one.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, ALWAYS)


@pytest.fixture(scope="module")
def eye(cluster: Cluster) -> Iterator[Eye]:
    """What looks for pods' own addresses outside."""
    made = Eye(cluster.lab.outside)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def nobody_leaks(eye: Eye) -> Iterator[None]:
    """O1, in every test."""
    yield
    assert [frame.hex() for frame in eye.leaks()] == []


@families
@pytest.mark.usefixtures("sink")
def test_N49_N71_a_bulk_upload_over_a_narrow_link_completes(cluster: Cluster, ends: Ends):
    """The router's "too big", which it sends to the node, finds its way to the pod."""
    with dial(cluster.lab.pod(1, 1), (link_of(ends).server, SINK_PORT), SOCK_STREAM) as one:
        one.sendall(bytes(SIZE))
        one.shutdown(socket.SHUT_WR)
        assert one.recv(100) == str(SIZE).encode()


@families
@pytest.mark.usefixtures("far")
def test_N49_too_big_is_told_with_the_size_that_fits(cluster: Cluster, ends: Ends):
    """To a socket that asks for it, by the router."""
    with dial(cluster.lab.pod(1, 2), (link_of(ends).server, 7_600), SOCK_DGRAM) as one:
        ask_for_errors(one)
        one.send(bytes(1_420))
        assert error_of(one) == ((2, 0, ends.first) if one.family == AF_INET6 else (3, 4, ends.first))


@pytest.fixture
def narrow_uplink(cluster: Cluster) -> Iterator[None]:
    """The node's own link carries 1400 bytes."""
    set_mtu = ["ip", "link", "set", "eth0", "mtu"]
    cluster.lab.node(1).exec([*set_mtu, str(NARROW)], check=True)
    yield
    cluster.lab.node(1).exec([*set_mtu, "1500"], check=True)


@families
@pytest.mark.usefixtures("narrow_uplink")
def test_N71_datagrams_too_long_for_the_nodes_own_link_arrive(cluster: Cluster, ends: Ends):
    """Of a flow that is known: in fragments, which of IPv6 the pod makes when it is told."""
    pod = cluster.lab.pod(1, 1)
    with server(cluster.lab.outside, (ends.first, 7_800)) as there, dial(pod, (ends.first, 7_800), SOCK_DGRAM) as one:  # type: ignore[arg-type]
        if ends is IPV4:
            one.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, 0)  # IP_PMTUDISC_DONT
        one.send(b"hello")
        _, peer = there.recvfrom(100)
        there.sendto(b"hello", peer)
        assert one.recv(100) == b"hello"
        if ends is not IPV4:
            told_too_long(one, 1_430)
        for size in (1_430, 4_000, 1_430):
            one.send(bytes(size))
            assert there.recvfrom(5_000) == (bytes(size), peer)


def told_too_long(one: socket.socket, size: int) -> None:
    """Sends until the node's word has come that this is too long, which the socket minds from then on."""

    def is_told() -> bool:
        try:
            return one.send(bytes(size)) == 0
        except OSError as error:
            return error.errno == errno.EMSGSIZE

    wait_until(is_told, "the node says that it is too long")


@families
@pytest.mark.usefixtures("narrow_uplink")
def test_N71_too_long_for_the_nodes_own_link_is_told(cluster: Cluster, ends: Ends):
    """To a pod whose flow is known, by its node."""
    pod = cluster.lab.pod(1, 2)
    gateway = pod.node.gateway if ends is IPV4 else pod.node.gateway6
    with server(cluster.lab.outside, (ends.first, 7_801)) as there, dial(pod, (ends.first, 7_801), SOCK_DGRAM) as one:  # type: ignore[arg-type]
        ask_for_errors(one)
        for _ in range(2):
            one.send(b"hello")
            there.recv(100)
        one.send(bytes(1_420))
        assert error_of(one) == ((2, 0, gateway) if one.family == AF_INET6 else (3, 4, gateway))


@families
@pytest.mark.usefixtures("narrow_uplink")
@pytest.mark.parametrize("offloads", ["on", "off"])
def test_N71_a_bulk_upload_by_a_narrow_link_of_the_nodes_own_completes(cluster: Cluster, ends: Ends, offloads: str):
    """Whether the pod hands over segments or what is to be cut into them: none leaves that is too long for the link."""
    pod, outside = cluster.lab.pod(1, 1), cluster.lab.outside
    pod.exec(["ethtool", "-K", "eth0", "tso", offloads, "gso", offloads], check=True)
    try:
        with sink_in(outside.netns, SINK_PORT + 1), dial(pod, (ends.first, SINK_PORT + 1), SOCK_STREAM) as one:
            one.sendall(bytes(SIZE))
            one.shutdown(socket.SHUT_WR)
            assert one.recv(100) == str(SIZE).encode()
            mss = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)
    finally:
        pod.exec(["ethtool", "-K", "eth0", "tso", "on", "gso", "on"], check=True)
    assert mss <= NARROW - (60 if one.family == AF_INET6 else 40)


@families
@pytest.mark.usefixtures("far")
def test_N59_hops_from_a_pod_to_the_outside(cluster: Cluster, ends: Ends):
    """By UDP: its node, the router, the server."""
    pod, link = cluster.lab.pod(1, 1), link_of(ends)
    gateway = pod.node.gateway if ends is IPV4 else pod.node.gateway6
    exceeded, closed = ((11, 0), (3, 3)) if ends is IPV4 else ((3, 0), (1, 4))
    expected = [(*exceeded, gateway), (*exceeded, ends.first), (*closed, link.server)]
    assert hops_of(pod, link.server, 3) == expected


@families
@pytest.mark.usefixtures("far")
def test_N59_hops_of_an_echo(cluster: Cluster, ends: Ends):
    """By ping: its node, the router, the server; each about the ping that the pod has sent."""
    pod, link = cluster.lab.pod(1, 1), link_of(ends)
    gateway = pod.node.gateway if ends is IPV4 else pod.node.gateway6
    for hops, who in ((1, gateway), (2, ends.first)):
        done = pod.exec(["ping", "-n", "-c", "1", "-W", "2", "-t", str(hops), link.server])
        assert re.search(rf"From {re.escape(who)}:? icmp_seq=1 Time (to live )?exceeded", done.stdout), done.stdout
    assert "1 received" in pod.exec(["ping", "-c", "1", "-W", "2", "-t", "3", link.server]).stdout


@families
@pytest.mark.usefixtures("far")
def test_N49_an_echo_that_is_too_big_is_told(cluster: Cluster, ends: Ends):
    """As datagrams and segments are."""
    done = cluster.lab.pod(2, 1).exec(
        ["ping", "-n", "-c", "1", "-W", "2", "-M", "do", "-s", "1420", link_of(ends).server]
    )
    assert re.search(rf"From {re.escape(ends.first)}:? icmp_seq=1 (Frag needed|Packet too big)", done.stdout), (
        done.stdout
    )


@families
def test_N58_errors_end_nothing(cluster: Cluster, far: Far, ends: Ends):
    """The router says of each datagram but the first that it is too big, as often as it may; the flow goes on."""
    pod = cluster.lab.pod(1, 1)
    with (
        server(far, (link_of(ends).server, 7_700)) as there,  # type: ignore[arg-type]
        server(pod, (ends.of(pod), 7_701)) as one,
    ):
        level, option = (
            (socket.IPPROTO_IP, IP_MTU_DISCOVER) if ends is IPV4 else (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER)
        )
        one.setsockopt(level, option, PROBING)
        one.sendto(b"hello", there.getsockname())
        _, peer = there.recvfrom(100)
        for _ in range(200):
            one.sendto(bytes(1_420), there.getsockname())
        there.sendto(b"still there", peer)
        assert one.recv(100) == b"still there"
