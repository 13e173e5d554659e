"""Masquerading: what leaves the cluster does so behind the node's address, and its answers find their way."""

from __future__ import annotations

import contextlib
import socket
from itertools import pairwise

import pytest
from frames import (
    DROP,
    PASS,
    REDIRECT,
    Outcome,
    Packet,
    Raw,
    addresses,
    answer_to,
    frame,
    key_of,
    leaves,
    sctp,
    tcp,
    udp,
)
from packetbed import Bed
from places import V4, V6, Places, at
from rows import tell

from pydatapath.kernel.layout import Hook

FAMILIES = pytest.mark.parametrize("where", [V4, V6], ids=["IPv4", "IPv6"])
MAKE = pytest.mark.parametrize("make", [tcp, udp, sctp], ids=["TCP", "UDP", "SCTP"])
ROUTED = {V4: "ttl", V6: "hlim"}


def routed(packet: Packet, where: Places, **fields: object) -> Packet:
    """The packet as it leaves one hop on."""
    return leaves(packet, **{ROUTED[where]: 63}, **fields)


def back(bed: Bed, there: Outcome, flags: str = "SA") -> Outcome:
    """The answer from outside, by the uplink."""
    return bed.run(Hook.FROM_UPLINK, answer_to(there, flags))


@FAMILIES
@MAKE
def test_N15_a_pod_leaves_behind_the_nodes_address(masquerading: Bed, where: Places, make):
    """By its own port where that is free; one hop on, by the uplink; the answer comes back to the pod."""
    packet = make(where.CLIENT, 23456, where.FAR, 7000)
    there = masquerading.run(Hook.FROM_POD, packet)
    assert there.verdict == REDIRECT
    assert there.packet[12:] == bytes(routed(packet, where, src=where.UPLINK))[12:]
    answer = back(masquerading, there)
    assert answer.verdict == REDIRECT
    assert addresses(answer) == (where.FAR, 7000, where.CLIENT, 23456)
    masquerading.confirm(packet)
    again = masquerading.run(
        Hook.FROM_POD, packet if make is not tcp else tcp(where.CLIENT, 23456, where.FAR, 7000, "A")
    )
    assert addresses(again) == (where.UPLINK, 23456, where.FAR, 7000)
    assert again.walked == (make is sctp)


@FAMILIES
@MAKE
def test_N3_two_pods_with_one_port_and_one_server(masquerading: Bed, where: Places, make):
    """Two ports outside, of the same parity; each answer finds its pod."""
    one = masquerading.run(Hook.FROM_POD, make(where.CLIENT, 5001, where.FAR, 80))
    other = masquerading.run(Hook.FROM_POD, make(where.BACKEND, 5001, where.FAR, 80), device="pod3")
    assert addresses(one)[:2] == (where.UPLINK, 5001)
    source, port, *_ = addresses(other)
    assert (source, port % 2) == (where.UPLINK, 1)
    assert port != 5001
    assert addresses(back(masquerading, one))[2:] == (where.CLIENT, 5001)
    assert addresses(back(masquerading, other))[2:] == (where.BACKEND, 5001)


@FAMILIES
@MAKE
def test_N17_N97_clients_who_are_seen_as_the_node_are_told_apart_by_ports_as_pods_are(
    masquerading: Bed, where: Places, make
):
    """C4: sent elsewhere, they have the node's address; by chance, of the same parity and class; none is another's."""
    protocol = {tcp: "TCP", udp: "UDP", sctp: "SCTP"}[make]
    masquerading.serve({where.called(f"80/{protocol}"): [at(where.REMOTE, 8080)]})
    clients = [where.FAR[:-1] + digit for digit in "9876543"]
    calls = [make(one, 501, where.VIP, 80) for one in clients]
    seen = [addresses(masquerading.run(Hook.FROM_UPLINK, one)) for one in calls]
    assert {(one[0], *one[2:]) for one in seen} == {(where.UPLINK, where.REMOTE, 8080)}
    ports = [one[1] for one in seen]
    assert ports[0] == 501
    assert len(set(ports)) == len(ports)
    assert all(port % 2 == 1 and port < 512 for port in ports)
    for call, port in zip(calls, ports, strict=True):
        again = masquerading.run(Hook.FROM_UPLINK, call)
        assert addresses(again)[1] == port
        answer = masquerading.run(Hook.FROM_UPLINK, answer_to(again))
        assert addresses(answer) == (where.VIP, 80, *addresses(call)[:2])


