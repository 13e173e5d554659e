"""What `load` is told of masquerading, and what becomes of calls then."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address
from socket import AF_PACKET, SOCK_DGRAM, SOCK_RAW, SOCK_STREAM, SocketKind
from typing import Any, Final

import pytest
from calls import KINDS, dial
from nat_scene import FAMILIES, IPV4, IPV6, NETWORKS, Ends, nat_cluster, server, wait_until
from rows import tell
from scene import Cluster

from pydatapath.egress import NAT_TYPES
from pydatapath.kernel import links
from pydatapath.lab import Host, Pod
from pydatapath.views import Tuple

families = pytest.mark.parametrize(**FAMILIES)
ETH_P_ALL, PACKET_OUTGOING = 0x0003, 4  # include/uapi/linux: if_ether.h, if_packet.h
NUMBERS: Final = itertools.count(5_900)  # ports of a pod that no test has used
EXTRA, EXTRA6 = "192.168.50.211", "2001:db8:50::211"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two loaded nodes; the first has a second address of each family."""
    with nat_cluster(f"nattypes-{os.getpid()}", servers=False) as made:
        with links.Links(made.lab.node(1).netns) as node:
            node.address("eth0", f"{EXTRA}/32")
            node.address("eth0", f"{EXTRA6}/128")
        yield made


def loaded(cluster: Cluster, **options: Any) -> None:
    """The first node, loaded anew with these options."""
    cluster.load(1, **{"cluster_cidr": NETWORKS, "masquerade": True, **options})


def seen(cluster: Cluster, ends: Ends, pod: Pod, number: int, target: Host | None = None) -> tuple[str, int]:
    """Whom a server sees, outside or at a host, when a pod calls it from a port."""
    address = ends.of(target) if target else ends.first
    with (
        server(target or cluster.lab.outside, (address, 7_000)) as there,
        server(pod, (ends.of(pod), number)) as one,
    ):
        one.sendto(b"hello", (address, 7_000))
        return there.recvfrom(100)[1][:2]


@families
def test_without_masquerade_pods_leave_as_they_are(cluster: Cluster, ends: Ends):
    """As before there was any; and the outside has no way back."""
    pod = cluster.lab.pod(1, 1)
    loaded(cluster, masquerade=False)
    assert seen(cluster, ends, pod, 5_000) == (ends.of(pod), 5_000)
    with (
        server(cluster.lab.outside, (ends.first, 7_000)) as there,
        pytest.raises(OSError, match="unreachable"),
    ):
        there.sendto(b"where are you?", (ends.of(pod), 5_000))
    assert cluster.datapaths[1].status().drift == ()
    assert not any(one.name.startswith("mappings") for one in cluster.datapaths[1].status().maps)
    loaded(cluster, masquerade=True)
    assert seen(cluster, ends, pod, 5_001) == (ends.of(pod.node), 5_001)
    assert cluster.datapaths[1].status().drift == ()


@families
def test_N85_networks_where_pods_are_seen_as_they_are(cluster: Cluster, ends: Ends):
    """Another node, by --non-masquerade-cidr."""
    pod, other = cluster.lab.pod(1, 1), cluster.lab.node(2)
    loaded(cluster)
    assert seen(cluster, ends, pod, 5_100, other)[0] == ends.of(pod.node)
    loaded(cluster, non_masquerade_cidr=("192.168.50.12/32", "2001:db8:50::12/128"))
    assert seen(cluster, ends, pod, 5_101, other) == (ends.of(pod), 5_101)
    assert seen(cluster, ends, pod, 5_102)[0] == ends.of(pod.node)


@families
def test_N7_an_address_for_all_pods_or_for_some(cluster: Cluster, ends: Ends):
    """--snat-address; and answers to it come back."""
    first, second = cluster.lab.pod(1, 1), cluster.lab.pod(1, 2)
    extra = EXTRA6 if ":" in ends.first else EXTRA
    loaded(cluster, snat_address=(EXTRA, EXTRA6))
    assert seen(cluster, ends, first, 5_200) == (extra, 5_200)
    loaded(cluster, snat_address=(f"{second.address}/32={EXTRA}", f"{second.address6}/128={EXTRA6}"))
    assert seen(cluster, ends, first, 5_201) == (ends.of(first.node), 5_201)
    assert seen(cluster, ends, second, 5_201) == (extra, 5_201)
    with (
        server(cluster.lab.outside, (ends.first, 7_000)) as there,
        server(second, (ends.of(second), 5_202)) as one,
    ):
        one.sendto(b"hello", (ends.first, 7_000))
        there.sendto(b"back", there.recvfrom(100)[1])
        assert one.recv(100) == b"back"


