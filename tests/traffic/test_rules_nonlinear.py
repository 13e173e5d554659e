"""N79: packets whose bytes are not all where a program looks first: by sendfile, splice, zerocopy, tunnel and tap."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from socket import AF_INET, AF_INET6, SOCK_DGRAM

import pytest
from calls import KINDS, SECONDS, ask_many, dial
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from scene import VIP_PORT, Cluster, cluster_up

from pydatapath.kernel import netns
from pydatapath.kernel.links import Links

NETWORKS = ("10.244.0.0/16", "fd00:10:244::/48")
VIPS = {4: "10.96.13.1", 6: "fd00:10:96::d1"}
SINK_PORT, SINK_TARGET = 8099, 8098
FAMILIES = pytest.mark.parametrize("family", VIPS, ids=["IPv4", "IPv6"])
PLACES = pytest.mark.parametrize("place", ["local", "remote"])
SO_ZEROCOPY, MSG_ZEROCOPY = 60, 0x4000000  # include/uapi/linux/socket.h
Send = Callable[[socket.socket, Path, bytes], None]  # the bytes are those of the file
# The outside's end of a tunnel, the node's, and who is behind a tap
TUNNEL = {4: ("198.51.100.1", "198.51.100.2"), 6: ("2001:db8:51::1", "2001:db8:51::2")}
BEHIND_TAP = {4: "203.0.113.9", 6: "2001:db8:77::9"}
TAP_MAC, BEHIND_MAC = "02:00:00:00:07:01", "02:00:00:00:07:02"


@pytest.fixture(scope="module")
def bare() -> Iterator[Cluster]:
    """Two nodes of both families, of which nothing is loaded yet."""
    with cluster_up(f"nonlin-{os.getpid()}", loaded=(), dual_stack=True) as made:
        made.serve(made.lab.pod(1, 2), made.lab.pod(2, 2))
        yield made


@pytest.fixture(scope="module")
def tap(bare: Cluster) -> Iterator[int]:
    """The other side of an interface of the first node: what is written here comes in there."""
    node = bare.lab.node(1)
    with netns.entered(netns.path_of(node.netns)):
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        # TUNSETIFF: IFF_TAP, IFF_NO_PI, IFF_VNET_HDR (include/uapi/linux/if_tun.h)
        fcntl.ioctl(descriptor, 0x400454CA, struct.pack("16sH22x", b"tap", 0x0002 | 0x1000 | 0x4000))
    node.exec(["ip", "link", "set", "tap", "address", TAP_MAC, "mtu", "9000", "up"], check=True)
    for family, address in BEHIND_TAP.items():
        network = f"{address}/{128 if family == 6 else 32}"
        node.exec(["ip", "route", "add", network, "dev", "tap"], check=True)
        node.exec(["ip", "neighbour", "add", address, "lladdr", BEHIND_MAC, "dev", "tap"], check=True)
    yield descriptor
    os.close(descriptor)


@pytest.fixture(scope="module")
def cluster(bare: Cluster, tap: int) -> Cluster:
    """The first node loaded, with three uplinks: its own, a tunnel to the outside, and the tap."""
    outside, node = bare.lab.outside, bare.lab.node(1)
    for host, peer, own in ((outside, node, 0), (node, outside, 1)):
        tunnel = ["vxlan", "id", "7", "dstport", "4789", "local", host.address, "remote", peer.address]
        host.exec(["ip", "link", "add", "tunnel", "type", *tunnel], check=True)
        host.exec(["ip", "link", "set", "tunnel", "up"], check=True)
        for family, more in ((4, ["/24"]), (6, ["/64", "nodad"])):  # nodad: usable at once
            address = [TUNNEL[family][own] + more[0], *more[1:]]
            host.exec(["ip", "address", "add", *address, "dev", "tunnel"], check=True)
    with Links(outside.netns) as links:
        for family, vip in VIPS.items():
            links.route(f"{vip}/{128 if family == 6 else 32}", via=TUNNEL[family][1])
    bare.load(1, uplink=("eth0", "tunnel", "tap"), cluster_cidr=NETWORKS)
    return bare


def target(cluster: Cluster, family: int, place: str) -> tuple[str, int]:
    """The service by one pod of this place."""
    cluster.apply("web", VIPS[family], [cluster.lab.pod(1, 2) if place == "local" else cluster.lab.pod(2, 2)])
    return VIPS[family], VIP_PORT


def lines(size: int) -> bytes:
    """Numbered lines of this many bytes or a little more."""
    return b"".join(b"line %06d %s\n" % (number, b"x" * 80) for number in range(1 + size // 93))


def send_all(one: socket.socket, size: int, send: Callable[[int], int]) -> None:
    """Calls `send` with what is sent already until all is; the socket does not block (it has a timeout)."""
    sent = 0
    while sent < size:
        assert select.select([], [one], [], SECONDS)[1], "nothing can be sent any more"
        with contextlib.suppress(BlockingIOError):
            sent += send(sent)


def by_sendfile(one: socket.socket, path: Path, _: bytes) -> None:
    """Pages of a file, which are sent where they lie."""
    size = path.stat().st_size
    with path.open("rb") as source:
        send_all(one, size, lambda sent: os.sendfile(one.fileno(), source.fileno(), sent, size - sent))


def by_splice(one: socket.socket, path: Path, _: bytes) -> None:
    """The same through a pipe."""
    read, write = os.pipe()
    try:
        with path.open("rb") as source:
            while count := os.splice(source.fileno(), write, 1 << 16):
                send_all(one, count, lambda sent, count=count: os.splice(read, one.fileno(), count - sent))
    finally:
        os.close(read)
        os.close(write)


def by_zerocopy(one: socket.socket, _: Path, data: bytes) -> None:
    """The process's own pages, which must stay as they are (Documentation/networking/msg_zerocopy.rst)."""
    one.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
    view = memoryview(data)
    send_all(one, len(data), lambda sent: one.send(view[sent:], MSG_ZEROCOPY))