@FAMILIES
def test_N104_who_is_seen_as_the_node_has_no_other_port_in_the_middle(masquerading: Bed, where: Places):
    """Its half of the flow is lost: it waits for the backend's, which makes it anew (N5), by the port that it had."""
    masquerading.serve({where.called("80/TCP"): [at(where.REMOTE, 8080)]})
    first, second = (tcp(where.FAR[:-1] + digit, 5001, where.VIP, 80) for digit in "89")
    for call in (first, second):
        there = masquerading.run(Hook.FROM_UPLINK, call)
        masquerading.run(Hook.FROM_UPLINK, answer_to(there))
        masquerading.confirm(call, Hook.FROM_UPLINK)
    port = addresses(there)[1]
    data = tcp(*addresses(second), "A")
    assert addresses(masquerading.run(Hook.FROM_UPLINK, data))[1] == port != 5001
    masquerading.maps["flows6" if where is V6 else "flows"].delete(key_of(second))
    assert masquerading.run(Hook.FROM_UPLINK, data).verdict == DROP
    word = answer_to(there, "A")
    assert addresses(masquerading.run(Hook.FROM_UPLINK, word)) == (where.VIP, 80, *addresses(second)[:2])
    masquerading.age(1)
    masquerading.run(Hook.FROM_UPLINK, word)
    assert addresses(masquerading.run(Hook.FROM_UPLINK, data))[1] == port


@FAMILIES
def test_N103_a_SYN_that_is_sent_again_leaves_by_the_same_port(masquerading: Bed, where: Places):
    """Though that was found by chance."""
    masquerading.run(Hook.FROM_POD, tcp(where.CLIENT, 5001, where.FAR, 80))
    packet = tcp(where.BACKEND, 5001, where.FAR, 80)
    ports = {addresses(masquerading.run(Hook.FROM_POD, packet, device="pod3"))[1] for _ in range(5)}
    assert len(ports) == 1


@FAMILIES
def test_N1_a_datagram_socket_has_one_port_outside(masquerading: Bed, where: Places):
    """Whoever it talks to; also where its own port was another's (N8)."""
    masquerading.run(Hook.FROM_POD, udp(where.CLIENT, 5000, where.FAR, 53))
    seen = {
        addresses(masquerading.run(Hook.FROM_POD, udp(where.BACKEND, 5000, target, port), device="pod3"))[:2]
        for target in (where.FAR, where.FAR[:-1] + "8", where.FAR[:-1] + "7")
        for port in (53, 123, 443)
    }
    assert len(seen) == 1
    assert seen != {(where.UPLINK, 5000)}


@FAMILIES
def test_N10_who_was_not_asked_is_not_let_in(masquerading: Bed, where: Places):
    """Address and port-dependent filtering: dropped by name, and without a word (N13)."""
    there = masquerading.run(Hook.FROM_POD, udp(where.CLIENT, 5000, where.FAR, 53))
    stranger = udp(where.FAR, 54, where.UPLINK, addresses(there)[1])
    assert masquerading.run(Hook.FROM_UPLINK, stranger).verdict == DROP
    assert masquerading.counted()["drop_unasked"] == 1
    assert addresses(back(masquerading, there))[2:] == (where.CLIENT, 5000)


@FAMILIES
@MAKE
def test_N14_what_comes_for_the_nodes_own_ports_is_the_nodes(masquerading: Bed, where: Places, make):
    """No mapping: the packet as it came."""
    packet = make(where.FAR, 40000, where.UPLINK, 22)
    outcome = masquerading.run(Hook.FROM_UPLINK, packet)
    assert (outcome.verdict, outcome.packet) == (PASS, bytes(packet))


