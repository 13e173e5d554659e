"""Pods call the outside, which has no way back to them: what they are seen as, and that nobody is mixed up."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from socket import AF_INET, AF_INET6, SOCK_DGRAM, SOCK_RAW, SOCK_STREAM, SocketKind

import pytest
from calls import KINDS, ask, ask_many, dial, pump
from nat_scene import (
    EXPEDITED,
    FAMILIES,
    IPV4,
    IPV6,
    IPV6_HOPLIMIT,
    IPV6_TCLASS,
    Ends,
    Eye,
    nat_cluster,
    server,
    set_and_watch,
    wait_until,
)
from scene import PORT, Cluster

from pydatapath.lab import Host, Node, Pod

families = pytest.mark.parametrize(**FAMILIES)
kinds = pytest.mark.parametrize("kind", list(KINDS.values()), ids=list(KINDS))


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two loaded nodes, as nobody has asked for anything."""
    with nat_cluster(f"nat-{os.getpid()}") as made:
        yield made


@pytest.fixture(scope="module")
def eye(cluster: Cluster) -> Iterator[Eye]:
    """What looks for pods' own addresses outside."""
    made = Eye(cluster.lab.outside)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def nobody_leaks(eye: Eye) -> Iterator[None]:
    """O1, in every test: no packet with a pod's source has come out."""
    yield
    assert [frame.hex() for frame in eye.leaks()] == []


def counted(cluster: Cluster, name: str, node: int = 1) -> int:
    return cluster.datapaths[node].status().counters[name]


@families
@kinds
def test_N1_a_pod_of_each_node_is_answered_from_outside(cluster: Cluster, kind: SocketKind, ends: Ends):
    """The server sees the address of the node's uplink, and (N15) the pod's own port."""
    for pod in (cluster.lab.pod(1, 1), cluster.lab.pod(2, 2)):
        with dial(pod, (ends.first, PORT), kind) as one:
            found = ask(one)
        assert found.name == "outside"
        assert found.seen == (ends.of(pod.node), found.own[1])


@families
def test_N44_N45_pods_ping_the_outside_with_one_identifier(cluster: Cluster, ends: Ends):
    """At once, two of one node, one of the other."""
    pinged(ends.first, cluster.lab.pod(1, 1), cluster.lab.pod(1, 2), cluster.lab.pod(2, 1))


@families
def test_N46_the_node_pings_beside_a_pod(cluster: Cluster, ends: Ends):
    """With the same identifier."""
    pinged(ends.first, cluster.lab.pod(1, 1), cluster.lab.node(1))


@families
@pytest.mark.parametrize("node_first", [True, False], ids=["the node first", "the pod first"])
@pytest.mark.parametrize("later", [0, 0.1, 0.2])
def test_N46_the_node_and_a_pod_ping_one_behind_the_other(cluster: Cluster, ends: Ends, later: float, node_first: bool):
    """With an identifier that nobody had before; at the same moment, too."""
    callers = [cluster.lab.node(1), cluster.lab.pod(1, 1)]
    identifier = 1000 + int(100 * later) + node_first
    pinged(ends.first, *callers[:: 1 if node_first else -1], identifier=identifier, later=later)


def pinged(target: str, *callers: Host, identifier: int = 77, later: float = 0) -> None:
    """Each one's three are answered, once. `later`: seconds between one's first and the next one's."""
    command = ["ping", "-c", "3", "-i", "0.2", "-W", "2", "-e", str(identifier), target]
    running = {}
    for one in callers:
        running[one.name] = one.popen(command, stdout=subprocess.PIPE)
        time.sleep(later)
    said = {name: each.communicate(timeout=20)[0] for name, each in running.items()}
    if any("3 received, 0% packet loss" not in text for text in said.values()):
        pytest.fail("\n".join(said.values()), pytrace=False)


@families
def test_N70_a_ping_in_fragments_is_answered(cluster: Cluster, ends: Ends):
    """4,000 bytes each way."""
    done = cluster.lab.pod(1, 1).exec(["ping", "-c", "3", "-i", "0.2", "-W", "2", "-s", "4000", ends.first])
    assert "3 received" in done.stdout, done.stdout


@families
def test_N63_a_datagram_of_several_packets_is_answered(cluster: Cluster, ends: Ends):
    """In fragments out and back."""
    with dial(cluster.lab.pod(1, 1), (ends.first, PORT), SOCK_DGRAM) as one:
        assert ask(one, "x" * 1_990).seen[0] == ends.of(cluster.lab.node(1))