@FAMILIES
@PLACES
@pytest.mark.parametrize("send", [by_sendfile, by_splice, by_zerocopy])
def test_N79_a_stream_of_pages_arrives_whole(cluster: Cluster, tmp_path: Path, family: int, place: str, send: Send):
    """Half a MB through the service's address; every line comes back, in order."""
    path = tmp_path / "lines"
    path.write_bytes(wanted := lines(500_000))
    with dial(cluster.lab.pod(1, 1), target(cluster, family, place)) as one:
        own = one.getsockname()
        prefix = f"{own[0]} {own[1]} ".encode()
        sender = threading.Thread(target=send, args=(one, path, wanted))
        sender.start()
        try:
            with one.makefile("rb") as reading:
                got = b"".join(reading.readline().partition(prefix)[2] for _ in range(wanted.count(b"\n")))
        finally:
            sender.join(SECONDS)
    assert got == wanted


@FAMILIES
@PLACES
@pytest.mark.parametrize("send", [by_splice, by_zerocopy])
def test_N79_a_datagram_of_pages_arrives_whole(cluster: Cluster, tmp_path: Path, family: int, place: str, send: Send):
    """One that fits into a packet."""
    path = tmp_path / "datagram"
    path.write_bytes(wanted := bytes(range(256)) * 5)
    with dial(cluster.lab.pod(1, 1), target(cluster, family, place), SOCK_DGRAM) as one:
        send(one, path, wanted)
        assert one.recv(4096).endswith(wanted)


@FAMILIES
@PLACES
@pytest.mark.parametrize("kind", KINDS)
def test_N79_calls_out_of_a_tunnel_are_served(cluster: Cluster, family: int, place: str, kind: str):
    """The outside calls through VXLAN, whose device is an uplink (Cilium 12968, 12854: dropped as invalid)."""
    found = ask_many(cluster.lab.outside, KINDS[kind], target(cluster, family, place), 100)
    assert found.failures == []
    assert len(found.answers) == 100


@FAMILIES
@pytest.mark.parametrize("linear", [14, 20, 34, 42, 54, 60], ids=lambda size: f"{size} bytes in reach")
@pytest.mark.parametrize("size", [5000, 8000])
def test_N79_headers_that_are_not_in_reach_are_pulled(cluster: Cluster, tap: int, family: int, linear: int, size: int):
    """A tap says how much of a frame is linear: no IP header, half of one, ports or not. The pod gets all of it."""
    pod = cluster.lab.pod(1, 2)
    cluster.apply("sink", VIPS[family], [pod], port=SINK_PORT, target=SINK_TARGET)
    source, payload = BEHIND_TAP[family], bytes(number % 251 for number in range(size))
    layer = IPv6 if family == 6 else IP
    frame = Ether(src=BEHIND_MAC, dst=TAP_MAC) / layer(src=source, dst=VIPS[family])
    raw = bytes(frame / UDP(sport=40000 + linear, dport=SINK_PORT) / Raw(payload))
    with pod.socket(AF_INET6 if family == 6 else AF_INET, SOCK_DGRAM) as one:
        one.settimeout(SECONDS)
        one.bind(("::" if family == 6 else str(ip_address(0)), SINK_TARGET))
        for _ in range(2):  # a new flow, and a known one
            # struct virtio_net_hdr: flags, gso_type, hdr_len (which is what becomes linear), the rest 0
            os.write(tap, struct.pack("=BBHHHH", 0, 0, linear, 0, 0, 0) + raw)
            got, peer = one.recvfrom(1 << 16)
            assert got == payload
            assert peer[:2] == (source, 40000 + linear)
        one.sendto(b"answer", peer)
    assert answers(tap, layer)[0] == (VIPS[family], SINK_PORT, source, 40000 + linear, b"answer")


def answers(tap: int, layer: type) -> list[tuple[str, int, str, int, bytes]]:
    """What comes out of the tap by UDP, once there is anything of the family."""
    while select.select([tap], [], [], SECONDS)[0]:
        packet = Ether(os.read(tap, 1 << 16)[10:])
        if packet.haslayer(layer) and packet.haslayer(UDP) and packet[UDP].sport == SINK_PORT:
            ip, udp = packet[layer], packet[UDP]
            return [(ip.src, udp.sport, ip.dst, udp.dport, bytes(udp.payload))]
    return []
