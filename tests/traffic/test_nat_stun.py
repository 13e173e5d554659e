"""Which NAT a public STUN client (Debian's stun and stund, RFC 3489; IPv4 only) says that a pod is behind."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import subprocess
from collections.abc import Iterator

import pytest
from nat_scene import IPV4, NETWORKS, Eye, nat_cluster, server, wait_until
from scene import Cluster

from pydatapath.lab import Host
from pydatapath.node import NatTypeName

STUND, STUN_PORT, OTHER_PORT = "/usr/sbin/stund", 3_478, 3_479
TELLING_SECONDS = 60
BINDING_REQUEST, BINDING_RESPONSE, MAPPED_ADDRESS = 0x0001, 0x0101, 0x0001  # RFC 3489 11.1, 11.2
PORT_RESTRICTED, FULL_CONE = "Independent Mapping, Port Dependent Filter", "Independent Mapping, Independent Filter"
KEPT, RANDOM = "preserves ports", "random port"
# Of each type, what the client says where its port is free, and where another pod has it at the first of two servers
VERDICTS: dict[NatTypeName, tuple[str, str]] = {
    "endpoint-independent": (f"{PORT_RESTRICTED}, {KEPT}", f"{PORT_RESTRICTED}, {RANDOM}"),
    "full-cone": (f"{FULL_CONE}, {KEPT}", f"{FULL_CONE}, {RANDOM}"),
    "symmetric": (f"{PORT_RESTRICTED}, {KEPT}", f"Dependent Mapping, {RANDOM}"),
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes; outside stund at two addresses and two ports of each."""
    with nat_cluster(f"natstun-{os.getpid()}", servers=False) as made:
        outside = made.lab.outside
        command = [STUND, "-h", IPV4.first, "-a", IPV4.second, "-p", str(STUN_PORT), "-o", str(OTHER_PORT)]
        with outside.popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
            try:
                wait_until(lambda: _ports_of(outside) >= 4, "stund's four sockets")
                yield made
            finally:
                running.kill()


def _ports_of(outside: Host) -> int:
    return len(outside.exec(["ss", "-Hlun", f"sport >= {STUN_PORT} and sport <= {OTHER_PORT}"]).stdout.splitlines())


@pytest.fixture(autouse=True)
def nobody_leaks(cluster: Cluster) -> Iterator[None]:
    """O1, in every test."""
    eye = Eye(cluster.lab.outside)
    yield
    assert [frame.hex() for frame in eye.leaks()] == []
    eye.close()


def told(caller: Host, *ports: int) -> list[str]:
    """The client's verdict from each of some ports, side by side: it waits long. It sends from the next one, too."""
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(caller.popen(["stun", IPV4.first, "-p", str(port)], stdout=subprocess.PIPE))
            for port in ports
        ]
        outputs = [one.communicate(timeout=TELLING_SECONDS)[0] for one in running]
    return [
        next(line.removeprefix("Primary: ") for line in output.splitlines() if line.startswith("Primary"))
        for output in outputs
    ]


def mapped(one: socket.socket) -> tuple[str, int]:
    """What the server says that it sees of a socket."""
    one.sendto(struct.pack("!HH16s", BINDING_REQUEST, 0, os.urandom(16)), (IPV4.first, STUN_PORT))
    answer = one.recv(500)
    assert struct.unpack_from("!H", answer) == (BINDING_RESPONSE,)
    kind, port, address = struct.unpack_from("!HxxxxH4s", answer, 20)
    assert kind == MAPPED_ADDRESS
    return socket.inet_ntoa(address), port


def test_the_client_sees_no_nat_from_a_node(cluster: Cluster):
    """Nor does it lie where there is none: the node itself is open."""
    assert told(cluster.lab.node(1), 6_100)[0].startswith("Open")


@pytest.mark.parametrize("kind", VERDICTS)
def test_N1_N11_N15_a_client_of_STUN_tells_the_type(cluster: Cluster, kind: NatTypeName):
    """The symmetric one, which keeps free ports as Linux does, it tells only where the port is taken at one server."""
    cluster.load(1, cluster_cidr=NETWORKS, masquerade=True, nat_type=kind)
    pod, other = cluster.lab.pod(1, 1), cluster.lab.pod(1, 2)
    free = 6_000 + 20 * list(VERDICTS).index(kind)
    taken = free + 10
    with contextlib.ExitStack() as stack:
        for port in (taken, taken + 1):
            holder = stack.enter_context(server(other, (other.address, port)))
            assert mapped(holder) == (other.node.address, port)
        verdicts = told(pod, free, taken)
    for verdict, expected in zip(verdicts, VERDICTS[kind], strict=True):
        assert verdict.startswith(expected), (verdict, expected)