@FAMILIES
@MAKE
def test_N85_within_the_cluster_nobody_is_hidden(masquerading: Bed, where: Places, make):
    """Pod to pod, here and elsewhere, and to the node itself."""
    for destination in (where.SECOND, where.REMOTE, where.NODE, where.UPLINK):
        packet = make(where.CLIENT, 40000, destination, 7)
        outcome = masquerading.run(Hook.FROM_POD, packet)
        assert (outcome.verdict, outcome.packet) == (PASS, bytes(packet))
    assert masquerading.entries("half_open") == {}


@FAMILIES
def test_N34_N42_a_mapping_ends_with_its_time(masquerading: Bed, where: Places):
    """300 seconds without a packet outwards, and two minutes more (N25); then another pod may have its port."""
    masquerading.run(Hook.FROM_POD, udp(where.CLIENT, 5000, where.FAR, 53))
    masquerading.age(430)
    masquerading.age_mappings(430)
    other = masquerading.run(Hook.FROM_POD, udp(where.BACKEND, 5000, where.FAR, 53), device="pod3")
    assert addresses(other)[1] == 5000


@FAMILIES
def test_N35_packets_outwards_keep_a_mapping(masquerading: Bed, where: Places):
    """A packet every 100 seconds for twenty minutes: one port."""
    packet = udp(where.CLIENT, 5000, where.FAR, 53)
    masquerading.run(Hook.FROM_POD, packet)
    for _ in range(12):
        masquerading.age(100)
        masquerading.age_mappings(100)
        assert addresses(masquerading.run(Hook.FROM_POD, packet))[1] == 5000
    other = masquerading.run(Hook.FROM_POD, udp(where.BACKEND, 5000, where.FAR, 54), device="pod3")
    assert addresses(other)[1] != 5000


# Ports that are others'


@FAMILIES
@pytest.mark.parametrize("port", [30080, 4789, 8472, 6081, 51820, 68, 546])
def test_N19_reserved_ports_are_not_taken(masquerading: Bed, where: Places, port: int):
    """Node ports and tunnels' are not given even to who has them inside."""
    for make in (tcp, udp):
        found = addresses(masquerading.run(Hook.FROM_POD, make(where.CLIENT, port, where.FAR, 80)))[1]
        assert found != port
        assert not 30000 <= found <= 32767


TUNNELS = pytest.mark.parametrize("port", [4789, 8472, 6081, 51820], ids=["VXLAN", "VXLAN 8472", "Geneve", "WireGuard"])


@FAMILIES
@TUNNELS
@pytest.mark.parametrize("hashed", [False, True], ids=["both ends by the tunnel's port", "sent by a port of a hash"])
def test_N88_a_tunnel_of_the_node_is_left_alone(masquerading: Bed, where: Places, port: int, hashed: bool):
    """Though a pod calls by the tunnel's port from its own: neither way a byte is changed, nor anything entered."""
    masquerading.run(Hook.FROM_POD, udp(where.CLIENT, port, where.FAR, port))
    tables = ("flows", "half_open")
    known, mapped = [masquerading.entries(one) for one in tables], masquerading.mappings()
    other = 54321 if hashed else port
    there = udp(where.UPLINK, other, where.FAR, port, payload=bytes(60))
    back = udp(where.FAR, other, where.UPLINK, port, payload=bytes(60))
    for hook, packet in ((Hook.TO_UPLINK, there), (Hook.FROM_UPLINK, back)):
        outcome = masquerading.run(hook, packet)
        assert (outcome.verdict, outcome.packet) == (PASS, bytes(packet))
    assert [masquerading.entries(one) for one in tables] == known
    assert masquerading.mappings() == mapped


