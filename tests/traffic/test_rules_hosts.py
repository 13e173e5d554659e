"""Rules of what else a node has: no default route, a port mapper, processes on a node port's number."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from socket import SOCK_DGRAM, SOCK_STREAM

import pytest
from calls import KINDS, SECONDS, Address, ask, ask_many, dial, family_of
from scene import PORT, VIP_PORT, Cluster, cluster_up

from pydatapath.kernel.links import Links
from pydatapath.lab import Node, Pod

NETWORKS = ("10.244.0.0/16", "fd00:10:244::/48")
VIPS = {4: "10.96.12.1", 6: "fd00:10:96::c1"}
NODE_PORT, HOST_PORT = 30080, 9000
SECOND = {4: "192.168.50.211", 6: "2001:db8:50::211"}  # of the first node, beside its own
FAMILIES = pytest.mark.parametrize("family", VIPS, ids=["IPv4", "IPv6"])


@pytest.fixture(scope="module")
def bare() -> Iterator[Cluster]:
    """Two nodes of both families, nothing loaded; three pods serve. The first node has a second address."""
    with cluster_up(f"hosts-{os.getpid()}", loaded=(), dual_stack=True, cluster_cidr=NETWORKS) as made:
        made.serve(made.lab.pod(1, 2), made.lab.pod(1, 3), made.lab.pod(2, 2))
        with Links(made.lab.node(1).netns) as node:
            node.address("eth0", f"{SECOND[4]}/24")
            node.address("eth0", f"{SECOND[6]}/64")
        yield made


@pytest.fixture
def loaded(bare: Cluster) -> Iterator[Cluster]:
    """The first node loaded afresh: its node ports are at its second address."""
    bare.load(1, nodeport_addresses=(f"{SECOND[4]}/32", f"{SECOND[6]}/128"), cluster_cidr=NETWORKS)
    yield bare
    bare.datapaths.pop(1).unload()


def serve(cluster: Cluster, family: int, *pods: Pod, **more: object) -> None:
    """A service by these pods."""
    cluster.apply(f"web-{family}", VIPS[family], pods, **more)


def own(node: Node, family: int) -> str:
    """The node's own address."""
    return node.address6 if family == 6 else node.address


@FAMILIES
def test_S103_the_node_reaches_a_cluster_IP_without_a_default_route(bare: Cluster, family: int):
    """The route to the services is ours; backends here and elsewhere, by a node that has no other way out."""
    node = bare.lab.node(1)
    node.exec(["ip", "route", "del", "default"], check=True)
    node.exec(["ip", "-6", "route", "del", "default"], check=True)
    bare.load(1, uplink=("eth0",), cluster_cidr=NETWORKS)
    try:
        backends = bare.lab.pod(1, 2), bare.lab.pod(2, 2)
        serve(bare, family, *backends)
        for kind in KINDS.values():
            for caller in (node, bare.lab.pod(1, 1)):
                found = ask_many(caller, kind, (VIPS[family], VIP_PORT), 60)
                assert found.failures == []
                assert set(found.names) == {pod.name for pod in backends}
    finally:
        bare.datapaths.pop(1).unload()
        outside = bare.lab.outside
        node.exec(["ip", "route", "add", "default", "via", outside.address], check=True)
        node.exec(["ip", "-6", "route", "add", "default", "via", outside.address6], check=True)


@contextlib.contextmanager
def process(node: Node, target: Address, kind: int) -> Iterator[None]:
    """A process of the node that listens there, and answers as echo_server.py, as "the host"."""
    ending = threading.Event()
    with node.socket(family_of(target), socket.SocketKind(kind)) as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family_of(target) == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(target)
        one.settimeout(0.1)
        if kind == SOCK_STREAM:
            one.listen()

        def answer() -> None:
            while not ending.is_set():
                with contextlib.suppress(TimeoutError):
                    if kind == SOCK_DGRAM:
                        data, peer = one.recvfrom(2048)
                        one.sendto(f"host {peer[0]} {peer[1]} ".encode() + data, peer)
                    else:
                        connected, peer = one.accept()
                        with connected:
                            connected.settimeout(SECONDS)
                            connected.sendall(f"host {peer[0]} {peer[1]} ".encode() + connected.recv(2048))

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            ending.set()
            thread.join()