@families
def test_N21_a_port_is_looked_for_in_the_range_alone(cluster: Cluster, ends: Ends):
    """--snat-ports: of pods with one port all but the first get one of the range."""
    loaded(cluster, snat_ports="20000-20099")
    first, second = cluster.lab.pod(1, 1), cluster.lab.pod(1, 2)
    for number in range(5_300, 5_320):
        assert seen(cluster, ends, first, number) == (ends.of(first.node), number)
        assert 20_000 <= seen(cluster, ends, second, number)[1] <= 20_099


@families
def test_N23_F19_where_no_port_is_free_only_the_new_call_fails(cluster: Cluster, ends: Ends):
    """A range of two, both taken: a named drop, and who has one goes on."""
    loaded(cluster, snat_ports="20200-20201")
    first, second = cluster.lab.pod(1, 1), cluster.lab.pod(1, 2)
    before = counted(cluster, "drop_ports_taken")
    with (
        server(cluster.lab.outside, (ends.first, 7_000)) as there,
        server(second, (ends.of(second), 5_402)) as held,
        server(second, (ends.of(second), 5_404)) as refused,
    ):
        for number in (5_402, 5_404):
            assert seen_by(there, ends, first, number) == (ends.of(first.node), number)
        held.sendto(b"first", (ends.first, 7_000))
        peer = there.recvfrom(100)[1]
        assert peer[:2] == (ends.of(first.node), 20_200)
        refused.sendto(b"second", (ends.first, 7_000))
        wait_until(lambda: counted(cluster, "drop_ports_taken") > before, "a drop by name")
        held.sendto(b"third", (ends.first, 7_000))
        tell(repeats=1, sent=3, new_failed=1, load="the two flows that have the ports, and one more")
        assert there.recvfrom(100) == (b"third", peer)


@pytest.mark.parametrize("nat_type", list(NAT_TYPES))
def test_a_packet_is_translated_once(cluster: Cluster, nat_type: str):
    """Though it passes two hooks: a call's packets leave under one tuple, by the pod's port, one hop on; of one flow.

    What from_pod has translated would be a call of the node's own to to_uplink, with the ends of a masqueraded flow: it
    would get another port, and an entry more. A mark says that it has been walked (bpf/forward.h), and nothing else.
    """
    loaded(cluster, nat_type=nat_type)
    for ends in (IPV4, IPV6):
        for kind in KINDS.values():
            leaves_once(cluster, ends, kind, next(NUMBERS))


def leaves_once(cluster: Cluster, ends: Ends, kind: SocketKind, number: int) -> None:
    """A call of a pod from a port: what the node's uplink sends of it, and what is entered."""
    pod, node = cluster.lab.pod(1, 1), cluster.lab.node(1)
    before = flows(cluster)
    with (
        node.socket(AF_PACKET, SOCK_RAW, socket.htons(ETH_P_ALL)) as uplink,
        server(cluster.lab.outside, (ends.first, 7_900), kind) as there,
    ):
        uplink.bind(("eth0", ETH_P_ALL))
        uplink.setblocking(False)
        if kind == SOCK_STREAM:
            there.listen()
        with dial(pod, (ends.first, 7_900), kind, (ends.of(pod), number)) as one:
            talk(one, there)
            entered = {*flows(cluster)} - {*before}
        sent = [each for each in outgoing(uplink) if each[:2] == (ends.first, 7_900)]
    outside = ends.of(node), number
    assert {each[2:] for each in sent} == {(*outside, 64 - 1)}
    assert len(sent) == 2 if kind == SOCK_DGRAM else len(sent) >= 4
    assert entered == {(Tuple(ends.of(pod), number, ends.first, 7_900), Tuple(ends.first, 7_900, *outside))}


def talk(one: socket.socket, there: socket.socket) -> None:
    """Two questions, the first with an answer: what opens a flow, and what belongs to it."""
    one.send(b"hello")
    if one.type == SOCK_STREAM:
        accepted, _ = there.accept()
        with accepted:
            assert accepted.recv(100) == b"hello"
            accepted.send(b"back")
            assert one.recv(100) == b"back"
            one.send(b"again")
            assert accepted.recv(100) == b"again"
        return
    data, peer = there.recvfrom(100)
    there.sendto(b"back", peer)
    assert (data, one.recv(100)) == (b"hello", b"back")
    one.send(b"again")
    assert there.recvfrom(100) == (b"again", peer)


def flows(cluster: Cluster) -> list[tuple[Tuple, Tuple]]:
    """Both directions of each, of all protocols."""
    return [(one.original, one.reply) for one in cluster.datapaths[1].flows()]


