"""A client behind a router and a narrow link: what it and the backends learn of the path, by both families."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from socket import AF_INET, AF_INET6, SOCK_DGRAM, SOCK_STREAM, AddressFamily, SocketKind

import pytest
from calls import SECONDS, ask, dial, family_of
from scene import PORT, VIP_PORT, Cluster, cluster_up

from pydatapath.kernel import links, netns
from pydatapath.lab import Pod

NARROW, SIZE, SOURCE_PORT, CLOSED = 1400, 4_000_000, 9300, 7
# Sends as much as it is asked for
SOURCE = (
    "import socket; s = socket.create_server(('::', {port}), family=socket.AF_INET6, dualstack_ipv6=True)\n"
    "print('ready', flush=True)\n"
    "while True:\n    c, _ = s.accept(); n = int(c.recv(20)); c.sendall(bytes(n)); c.close()"
)
IPV6_RECVERR, IPV6_UNICAST_HOPS, IP_RECVERR, IP_TTL = 25, 16, 11, 2


@dataclass(frozen=True)
class Far:
    """The client's namespace, with the part of a host that calls need."""

    netns: str

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Be there for the length of the block."""
        with netns.entered(netns.path_of(self.netns)):
            yield

    def socket(self, family: AddressFamily = AF_INET, kind: SocketKind = SOCK_STREAM) -> socket.socket:
        """A socket that lives there."""
        with self.entered():
            return socket.socket(family, kind)


@dataclass(frozen=True)
class Ends:
    """Addresses of one family: the router at the narrow link, the client, and the services by the place that serves."""

    router: str
    client: str
    length: int
    default: str
    balancers: dict[str, str]

    def of(self, host: object) -> str:
        """A host's address."""
        return str(getattr(host, "address6" if ":" in self.client else "address"))


