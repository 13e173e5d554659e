"""A node with two uplinks: pods leave behind the address of that by which they go, and are answered by either."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from socket import SOCK_STREAM

import pytest
from calls import SECONDS
from nat_scene import FAMILIES, IPV4, NETWORKS, Ends, Eye, nat_cluster, server
from scene import Cluster

from pydatapath.kernel import links, netns

families = pytest.mark.parametrize(**FAMILIES)
UPLINKS = ("eth0", "eth1")


@dataclass(frozen=True)
class Far:
    """The second server's namespace, with the part of a host that calls need."""

    netns: str

    def socket(self, family: int, kind: int = SOCK_STREAM, protocol: int = 0) -> socket.socket:
        """A socket that lives there."""
        with netns.entered(netns.path_of(self.netns)):
            return socket.socket(family, kind, protocol)


@dataclass(frozen=True)
class Second:
    """One family's addresses at the second uplink: the node's, and the server's beyond it; and those of the server's
    link to the outside, by which it is reached by the first uplink at its third address.
    """

    node: str
    server: str
    outside: str
    behind: str
    length: int


def second_of(ends: Ends) -> Second:
    if ends is IPV4:
        return Second("172.31.9.1", "172.31.9.9", "198.51.100.1", "198.51.100.9", 24)
    return Second("2001:db8:99::1", "2001:db8:99::9", "2001:db8:51::1", "2001:db8:51::9", 64)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two loaded nodes."""
    with nat_cluster(f"natups-{os.getpid()}", servers=False) as made:
        yield made


@pytest.fixture(scope="module")
def far(cluster: Cluster) -> Iterator[Far]:
    """The server at the first node's second uplink, by which it answers whoever calls it; and the node loaded so."""
    lab, name = cluster.lab, f"{cluster.lab.name}-second"
    links.create_namespace(name)
    try:
        links.write_sysctls(lab.outside.netns, {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"})
        quiet = {f"net/{one}/rp_filter": "0" for one in ("ipv4/conf/all", "ipv4/conf/default")}
        links.write_sysctls(name, quiet | {"net/ipv6/conf/default/accept_dad": "0"})
        with (
            links.Links(lab.node(1).netns) as node,
            links.Links(lab.outside.netns) as outside,
            links.Links(name) as there,
        ):
            node.veth("eth1", "eth0", name, peer_mac="02:00:00:00:00:f9")
            outside.veth("second", "eth1", name, peer_mac="02:00:00:00:00:fa")
            there.up("eth0")
            there.up("eth1")
            there.up("lo")
            for ends in FAMILIES["argvalues"]:
                one = second_of(ends)
                node.address("eth1", f"{one.node}/{one.length}")
                there.address("eth0", f"{one.server}/{one.length}")
                outside.address("second", f"{one.outside}/{one.length}")
                there.address("eth1", f"{one.behind}/{one.length}")
                there.route("default", via=one.node)
                node.route(f"{one.behind}/{'32' if ends is IPV4 else '128'}", via=ends.first)
        cluster.load(1, cluster_cidr=NETWORKS, masquerade=True, uplink=UPLINKS)
        yield Far(name)
    finally:
        links.delete_namespace(name)


@pytest.fixture
def nobody_leaks(cluster: Cluster, far: Far) -> Iterator[None]:
    """O1: neither outside sees a pod's own source."""
    eyes = [Eye(one) for one in (cluster.lab.outside, far)]
    yield
    seen = [frame.hex() for eye in eyes for frame in eye.leaks()]
    for eye in eyes:
        eye.close()
    assert seen == []


@families
@pytest.mark.usefixtures("nobody_leaks")
def test_N1_N7_a_socket_is_seen_as_the_address_of_the_uplink(cluster: Cluster, far: Far, ends: Ends):
    """Behind each it has one port, though its own is another pod's at both; it goes from one to the other and back."""
    at, pod, other = second_of(ends), cluster.lab.pod(1, 1), cluster.lab.pod(1, 2)
    with (
        server(cluster.lab.outside, (ends.first, 7_000)) as first,
        server(far, (at.server, 7_000)) as second,
        server(other, (ends.of(other), 5_000)) as taker,
        server(pod, (ends.of(pod), 5_000)) as one,
    ):
        seen: dict[str, set[tuple[str, int]]] = {"first": set(), "second": set()}
        for _ in range(3):
            for name, there in (("first", first), ("second", second)):
                for caller in (taker, one):
                    caller.sendto(b"hello", there.getsockname()[:2])
                    _, peer = there.recvfrom(100)
                    there.sendto(b"back", peer)
                    assert caller.recv(100) == b"back"
                seen[name].add(peer[:2])
        assert [len(one) for one in seen.values()] == [1, 1]
        ((by_first, port),), ((by_second, other_port),) = seen.values()
        assert (by_first, by_second) == (ends.of(pod.node), at.node)
        assert 5_000 not in {port, other_port}


@families
@pytest.mark.usefixtures("nobody_leaks")
def test_calls_by_both_uplinks(cluster: Cluster, far: Far, ends: Ends):
    """TCP and ping."""
    at, pod = second_of(ends), cluster.lab.pod(1, 1)
    for place, address, seen in (
        (cluster.lab.outside, ends.first, ends.of(pod.node)),
        (far, at.server, at.node),
    ):
        with server(place, (address, 7_001), SOCK_STREAM) as there, pod.socket(there.family, SOCK_STREAM) as one:
            there.listen()
            one.settimeout(SECONDS)
            one.connect((address, 7_001))
            came, peer = there.accept()
            with came:
                one.sendall(b"hello")
                assert (came.recv(100), peer[0]) == (b"hello", seen)
                came.sendall(b"back")
                assert one.recv(100) == b"back"
        done = pod.exec(["ping", "-c", "2", "-i", "0.2", "-W", "2", address])
        assert "2 received" in done.stdout, done.stdout


@families
@pytest.mark.usefixtures("nobody_leaks")
def test_the_answer_comes_by_the_other_uplink(cluster: Cluster, far: Far, ends: Ends):
    """Out by the first, behind its address, and back by the second, which leads there for who is called."""
    at, pod = second_of(ends), cluster.lab.pod(1, 1)
    with (
        server(far, (at.behind, 7_002)) as there,
        server(pod, (ends.of(pod), 5_002)) as one,
    ):
        before = packets_of(cluster, "eth1")
        one.sendto(b"hello", (at.behind, 7_002))
        data, peer = there.recvfrom(100)
        assert (data, peer[:2]) == (b"hello", (ends.of(pod.node), 5_002))
        for number in range(5):
            there.sendto(f"back {number}".encode(), peer)
            assert one.recv(100) == f"back {number}".encode()
        assert packets_of(cluster, "eth1") - before >= 5


@families
@pytest.mark.usefixtures("nobody_leaks")
@pytest.mark.parametrize("behind", ["first", "second"])
def test_N31_two_pods_meet_by_their_ends_at_either_uplink(cluster: Cluster, far: Far, ends: Ends, behind: str):
    """As a server beyond it tells each of the other's (RFC 5128 3.3)."""
    at, base = second_of(ends), 5_010 if behind == "first" else 5_020
    place, address = (cluster.lab.outside, ends.first) if behind == "first" else (far, at.server)
    one, other = cluster.lab.pod(1, 1), cluster.lab.pod(1, 2)
    with (
        server(place, (address, 7_003)) as there,
        server(one, (ends.of(one), base)) as left,
        server(other, (ends.of(other), base)) as right,
    ):
        peers = []
        for each in (left, right):
            each.sendto(b"where am I?", (address, 7_003))
            peers.append(there.recvfrom(100)[1][:2])
        assert {peer[0] for peer in peers} == {ends.of(one.node) if behind == "first" else at.node}
        left.sendto(b"opens", peers[1])
        for sender, receiver, seen, called in ((right, left, peers[1], peers[0]), (left, right, peers[0], peers[1])):
            sender.sendto(b"hello", called)
            data, peer = receiver.recvfrom(100)
            assert (data, peer[:2]) == (b"hello", seen)


def packets_of(cluster: Cluster, device: str) -> int:
    """How many packets have come in by an interface of the first node."""
    with netns.entered(netns.path_of(cluster.lab.node(1).netns)):
        done = subprocess.run(["ip", "-s", "-o", "link", "show", device], capture_output=True, text=True, check=True)
    return int(done.stdout.split("RX:")[1].split("\\")[1].split()[1])