@FAMILIES
@TUNNELS
def test_N88_nor_is_a_tunnels_hash_that_is_a_pods_port_outside(masquerading: Bed, where: Places, port: int):
    """It goes by its own port: the answers to the pod come from another server's."""
    masquerading.run(Hook.FROM_POD, udp(where.CLIENT, 54321, where.FAR, 53))
    packet = udp(where.UPLINK, 54321, where.FAR, port, payload=bytes(60))
    outcome = masquerading.run(Hook.TO_UPLINK, packet)
    assert (outcome.verdict, outcome.packet) == (PASS, bytes(packet))


@FAMILIES
def test_N18_a_port_of_the_nodes_own_socket_is_not_taken(masquerading: Bed, where: Places):
    """Neither that of a listener nor of a datagram socket; looked at in the kernel, at the packet."""
    family = socket.AF_INET6 if where is V6 else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening, socket.socket(family, socket.SOCK_DGRAM) as bound:
        listening.bind((where.UPLINK, 41000))
        listening.listen()
        bound.bind((where.UPLINK, 41001))
        assert addresses(masquerading.run(Hook.FROM_POD, tcp(where.CLIENT, 41000, where.FAR, 80)))[1] != 41000
        assert addresses(masquerading.run(Hook.FROM_POD, udp(where.CLIENT, 41001, where.FAR, 80)))[1] != 41001
    assert (
        addresses(masquerading.run(Hook.FROM_POD, tcp(where.SECOND, 41000, where.FAR, 80), device="pod4"))[1] == 41000
    )


@FAMILIES
@pytest.mark.parametrize("make", [tcp, udp], ids=["TCP", "UDP"])
def test_N20_the_nodes_own_connection_is_not_mixed_up_with_a_pods(masquerading: Bed, where: Places, make):
    """The node calls from the port behind which a pod has called: it leaves by another, and both are answered."""
    pods = masquerading.run(Hook.FROM_POD, make(where.CLIENT, 40000, where.FAR, 80))
    own = masquerading.run(Hook.TO_UPLINK, make(where.UPLINK, 40000, where.FAR, 80))
    assert own.verdict == PASS
    assert addresses(own)[0] == where.UPLINK
    assert addresses(own)[1] != 40000
    assert addresses(back(masquerading, pods))[2:] == (where.CLIENT, 40000)
    answer = back(masquerading, own)
    assert addresses(answer)[2:] == (where.UPLINK, 40000)


@FAMILIES
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["TCP", "UDP"])
def test_N18_N20_nor_is_its_new_port_that_of_another_of_its_sockets(
    masquerading: Bed, where: Places, kind: socket.SocketKind
):
    """Of 500 calls that must leave by another port one of 40 would have hit one of the node's 800 sockets by chance."""
    make = tcp if kind == socket.SOCK_STREAM else udp
    taken = range(40000, 41600, 2)
    with contextlib.ExitStack() as stack:
        for port in taken:
            one = stack.enter_context(socket.socket(socket.AF_INET6 if where is V6 else socket.AF_INET, kind))
            one.bind((where.UPLINK, port))
            if kind == socket.SOCK_STREAM:
                one.listen()
        for port in range(10000, 11000, 2):
            _, mapped, *_ = addresses(masquerading.run(Hook.FROM_POD, make(where.CLIENT, port, where.FAR, 80)))
            own = addresses(masquerading.run(Hook.TO_UPLINK, make(where.UPLINK, mapped, where.FAR, 80)))
            assert own[0] == where.UPLINK
            assert {mapped, own[1]}.isdisjoint(taken)
            assert own[1] != mapped


@FAMILIES
@MAKE
def test_N18_N20_other_connections_of_the_nodes_own_are_left_alone(masquerading: Bed, where: Places, make):
    """Unchanged; and not entered but for SCTP's, whose sockets cannot be asked for."""
    packet = make(where.UPLINK, 40000, where.FAR, 80)
    outcome = masquerading.run(Hook.TO_UPLINK, packet)
    assert (outcome.verdict, outcome.packet) == (PASS, bytes(packet))
    assert bool(masquerading.entries("half_open")) is (make is sctp)


