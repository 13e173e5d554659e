"""The largest datagrams there are, in fragments through a virtual IP, both ways."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from socket import SOCK_DGRAM

import pytest
from calls import SECONDS, dial
from scene import Cluster, cluster_up

from pydatapath.kernel.links import Links
from pydatapath.lab import Host

VIPS = {
    "local": "10.96.5.1",
    "remote": "10.96.5.2",
    "local, IPv6": "fd00:10:96::51",
    "remote, IPv6": "fd00:10:96::52",
}
BALANCERS = {
    "local": "203.0.113.21",
    "remote": "203.0.113.22",
    "local, IPv6": "2001:db8:77::21",
    "remote, IPv6": "2001:db8:77::22",
}
PORT, SIZE, COUNT = 9200, 65_507, 1000  # 65,507 bytes: the most that fits (RFC 768 and 791)
ECHO = (
    "import socket; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind(('', {port}))\n"
    "print('ready', flush=True)\n"
    "while True:\n    data, peer = s.recvfrom(65535)\n    s.sendto(data[::-1], peer)"
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes with both families, the first one loaded."""
    networks = ("10.244.0.0/16", "fd00:10:244::/48")
    with cluster_up(f"fragments-{os.getpid()}", dual_stack=True, cluster_cidr=networks) as made:
        yield made


@pytest.fixture(scope="module", autouse=True)
def services(cluster: Cluster) -> Iterator[None]:
    """An echo server in a pod here and in one elsewhere, which turns each datagram round."""
    pods = {"local": cluster.lab.pod(1, 2), "remote": cluster.lab.pod(2, 2)}
    with contextlib.ExitStack() as stack:
        for number, (place, vip) in enumerate(VIPS.items()):
            pod, name = pods[place.partition(",")[0]], f"echo-{number}"
            cluster.apply(name, vip, [pod], port=PORT, target=PORT, type="LoadBalancer", balancer=BALANCERS[place])
        for pod in pods.values():
            command = [sys.executable, "-I", "-S", "-c", ECHO.format(port=PORT)]
            server = stack.enter_context(pod.popen(command, stdout=subprocess.PIPE))
            stack.callback(server.kill)
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
        yield


def turned_round(host: Host, address: str) -> int:
    """How many of COUNT datagrams, each of its own content, come back whole and turned round."""
    made = random.Random(7)
    whole = 0
    with dial(host, (address, PORT), SOCK_DGRAM) as one:
        for number in range(COUNT):
            data = number.to_bytes(4, "big") + made.randbytes(SIZE - 4)
            one.send(data)
            one.settimeout(SECONDS)
            whole += one.recv(65_535) == data[::-1]
    return whole


@pytest.mark.parametrize("place", VIPS)
def test_S105_N63_a_thousand_datagrams_of_64_KB(cluster: Cluster, figure: Callable[[str], None], place: str):
    """None is lost or harmed, between pods of one node and of two."""
    whole = turned_round(cluster.lab.pod(1, 1), VIPS[place])
    figure(f"64 KB datagrams by a VIP to a {place} backend and back: {whole} of {COUNT} intact")
    assert whole == COUNT


@pytest.mark.parametrize("place", BALANCERS)
def test_N63_a_thousand_datagrams_from_outside(cluster: Cluster, figure: Callable[[str], None], place: str):
    """To a backend elsewhere, behind the node's address."""
    with Links(cluster.lab.outside.netns) as outside:
        address, node = BALANCERS[place], cluster.lab.node(1)
        six = ":" in address
        outside.route(f"{address}/{128 if six else 32}", via=node.address6 if six else node.address)
    whole = turned_round(cluster.lab.outside, BALANCERS[place])
    figure(f"64 KB datagrams from outside to a {place} backend and back: {whole} of {COUNT} intact")
    assert whole == COUNT