@families
def test_N78_long_streams_arrive_whole(cluster: Cluster, ends: Ends):
    """Two pods and the node send two megabytes each at once, and get them back."""
    callers = (cluster.lab.pod(1, 1), cluster.lab.pod(1, 2), cluster.lab.node(1))
    with contextlib.ExitStack() as stack:
        pump({one.name: stack.enter_context(dial(one, (ends.first, PORT))) for one in callers})


@families
@kinds
def test_N85_pods_see_each_other_as_they_are(cluster: Cluster, kind: SocketKind, ends: Ends):
    """On other nodes as on their own."""
    for source, target in (((1, 1), (2, 1)), ((2, 2), (1, 2)), ((1, 1), (1, 2))):
        pod, other = cluster.lab.pod(*source), cluster.lab.pod(*target)
        with dial(pod, (ends.of(other), PORT), kind) as one:
            assert ask(one).seen == one.getsockname()[:2]


@families
@kinds
def test_C4_pods_answer_a_node_that_calls_them(cluster: Cluster, kind: SocketKind, ends: Ends):
    """The other node and their own call them as they are, and the answers come from them as they are."""
    for caller in (cluster.lab.node(1), cluster.lab.node(2)):
        with dial(caller, (ends.of(cluster.lab.pod(2, 1)), PORT), kind) as one:
            for _ in range(2):
                assert ask(one).name == "node2-pod1"


@families
def test_C4_pods_answer_a_nodes_ping(cluster: Cluster, ends: Ends):
    """As above, by echo."""
    for caller in (cluster.lab.node(1), cluster.lab.node(2)):
        pinged(ends.of(cluster.lab.pod(2, 1)), caller)


@families
@kinds
def test_C4_pods_answer_who_is_routed_to_them(cluster: Cluster, kind: SocketKind, ends: Ends, eye: Eye):
    """The outside, once it has a route to a pod, may call it; the pod answers as itself."""
    outside, pod = cluster.lab.outside, cluster.lab.pod(2, 2)
    host = f"{ends.of(pod)}/{32 if ends is IPV4 else 128}"
    family = "-4" if ends is IPV4 else "-6"
    outside.exec(["ip", family, "route", "add", host, "via", ends.of(pod.node)], check=True)
    try:
        with dial(outside, (ends.of(pod), PORT), kind) as one:
            for _ in range(2):
                assert ask(one).name == pod.name
        pinged(ends.of(pod), outside)
    finally:
        outside.exec(["ip", family, "route", "delete", host], check=True)
        eye.leaks()  # they are meant, here


@families
@kinds
def test_N3_N15_two_pods_with_one_port_are_told_apart(cluster: Cluster, kind: SocketKind, ends: Ends):
    """Both are answered; who comes first keeps the port, the other one has one of the same parity (N17)."""
    number = 5_000 if kind == SOCK_DGRAM else 5_001
    first, second = cluster.lab.pod(1, 1), cluster.lab.pod(1, 2)
    with (
        dial(first, (ends.first, PORT), kind, (ends.of(first), number)) as one,
        dial(second, (ends.first, PORT), kind, (ends.of(second), number)) as other,
    ):
        for _ in range(3):
            seen, seen_other = ask(one).seen, ask(other).seen
            assert seen == (ends.of(first.node), number)
            assert seen_other[0] == ends.of(first.node)
            assert seen_other[1] != number
            assert seen_other[1] % 2 == number % 2


@families
@kinds
@pytest.mark.parametrize("pod_first", [True, False], ids=["the pod first", "the node first"])
def test_N18_N20_the_node_and_a_pod_with_one_port(cluster: Cluster, kind: SocketKind, ends: Ends, pod_first: bool):
    """The node's own connection and the pod's go on beside each other, whoever came first."""
    number = 5_100 + 10 * pod_first + (kind == SOCK_DGRAM)
    node, pod = cluster.lab.node(1), cluster.lab.pod(1, 1)
    callers: list[Node | Pod] = [pod, node] if pod_first else [node, pod]
    with (
        dial(callers[0], (ends.first, PORT), kind, (ends.of(callers[0]), number)) as one,
    ):
        assert ask(one, "early").seen == (ends.of(node), number)
        with dial(callers[1], (ends.first, PORT), kind, (ends.of(callers[1]), number)) as other:
            for count in range(3):
                first, second = ask(one, f"first {count}"), ask(other, f"second {count}")
                assert first.seen == (ends.of(node), number)
                assert second.seen[0] == ends.of(node)
                assert second.seen[1] != number