@FAMILIES
def test_N18_an_association_of_the_nodes_own_is_not_a_pods(masquerading: Bed, where: Places):
    """Its ports are often the same at both ends (RFC 4666): a pod that calls that peer so leaves by another."""
    own, pods = sctp(where.UPLINK, 2905, where.FAR, 2905), sctp(where.CLIENT, 2905, where.FAR, 2905)
    masquerading.run(Hook.TO_UPLINK, own)
    assert addresses(masquerading.run(Hook.FROM_POD, pods))[1] != 2905
    for packet, hook in ((answer_to(masquerading.run(Hook.TO_UPLINK, own)), Hook.FROM_UPLINK), (own, Hook.TO_UPLINK)):
        outcome = masquerading.run(hook, packet)
        assert (outcome.verdict, outcome.packet) == (PASS, bytes(packet))


@FAMILIES
@pytest.mark.parametrize("backends", [1, 2])
def test_N19_a_port_that_leads_to_a_pod_is_that_pods_own(masquerading: Bed, where: Places, backends: int):
    """As a forward's is: what the pod itself sends from there leaves by it, as its callers know it; no other's."""
    ends = [at(one, 5060) for one in (where.CLIENT, where.BACKEND)]
    masquerading.serve({at(where.UPLINK, "5060/UDP"): ends[:backends]})
    own, others = udp(where.CLIENT, 5060, where.FAR, 5060), udp(where.SECOND, 5060, where.FAR, 5060)
    assert addresses(masquerading.run(Hook.FROM_POD, others, device="pod4"))[1] != 5060
    there = masquerading.run(Hook.FROM_POD, own)
    assert (addresses(there)[1] == 5060) is (backends == 1)
    assert addresses(back(masquerading, there))[2:] == (where.CLIENT, 5060)