def outgoing(uplink: socket.socket) -> Iterator[tuple[str, int, str, int, int]]:
    """Destination, source, and the hops left, of each TCP and UDP packet that a packet socket has seen leave."""
    with contextlib.suppress(BlockingIOError):
        while True:
            frame, (_, _, kind, *_) = uplink.recvfrom(2_048)
            packet, six = frame[14:], frame[12:14] == b"\x86\xdd"
            if kind != PACKET_OUTGOING or not (six or frame[12:14] == b"\x08\0"):
                continue
            if packet[6 if six else 9] not in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
                continue
            addresses, start = (packet[8:40], 40) if six else (packet[12:20], (packet[0] & 0xF) * 4)
            half = len(addresses) // 2
            source, destination = str(ip_address(addresses[:half])), str(ip_address(addresses[half:]))
            ports = struct.unpack_from("!HH", packet, start)
            yield destination, ports[1], source, ports[0], packet[7 if six else 8]


def seen_by(there: socket.socket, ends: Ends, pod: Pod, number: int) -> tuple[str, int]:
    """Whom a server's socket sees when a pod calls it from a port."""
    with server(pod, (ends.of(pod), number)) as one:
        one.sendto(b"hello", (ends.first, 7_000))
        return there.recvfrom(100)[1][:2]


def counted(cluster: Cluster, name: str) -> int:
    return cluster.datapaths[1].status().counters[name]


@families
@pytest.mark.parametrize("kind", ["endpoint-independent", "symmetric", "full-cone"])
def test_N1_N11_the_three_types(cluster: Cluster, ends: Ends, kind: str):
    """One port for all servers, but in the symmetric one; only in full-cone somebody else may answer."""
    loaded(cluster, nat_type=kind)
    base = {"endpoint-independent": 5_500, "symmetric": 5_510, "full-cone": 5_520}[kind]
    taker, pod = cluster.lab.pod(1, 2), cluster.lab.pod(1, 1)
    with (
        server(cluster.lab.outside, (ends.first, 7_000)) as a,
        server(cluster.lab.outside, (ends.second, 7_001)) as b,
        server(cluster.lab.outside, (ends.second, 7_002)) as stranger,
        server(taker, (ends.of(taker), base)) as other,
        server(pod, (ends.of(pod), base)) as one,
    ):
        other.sendto(b"mine", (ends.first, 7_000))  # so that the port of `one` is taken there
        a.recv(100)
        peers = []
        for there in (b, a):
            one.sendto(b"hello", there.getsockname()[:2])
            peers.append(there.recvfrom(100)[1])
            there.sendto(b"back", peers[-1])
            assert one.recv(100) == b"back"
        assert (peers[0] == peers[1]) == (kind != "symmetric")
        stranger.sendto(b"unasked", peers[1])
        if kind == "full-cone":
            data, peer = one.recvfrom(100)
            assert (data, peer[:2]) == (b"unasked", stranger.getsockname()[:2])
            one.sendto(b"so you are", peer)
            assert stranger.recvfrom(100) == (b"so you are", peers[1])
        else:
            a.sendto(b"asked", peers[1])  # behind the stranger's on the same way
            assert one.recv(100) == b"asked"


@families
@pytest.mark.parametrize("kind", ["endpoint-independent", "full-cone"])
def test_N31_two_pods_meet_by_their_ends_outside(cluster: Cluster, ends: Ends, kind: str):
    """As told by a server (RFC 5128): a full cone lets the first in, else who is called has to call, too."""
    loaded(cluster, nat_type=kind)
    base = 5_600 if kind == "full-cone" else 5_610
    one, other = cluster.lab.pod(1, 1), cluster.lab.pod(1, 2)
    with (
        server(cluster.lab.outside, (ends.first, 7_000)) as there,
        server(one, (ends.of(one), base)) as left,
        server(other, (ends.of(other), base)) as right,
    ):
        peers = []
        for each in (left, right):
            each.sendto(b"where am I?", (ends.first, 7_000))
            peers.append(there.recvfrom(100)[1][:2])
        assert peers[0] == (ends.of(one.node), base)
        assert peers[1][1] != base
        left.sendto(b"first", peers[1])
        if kind == "full-cone":
            data, peer = right.recvfrom(100)
            assert (data, peer[:2]) == (b"first", peers[0])
        right.sendto(b"second", peers[0])
        data, peer = left.recvfrom(100)
        assert (data, peer[:2]) == (b"second", peers[1])
        left.sendto(b"third", peers[1])
        data, peer = right.recvfrom(100)
        assert (data, peer[:2]) == (b"third", peers[0])


@families
def test_N32_a_closed_port_is_told_to_who_has_called_it_by_its_end_outside(cluster: Cluster, ends: Ends):
    """By the called pod's own stack."""
    loaded(cluster, nat_type="full-cone")
    one, other = cluster.lab.pod(1, 1), cluster.lab.pod(1, 2)
    with server(cluster.lab.outside, (ends.first, 7_000)) as there, server(other, (ends.of(other), 5_621)) as closed:
        closed.sendto(b"where am I?", (ends.first, 7_000))
        called = there.recvfrom(100)[1][:2]
    with server(one, (ends.of(one), 5_620)) as caller:
        caller.connect(called)
        caller.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            caller.recv(100)
