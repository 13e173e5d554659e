"""The path to a backend, as a client learns of it through the service's address: its MTU, its hops, a closed port."""

from __future__ import annotations

import select
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator

import pytest
from calls import SECONDS, dial
from scene import PORT, VIP_PORT, Cluster

from pydatapath.kernel.links import Links

VIP = ("10.96.4.1", VIP_PORT)
SINK_PORT, SIZE = 9100, 2_000_000
IP_TTL, IP_RECVERR, IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_MTU = 2, 11, 10, 2, 14
SINK = (
    "import socket; s = socket.create_server(('', {port})); print('ready', flush=True); c, _ = s.accept(); n = 0\n"
    "while d := c.recv(65536): n += len(d)\n"
    "c.sendall(str(n).encode()); c.close()"
)


@pytest.fixture(scope="module", autouse=True)
def services(cluster: Cluster) -> None:
    """One backend on the other node."""
    backend = cluster.lab.pod(2, 2)
    cluster.apply("far", VIP[0], [backend])
    cluster.apply("sink", VIP[0], [backend], port=SINK_PORT, target=SINK_PORT)
    cluster.apply("closed", VIP[0], [backend], port=7, target=7)


@pytest.fixture
def narrow(cluster: Cluster) -> Iterator[int]:
    """The network behind the other node carries 1400 bytes."""
    with Links(cluster.lab.node(2).netns) as node:
        node.mtu("br0", 1400)
        yield 1400
        node.mtu("br0", 1500)


def errors_of(probe: socket.socket) -> tuple[int, int, str]:
    """(ICMP type, code, sender) of the next error that a socket is told (ip(7), IP_RECVERR)."""
    poller = select.poll()
    poller.register(probe, select.POLLERR)
    assert poller.poll(SECONDS * 1000), "no ICMP error came"
    _, ancillary, _, address = probe.recvmsg(512, 512, socket.MSG_ERRQUEUE)
    assert address == VIP or address[0] == VIP[0]
    for level, kind, data in ancillary:
        if (level, kind) == (socket.IPPROTO_IP, IP_RECVERR):
            _, _, number, code = struct.unpack_from("=IBBB", data)
            return number, code, socket.inet_ntoa(data[20:24])
    raise AssertionError("an error without its cause")


def probe_of(cluster: Cluster, port: int, ttl: int = 64) -> socket.socket:
    """A datagram socket of a pod that is told of errors."""
    made = dial(cluster.lab.pod(1, 1), (VIP[0], port), socket.SOCK_DGRAM)
    made.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    made.setsockopt(socket.IPPROTO_IP, IP_TTL, ttl)
    return made


def test_N59_hops_to_a_virtual_IP(cluster: Cluster):
    """As traceroute sees them: the pod's node, the backend's node, the backend by the service's address."""
    hops = []
    for ttl in (1, 2):
        with probe_of(cluster, VIP_PORT, ttl) as probe:
            probe.send(b"hello")
            hops.append(errors_of(probe))
    assert hops == [(11, 0, "10.244.1.1"), (11, 0, cluster.lab.node(2).address)]
    with probe_of(cluster, 7, 3) as probe:
        probe.send(b"hello")
        assert errors_of(probe) == (3, 3, VIP[0])


def test_N55_a_closed_port_of_a_backend_is_refused_by_the_service(cluster: Cluster):
    """Port unreachable, and the flow it is about lives on (N58)."""
    with dial(cluster.lab.pod(1, 1), (VIP[0], 7), socket.SOCK_DGRAM) as one:
        for _ in range(2):
            one.send(b"hello")
            with pytest.raises(ConnectionRefusedError):
                one.recv(10)


def test_N71_path_MTU_discovery(cluster: Cluster, narrow: int):
    """A datagram that may not be fragmented is too large for a link behind the backend's node: its sender is told."""
    with probe_of(cluster, VIP_PORT) as probe:
        probe.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        probe.send(bytes(1440))
        assert errors_of(probe) == (3, 4, cluster.lab.node(2).address)
        assert probe.getsockopt(socket.IPPROTO_IP, IP_MTU) == narrow


def test_N55_a_bulk_upload_over_a_narrow_link_completes(cluster: Cluster, narrow: int):
    """TCP learns the path's MTU through the virtual IP (Cilium 47755: large uploads hang, small ones work)."""
    backend = cluster.lab.pod(2, 2)
    command = [sys.executable, "-I", "-S", "-c", SINK.format(port=SINK_PORT)]
    with backend.popen(command, stdout=subprocess.PIPE) as sink:
        assert sink.stdout is not None
        assert sink.stdout.readline() == "ready\n"
        with dial(cluster.lab.pod(1, 1), (VIP[0], SINK_PORT)) as one:
            one.sendall(bytes(SIZE))
            one.shutdown(socket.SHUT_WR)
            assert int(one.recv(100)) == SIZE
        sink.communicate(timeout=SECONDS)
    assert PORT != SINK_PORT
