"""N59: traceroute through a service's address by SYN and by ping, beside the datagrams of test_path.py."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Iterator
from ipaddress import ip_address
from socket import AF_INET, AF_INET6, SOCK_RAW

import pytest
from calls import SECONDS, dial, family_of
from scene import VIP_PORT, Cluster, cluster_up

from pydatapath.lab import Host

NETWORKS = ("10.244.0.0/16", "fd00:10:244::/48")
VIPS = {4: "10.96.14.1", 6: "fd00:10:96::e1"}
FAMILIES = pytest.mark.parametrize("family", VIPS, ids=["IPv4", "IPv6"])
EXCEEDED = {4: 11, 6: 3}
IPV6_UNICAST_HOPS, IP_TTL = 16, 2


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes of both families, both loaded; a pod of the second serves."""
    with cluster_up(f"path-{os.getpid()}", loaded=(1, 2), dual_stack=True, cluster_cidr=NETWORKS) as made:
        made.serve(made.lab.pod(2, 2))
        for family, vip in VIPS.items():
            made.apply(f"far-{family}", vip, [made.lab.pod(2, 2)])
        yield made


@contextlib.contextmanager
def listening(host: Host, family: int) -> Iterator[socket.socket]:
    """A socket that hears all ICMP that the host gets."""
    protocol = socket.IPPROTO_ICMPV6 if family == 6 else socket.IPPROTO_ICMP
    with host.socket(AF_INET6 if family == 6 else AF_INET, SOCK_RAW, protocol) as one:
        one.settimeout(SECONDS)
        yield one


def hop_of(icmp: socket.socket, family: int, port: int) -> tuple[str, str, int]:
    """Who says of a segment from this port that its hops are used up, and where it was for: (sender, address, port)."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        data, sender = icmp.recvfrom(2048)
        content = data if family == 6 else data[4 * (data[0] & 15) :]
        if content[0] != EXCEEDED[family]:
            continue
        quoted = content[8:]
        addresses, ports = (slice(24, 40), 40) if family == 6 else (slice(16, 20), 4 * (quoted[0] & 15))
        numbers = [int.from_bytes(quoted[place : place + 2], "big") for place in (ports, ports + 2)]
        if numbers[0] == port:
            return sender[0], str(ip_address(quoted[addresses])), numbers[1]
    raise AssertionError("nobody says so")


def asking(host: Host, vip: str, hops: int) -> socket.socket:
    """A TCP socket that has just sent its SYN, with so many hops to live."""
    one = host.socket(family_of((vip, VIP_PORT)))
    one.setblocking(False)
    if ":" in vip:
        one.setsockopt(socket.IPPROTO_IPV6, IPV6_UNICAST_HOPS, hops)
    else:
        one.setsockopt(socket.IPPROTO_IP, IP_TTL, hops)
    one.bind(("", 0))
    one.connect_ex((vip, VIP_PORT))
    return one


@FAMILIES
def test_N59_hops_by_SYN(cluster: Cluster, family: int):
    """`traceroute -T`: the pod's node, the backend's node, each about the segment that was sent; then it is open."""
    caller, vip, (here, there) = cluster.lab.pod(1, 1), VIPS[family], (cluster.lab.node(1), cluster.lab.node(2))
    routers = [here.gateway6, there.address6] if family == 6 else [here.gateway, there.address]
    for hops, router in enumerate(routers, 1):
        with listening(caller, family) as icmp, asking(caller, vip, hops) as one:
            assert hop_of(icmp, family, one.getsockname()[1]) == (router, vip, VIP_PORT)
    with asking(caller, vip, 3) as one:
        assert select.select([], [one], [], SECONDS)[1]
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0


@FAMILIES
def test_N59_hops_by_ping(cluster: Cluster, family: int):
    """`traceroute -I`: the service's address is on the way already, and answers at the first hop."""
    for hops in ("1", "3"):
        done = cluster.lab.pod(1, 1).exec(["ping", "-c", "1", "-W", "2", "-t", hops, VIPS[family]])
        assert "1 received" in done.stdout, done.stdout


@FAMILIES
def test_N59_a_probe_leaves_nothing_that_is_in_the_next_ones_way(cluster: Cluster, family: int):
    """Its SYN came no further: who calls from the same port then is served."""
    caller, vip = cluster.lab.pod(1, 1), VIPS[family]
    own = caller.address6 if family == 6 else caller.address
    for number in range(5):
        with listening(caller, family) as icmp, asking(caller, vip, 1 + number % 2) as one:
            port = one.getsockname()[1]
            hop_of(icmp, family, port)
        with dial(caller, (vip, VIP_PORT), own=(own, port)) as again:
            assert again.getpeername()[:2] == (vip, VIP_PORT)