def who(cluster: Cluster, target: Address, kind: int) -> str:
    """Who answers a call from outside."""
    with dial(cluster.lab.outside, target, socket.SocketKind(kind)) as one:
        return ask(one).name


@FAMILIES
def test_C5_S46_S106_a_node_port_hides_a_process_at_its_own_addresses_only(loaded: Cluster, family: int):
    """At --nodeport-addresses the pods answer; at the node's other address, and at other ports, the process does."""
    node, pod = loaded.lab.node(1), loaded.lab.pod(1, 2)
    serve(loaded, family, pod, type="NodePort", node_port=NODE_PORT)
    hidden, free = (SECOND[family], NODE_PORT), (own(node, family), NODE_PORT)
    for kind in KINDS.values():
        with process(node, hidden, kind), process(node, free, kind), process(node, (SECOND[family], 30081), kind):
            assert who(loaded, hidden, kind) == pod.name
            assert who(loaded, free, kind) == "host"
            assert who(loaded, (SECOND[family], 30081), kind) == "host"


@FAMILIES
def test_S106_the_process_is_back_when_the_service_is_gone(loaded: Cluster, family: int):
    """It was hidden, never touched: it goes on listening all the time."""
    node, pod = loaded.lab.node(1), loaded.lab.pod(1, 2)
    target = (SECOND[family], NODE_PORT)
    for kind in KINDS.values():
        with process(node, target, kind):
            serve(loaded, family, pod, type="NodePort", node_port=NODE_PORT)
            assert who(loaded, target, kind) == pod.name
            loaded.datapaths[1].delete([("Service", "default", f"web-{family}")])
            assert who(loaded, target, kind) == "host"


PORT_MAPPER = """
table inet ports {{
    chain in {{
        type nat hook prerouting priority dstnat;
        ip daddr {first} tcp dport {port} dnat ip to {one}:{target}
        ip daddr {second} tcp dport {port} dnat ip to {other}:{target}
        ip daddr {first} udp dport {port} dnat ip to {other}:{target}
        ip6 daddr {first6} tcp dport {port} dnat ip6 to [{one6}]:{target}
        ip6 daddr {second6} tcp dport {port} dnat ip6 to [{other6}]:{target}
        ip6 daddr {first6} udp dport {port} dnat ip6 to [{other6}]:{target}
    }}
}}
"""


@FAMILIES
def test_S104_host_ports_of_a_port_mapper_work_beside_us(loaded: Cluster, family: int):
    """As the CNI's portmap makes them, several on one number by address and protocol; the pods serve us as well."""
    node, one, other = loaded.lab.node(1), loaded.lab.pod(1, 2), loaded.lab.pod(1, 3)
    serve(loaded, family, one, other, type="NodePort", node_port=NODE_PORT)
    rules = PORT_MAPPER.format(
        first=node.address,
        second=SECOND[4],
        one=one.address,
        other=other.address,
        first6=node.address6,
        second6=SECOND[6],
        one6=one.address6,
        other6=other.address6,
        port=HOST_PORT,
        target=PORT,
    )
    node.exec(["nft", "-f", "-"], stdin=rules, check=True)
    try:
        first, second = (own(node, family), HOST_PORT), (SECOND[family], HOST_PORT)
        for target, kind, pod in (
            (first, SOCK_STREAM, one),
            (second, SOCK_STREAM, other),
            (first, SOCK_DGRAM, other),
        ):
            found = ask_many(loaded.lab.outside, kind, target, 40)
            assert found.failures == []
            assert set(found.names) == {pod.name}
        for kind in KINDS.values():
            found = ask_many(loaded.lab.outside, kind, (SECOND[family], NODE_PORT), 60)
            assert found.failures == []
            assert set(found.names) == {one.name, other.name}
    finally:
        node.exec(["nft", "delete", "table", "inet", "ports"], check=True)