IPV4 = Ends("198.51.100.1", "198.51.100.9", 24, "0.0.0.0/0", {"local": "203.0.113.51", "remote": "203.0.113.52"})
IPV6 = Ends("2001:db8:51::1", "2001:db8:51::9", 64, "::/0", {"local": "2001:db8:77::51", "remote": "2001:db8:77::52"})
FAMILIES = pytest.mark.parametrize("ends", [IPV4, IPV6], ids=["IPv4", "IPv6"])
PLACES = pytest.mark.parametrize("place", ["local", "remote"])


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two loaded nodes; a service by a pod of the first, one by a pod of the second, both called at the first node."""
    networks = ("10.244.0.0/16", "fd00:10:244::/48")
    with cluster_up(f"far-{os.getpid()}", loaded=(1, 2), dual_stack=True, cluster_cidr=networks) as made:
        backends = {"local": made.lab.pod(1, 2), "remote": made.lab.pod(2, 2)}
        made.serve(*backends.values())
        for number, (place, pod) in enumerate(backends.items()):
            for ends, vip in ((IPV4, f"10.96.8.{number}"), (IPV6, f"fd00:10:96::8{number}")):
                for kind, port in (("web", VIP_PORT), ("source", SOURCE_PORT), ("closed", CLOSED)):
                    name = f"{kind}-{place}-{'v6' if ends is IPV6 else 'v4'}"
                    target = PORT if port == VIP_PORT else port
                    made.apply(
                        name, vip, [pod], port=port, target=target, type="LoadBalancer", balancer=ends.balancers[place]
                    )
        with serving(backends["local"]), serving(backends["remote"]):
            yield made


@contextlib.contextmanager
def serving(pod: Pod) -> Iterator[None]:
    """A server of bulk data in a pod."""
    command = [sys.executable, "-I", "-S", "-c", SOURCE.format(port=SOURCE_PORT)]
    with pod.popen(command, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
            yield
        finally:
            server.kill()


@pytest.fixture(scope="module")
def far(cluster: Cluster) -> Iterator[Far]:
    """The client's namespace behind the outside, which routes for it and whose link to it carries 1400 bytes."""
    outside, name = cluster.lab.outside.netns, f"{cluster.lab.name}-far"
    links.create_namespace(name)
    try:
        links.write_sysctls(outside, {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"})
        with links.Links(outside) as router:
            router.veth("far", "eth0", name, peer_mac="02:00:00:00:00:fa")
            router.mtu("far", NARROW)
            for ends in (IPV4, IPV6):
                router.address("far", f"{ends.router}/{ends.length}")
                for address in ends.balancers.values():
                    router.route(f"{address}/{128 if ':' in address else 32}", via=ends.of(cluster.lab.node(1)))
        with links.Links(name) as client:
            client.up("eth0")
            for ends in (IPV4, IPV6):
                client.address("eth0", f"{ends.client}/{ends.length}")
                client.route("default", via=ends.router)
        yield Far(name)
    finally:
        links.delete_namespace(name)


@FAMILIES
@PLACES
def test_N55_N71_a_bulk_download_over_a_narrow_link_completes(cluster: Cluster, far: Far, ends: Ends, place: str):
    """The router's "too big" about an answer finds its way to the backend, which has DF set as TCP has."""
    with dial(far, (ends.balancers[place], SOURCE_PORT)) as one:  # type: ignore[arg-type]
        one.sendall(str(SIZE).encode())
        got = 0
        while data := one.recv(1 << 17):
            got += len(data)
    assert got == SIZE


@FAMILIES
@PLACES
def test_S49_the_client_is_served(cluster: Cluster, far: Far, ends: Ends, place: str):
    """And seen as itself where the backend is on the node that it called."""
    with dial(far, (ends.balancers[place], VIP_PORT), SOCK_DGRAM) as one:  # type: ignore[arg-type]
        assert ask(one).seen[0] == (ends.client if place == "local" else ends.of(cluster.lab.node(1)))


def error_of(probe: socket.socket) -> tuple[int, int, str]:
    """(ICMP type, code, sender) of the next error that a socket is told (ip(7) and ipv6(7), IP_RECVERR)."""
    poller = select.poll()
    poller.register(probe, select.POLLERR)
    assert poller.poll(SECONDS * 1000), "no ICMP error came"
    _, ancillary, _, _ = probe.recvmsg(512, 512, socket.MSG_ERRQUEUE)
    for level, kind, data in ancillary:
        _, _, number, code = struct.unpack_from("=IBBB", data)
        if (level, kind) == (socket.IPPROTO_IP, IP_RECVERR):
            return number, code, socket.inet_ntoa(data[20:24])
        if (level, kind) == (socket.IPPROTO_IPV6, IPV6_RECVERR):
            return number, code, socket.inet_ntop(AF_INET6, data[24:40])
    raise AssertionError("an error without its cause")


def hops_of(calling: object, target: str, most: int) -> list[tuple[int, int, str]]:
    """What a datagram to a closed port comes to, with 1, 2, ... hops to live: as traceroute asks."""
    found = []
    for hops in range(1, most + 1):
        with dial(calling, (target, CLOSED), SOCK_DGRAM) as probe:  # type: ignore[arg-type]
            if family_of((target, 0)) == AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
                probe.setsockopt(socket.IPPROTO_IPV6, IPV6_UNICAST_HOPS, hops)
            else:
                probe.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
                probe.setsockopt(socket.IPPROTO_IP, IP_TTL, hops)
            probe.send(b"hello")
            found.append(error_of(probe))
    return found


@FAMILIES
def test_N59_hops_from_outside(cluster: Cluster, far: Far, ends: Ends):
    """The router, the node that was called, the backend's node, and the backend by the service's address."""
    here, there = cluster.lab.node(1), cluster.lab.node(2)
    exceeded, closed = ((3, 0), (1, 4)) if ends is IPV6 else ((11, 0), (3, 3))
    local, remote = ends.balancers["local"], ends.balancers["remote"]
    routers = [(*exceeded, ends.router), (*exceeded, ends.of(here))]
    assert hops_of(far, local, 3) == [*routers, (*closed, local)]
    assert hops_of(far, remote, 4) == [*routers, (*exceeded, ends.of(there)), (*closed, remote)]


@FAMILIES
def test_N59_hops_from_a_pod(cluster: Cluster, ends: Ends):
    """To a backend elsewhere: its own node, the backend's node, the backend. On its own node there is none between."""
    gateway = "gateway6" if ends is IPV6 else "gateway"
    exceeded, closed = ((3, 0), (1, 4)) if ends is IPV6 else ((11, 0), (3, 3))
    calling, target = cluster.lab.pod(1, 1), ends.balancers["remote"]
    first = (*exceeded, getattr(cluster.lab.node(1), gateway))
    second = (*exceeded, ends.of(cluster.lab.node(2)))
    assert hops_of(calling, target, 3) == [first, second, (*closed, target)]
    assert hops_of(calling, ends.balancers["local"], 1) == [(*closed, ends.balancers["local"])]