@FAMILIES
def test_N21_a_port_by_chance_is_one_by_chance(masquerading: Bed, where: Places):
    """RFC 6056: not the next one, and spread over the whole range."""
    masquerading.run(Hook.FROM_POD, tcp(where.CLIENT, 5000, where.FAR, 80))
    found = []
    for number in range(400):
        client = f"{where.CLIENT[:-1]}{100 + number % 100}"
        packet = tcp(client, 5000, where.FAR, 80)
        found.append(addresses(masquerading.run(Hook.FROM_POD, packet))[1])
        masquerading.forget_flows()
        masquerading.run(Hook.FROM_POD, tcp(where.CLIENT, 5000, where.FAR, 80))
    assert all(port % 2 == 0 and 1024 <= port <= 65535 for port in found)
    assert len(set(found)) > 380
    assert max(sum(port // 8192 == part for port in found) for part in range(8)) < 110
    assert sum(abs(one - next_) <= 2 for one, next_ in pairwise(found)) < 5


# How many


@FAMILIES
@MAKE
def test_N24_F18_one_pod_cannot_take_all(limited: Bed, where: Places, make):
    """Ten flows at once and one more every six seconds; what it has goes on, and others are not asked to pay."""

    def begins(port: int, source: str = where.CLIENT, device: str = "pod2") -> bool:
        outcome = limited.run(Hook.FROM_POD, make(source, port, where.FAR, 7000), device=device)
        assert outcome.verdict == REDIRECT
        if outcome.ip.dst == where.FAR:
            return True
        error = outcome.ip.payload
        assert (outcome.ip.dst, error.type, error.code) == (source, *((1, 1) if where is V6 else (3, 13)))
        return False

    first = [begins(5000 + number) for number in range(12)]
    assert first == [True] * 10 + [False] * 2
    assert limited.counted()["drop_pod_limit"] == 2
    again = [begins(5000 + number) for number in range(10)]
    other = begins(5000, where.BACKEND, "pod3")
    tell(load="ten flows of the pod, one of another", sent=23, broken=again.count(False), new_failed=int(not other))
    assert all(again), "those are there already"
    assert other
    limited.serve({where.called(f"90/{make.__name__.upper()}"): [at(where.BACKEND, 90)]})
    assert limited.run(Hook.FROM_POD, make(where.CLIENT, 5020, where.VIP, 90)).verdict == REDIRECT, "not outside"
    for seconds, more in ((7, 1), (12, 2), (600, 10)):
        limited.age_mappings(seconds)
        assert [begins(6000 + seconds * 20 + number) for number in range(more + 1)] == [True] * more + [False]


# Leaks


@FAMILIES
def test_C13_N84_nothing_leaves_under_a_pods_address(masquerading: Bed, where: Places):
    """What the stack sends out for a pod is masqueraded there, or dropped by name."""
    packet = tcp(where.CLIENT, 40000, where.FAR, 80)
    outcome = masquerading.run(Hook.TO_UPLINK, packet)
    assert (outcome.verdict, addresses(outcome)) == (PASS, (where.UPLINK, 40000, where.FAR, 80))
    for number in (47, 50, 89, 136, 58 if where is V4 else 1):
        odd = frame(where.CLIENT, where.FAR, **{"nh" if where is V6 else "proto": number}) / Raw(bytes(40))
        assert masquerading.run(Hook.TO_UPLINK, odd).verdict == DROP
        inside = masquerading.run(Hook.FROM_POD, odd)
        assert (inside.verdict, inside.packet) == (PASS, bytes(odd))
    assert masquerading.counted()["drop_untranslated"] == 5
    own = frame(where.UPLINK, where.FAR, **{"nh" if where is V6 else "proto": 47}) / Raw(bytes(40))
    assert masquerading.run(Hook.TO_UPLINK, own).verdict == PASS


@FAMILIES
def test_N96_a_stale_packet_exempts_nobody(masquerading: Bed, where: Places):
    """A late FIN from the server, with no flow left; the pod's next SYN is masqueraded (Cilium 47425)."""
    late = tcp(where.FAR, 80, where.CLIENT, 40000, "FA")
    masquerading.run(Hook.FROM_UPLINK, late)
    there = masquerading.run(Hook.FROM_POD, tcp(where.CLIENT, 40000, where.FAR, 80))
    assert addresses(there)[0] == where.UPLINK


@FAMILIES
def test_N104_what_comes_in_mid_stream_keeps_its_port_or_is_dropped(masquerading: Bed, where: Places):
    """A connection whose state is lost goes on, if nobody has its port meanwhile."""
    there = masquerading.run(Hook.FROM_POD, tcp(where.CLIENT, 40000, where.FAR, 80, "A"))
    assert addresses(there)[1] == 40000
    outcome = masquerading.run(Hook.FROM_POD, tcp(where.BACKEND, 40000, where.FAR, 80, "A"), device="pod3")
    assert (outcome.verdict, masquerading.counted()["drop_ports_taken"]) == (DROP, 1)


@FAMILIES
def test_a_service_whose_backend_is_outside(masquerading: Bed, where: Places):
    """Such as a database elsewhere: both addresses change."""
    masquerading.serve({where.called("80/TCP"): [at(where.FAR, 8080)]})
    there = masquerading.run(Hook.FROM_POD, tcp(where.CLIENT, 40000, where.VIP, 80))
    assert addresses(there) == (where.UPLINK, 40000, where.FAR, 8080)
    assert addresses(back(masquerading, there)) == (where.VIP, 80, where.CLIENT, 40000)
    direct = masquerading.run(Hook.FROM_POD, tcp(where.CLIENT, 40000, where.FAR, 8080))
    assert addresses(direct)[0] == where.UPLINK
    assert addresses(direct)[1] != 40000


@FAMILIES
@pytest.mark.parametrize("make", [tcp, udp], ids=["TCP", "UDP"])
@pytest.mark.parametrize(
    ("own", "class_"), [(100, range(1, 512)), (700, range(600, 1024)), (1024, range(1024, 65_536))], ids=str
)
def test_N16_a_low_port_stays_low(masquerading: Bed, where: Places, make, own: int, class_: range):
    """In the class of the own one, which another pod has: what a server that trusts low ports alone lets in."""
    masquerading.run(Hook.FROM_POD, make(where.CLIENT, own, where.FAR, 2049))
    found = set()
    for port in (2049, 2050) if make is udp else (2049,) * 20:
        there = masquerading.run(Hook.FROM_POD, make(where.BACKEND, own, where.FAR, port), device="pod3")
        assert there.verdict == REDIRECT
        found.add(addresses(there)[1])
    assert len(found) == 1
    (port,) = found
    assert port in class_
    assert port != own
    assert port % 2 == own % 2


@FAMILIES
def test_N2_TCP_keeps_its_port_for_every_server(masquerading: Bed, where: Places):
    """While it is free there; else it has another one for each."""
    first = [masquerading.run(Hook.FROM_POD, tcp(where.CLIENT, 5000, where.FAR, port)) for port in (80, 81, 82)]
    assert {addresses(one)[1] for one in first} == {5000}
    others = [
        masquerading.run(Hook.FROM_POD, tcp(where.BACKEND, 5000, where.FAR, port), device="pod3")
        for port in (80, 81, 82, 83)
    ]
    assert [addresses(one)[1] == 5000 for one in others] == [False, False, False, True]


@FAMILIES
def test_N72_hops(masquerading: Bed, where: Places):
    """At the last hop the stack answers, about the packet as it came."""
    last = udp(where.CLIENT, 40000, where.FAR, 80, **{ROUTED[where]: 1})
    outcome = masquerading.run(Hook.FROM_POD, last)
    assert (outcome.verdict, outcome.packet) == (PASS, bytes(last))


@FAMILIES
def test_N5_a_lost_half_is_made_anew(masquerading: Bed, where: Places):
    """The answer's half is dropped by the LRU: the pod's next packet heals it."""
    packet = udp(where.CLIENT, 40000, where.FAR, 80)
    there = masquerading.run(Hook.FROM_POD, packet)
    back(masquerading, there)
    name = "flows6" if where is V6 else "flows"
    masquerading.maps[name].delete(key_of(answer_to(there)))
    masquerading.age(2)
    masquerading.run(Hook.FROM_POD, packet)
    assert addresses(back(masquerading, there))[2:] == (where.CLIENT, 40000)


@FAMILIES
@MAKE
@pytest.mark.parametrize("ports", [(0, 80), (40000, 0)], ids=["from port 0", "to port 0"])
def test_N27_port_0_is_dropped_by_name(masquerading: Bed, where: Places, make, ports: tuple[int, int]):
    """Where it comes from a pod, and where the stack sends it out; nothing is known of it then."""
    packet = make(where.CLIENT, ports[0], where.FAR, ports[1])
    for hook in (Hook.FROM_POD, Hook.TO_UPLINK):
        assert masquerading.run(hook, packet).verdict == DROP
    assert masquerading.counted() == {"drop_untranslated": 2}
    assert masquerading.entries("half_open") == masquerading.entries() == masquerading.mappings() == {}


@FAMILIES
def test_N27_also_through_a_service(masquerading: Bed, where: Places):
    """Whose backend is outside; within the cluster nobody is hidden, and a datagram from port 0 arrives."""
    masquerading.serve({where.called("53/UDP"): [at(where.FAR, 53)], where.called("54/UDP"): [at(where.BACKEND, 5353)]})
    assert masquerading.run(Hook.FROM_POD, udp(where.CLIENT, 0, where.VIP, 53)).verdict == DROP
    assert masquerading.counted() == {"drop_untranslated": 1}
    there = masquerading.run(Hook.FROM_POD, udp(where.CLIENT, 0, where.VIP, 54))
    assert addresses(there) == (where.CLIENT, 0, where.BACKEND, 5353)