@families
def test_N1_one_socket_of_UDP_has_one_port_outside(cluster: Cluster, ends: Ends):
    """Whoever it talks to: one server, another port of it, another address."""
    outside, pod = cluster.lab.outside, cluster.lab.pod(1, 1)
    with (
        server(outside, (ends.first, 7_000)) as a,
        server(outside, (ends.first, 7_001)) as b,
        server(outside, (ends.second, 7_000)) as c,
        server(cluster.lab.pod(1, 2), (ends.of(cluster.lab.pod(1, 2)), 7_100)) as taker,
        server(pod, (ends.of(pod), 7_100)) as one,
    ):
        taker.sendto(b"mine", (ends.second, 7_000))  # so that the port of `one` is another outside
        c.recv(100)
        seen = set()
        for answering in (a, b, c):
            one.sendto(b"hello", answering.getsockname()[:2])
            _, peer = answering.recvfrom(100)
            answering.sendto(b"back", peer)
            assert one.recvfrom(100)[1][:2] == answering.getsockname()[:2]
            seen.add(peer[:2])
        assert len(seen) == 1
        assert seen.pop() != (ends.of(pod.node), 7_100)


@families
def test_N10_who_was_not_asked_is_dropped_by_name(cluster: Cluster, ends: Ends):
    """Neither another address nor another port of the same one gets in; who was asked does."""
    outside, pod = cluster.lab.outside, cluster.lab.pod(1, 1)
    before = counted(cluster, "drop_unasked")
    with (
        server(outside, (ends.first, 7_200)) as asked,
        server(outside, (ends.first, 7_201)) as port,
        server(outside, (ends.second, 7_200)) as address,
        server(pod, (ends.of(pod), 7_210)) as one,
    ):
        one.sendto(b"hello", (ends.first, 7_200))
        _, peer = asked.recvfrom(100)
        port.sendto(b"unasked", peer)
        address.sendto(b"unasked", peer)
        wait_until(lambda: counted(cluster, "drop_unasked") == before + 2, "two drops by name")
        asked.sendto(b"asked", peer)
        assert one.recv(100) == b"asked"


@families
def test_N72_N73_hops_fall_by_one_and_the_class_stays(cluster: Cluster, ends: Ends):
    """Out and back: the node is the only router in between."""
    outside, pod = cluster.lab.outside, cluster.lab.pod(1, 1)
    with server(outside, (ends.first, 7_300)) as there, server(pod, (ends.of(pod), 7_301)) as one:
        for end in (there, one):
            set_and_watch(end)
        one.sendto(b"out", (ends.first, 7_300))
        peer, hops, kind = received(there)
        assert (hops, kind) == (63, EXPEDITED)
        there.sendto(b"back", peer)
        assert received(one)[1:] == (63, EXPEDITED)


def received(end: socket.socket) -> tuple[tuple[str, int], int, int]:
    """The sender, hops and class of the next datagram."""
    _, ancillary, _, peer = end.recvmsg(100, 200)
    told = {(level, kind): data[0] for level, kind, data in ancillary}
    if end.family == AF_INET6:
        return peer, told[socket.IPPROTO_IPV6, IPV6_HOPLIMIT], told[socket.IPPROTO_IPV6, IPV6_TCLASS]
    return peer, told[socket.IPPROTO_IP, socket.IP_TTL], told[socket.IPPROTO_IP, socket.IP_TOS]


@families
def test_N49_a_closed_port_outside_is_told_to_the_pod(cluster: Cluster, ends: Ends):
    """A datagram to nobody comes back as an error of the socket."""
    with dial(cluster.lab.pod(1, 1), (ends.first, 9), SOCK_DGRAM) as one:
        one.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            one.recv(100)
    with pytest.raises(ConnectionRefusedError):
        dial(cluster.lab.pod(1, 1), (ends.first, 9), SOCK_STREAM)


@families
def test_N54_a_closed_port_of_a_pod_is_told_outside(cluster: Cluster, ends: Ends):
    """The server is told of its own datagram, by the address that it has sent it to."""
    outside, pod = cluster.lab.outside, cluster.lab.pod(1, 1)
    with server(outside, (ends.first, 7_400)) as there:
        with server(pod, (ends.of(pod), 7_401)) as one:
            one.sendto(b"hello", (ends.first, 7_400))
            _, peer = there.recvfrom(100)
        there.connect(peer)
        there.send(b"too late")
        with pytest.raises(ConnectionRefusedError):
            there.recv(100)


@families
@kinds
def test_many_calls_from_all_pods_and_the_node_are_all_answered(cluster: Cluster, kind: SocketKind, ends: Ends):
    """200 from each, to one server: every answer is that of the question."""
    node = cluster.lab.node(1)
    for caller in (*cluster.lab.pods_of(node), node):
        found = ask_many(caller, kind, (ends.first, PORT), 200)
        assert found.failures == []
        assert {one.seen[0] for one in found.answers} == {ends.of(node)}


@pytest.mark.parametrize("number", [1, 2], ids=["one node", "the other"])
def test_C13_N84_no_protocol_leaves_as_it_is(cluster: Cluster, eye: Eye, number: int):
    """All 256 protocol numbers of both families, with bytes by chance behind: none comes out with the pod's address."""
    chance, pod = random.Random(number), cluster.lab.pod(number, 1)
    before = counted(cluster, "drop_untranslated", number)
    with (
        pod.socket(AF_INET, SOCK_RAW, socket.IPPROTO_RAW) as four,
        pod.socket(AF_INET6, SOCK_RAW, socket.IPPROTO_RAW) as six,
    ):
        for protocol in range(256):
            garbage = chance.randbytes(60)
            four.sendto(_packet4(pod.address, IPV4.first, protocol, garbage), (IPV4.first, 0))
            six.sendto(_packet6(pod.address6, IPV6.first, protocol, garbage), (IPV6.first, 0))
    with dial(pod, (IPV4.first, PORT), SOCK_DGRAM) as one:  # what is behind all of it has come through
        ask(one)
    dropped = counted(cluster, "drop_untranslated", number) - before
    assert dropped > 480
    assert sorted({frame[23] if frame[12:14] == b"\x08\x00" else 1_000 + frame[20] for frame in eye.leaks()}) == []


@pytest.mark.parametrize(
    "segment",
    [
        pytest.param(struct.pack("!HHIIBBHHH", 40_000, PORT, 1, 0, 0x10, 2, 100, 0, 0), id="a header of four bytes"),
        pytest.param(struct.pack("!HHIIBBHHH", 40_000, PORT, 1, 0, 0xF0, 2, 100, 0, 0), id="longer than the packet"),
        pytest.param(struct.pack("!HHIIBBHHH", 40_000, PORT, 1, 0, 0x50, 2, 100, 0, 0)[:10], id="half a header"),
        pytest.param(struct.pack("!HHIIBBHHH", 0, PORT, 1, 0, 0x50, 2, 100, 0, 0), id="port 0"),
    ],
)
def test_C13_N27_what_cannot_be_read_does_not_leave(cluster: Cluster, eye: Eye, segment: bytes):
    """TCP whose header lies about itself, or that nobody could answer; each is counted."""
    pod, before = cluster.lab.pod(1, 1), counted(cluster, "drop_untranslated")
    with (
        pod.socket(AF_INET, SOCK_RAW, socket.IPPROTO_RAW) as four,
        pod.socket(AF_INET6, SOCK_RAW, socket.IPPROTO_RAW) as six,
    ):
        four.sendto(_packet4(pod.address, IPV4.first, 6, segment), (IPV4.first, 0))
        six.sendto(_packet6(pod.address6, IPV6.first, 6, segment), (IPV6.first, 0))
    wait_until(lambda: counted(cluster, "drop_untranslated") == before + 2, "both are dropped")
    with dial(pod, (IPV4.first, PORT), SOCK_DGRAM) as one:
        ask(one)


def _packet4(source: str, target: str, protocol: int, payload: bytes) -> bytes:
    ends = socket.inet_pton(AF_INET, source) + socket.inet_pton(AF_INET, target)
    return struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0) + ends + payload


def _packet6(source: str, target: str, protocol: int, payload: bytes) -> bytes:
    ends = socket.inet_pton(AF_INET6, source) + socket.inet_pton(AF_INET6, target)
    return struct.pack("!IHBB", 6 << 28, len(payload), protocol, 64) + ends + payload
