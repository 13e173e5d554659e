"""What pods of the node send to each other goes past the bridge, where `load` was asked for that; nothing else does.

Where a redirect leads BPF_PROG_TEST_RUN does not tell: traffic/test_pod_fast_path.py does.
"""

from __future__ import annotations

import struct

import pytest
from frames import PASS, REDIRECT, Ether, Outcome, Packet, Raw, addresses, answer_to, frame, sctp, tcp, udp
from packetbed import Bed
from places import GATEWAY_MAC, MAC, UPLINK_MAC, V4, V6, Places, at
from scapy.layers.inet import ICMP, UDP, IPerror, UDPerror
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoRequest, IPerror6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import ARP, Dot1Q
from scapy.utils import checksum

from pydatapath.kernel.layout import EndpointKind, FlowFlag, Hook

BOTH = pytest.mark.parametrize("where", [V4, V6], ids=["IPv4", "IPv6"])
NEW_MAC = "02:00:00:00:00:99"


def new(where: Places) -> str:
    """A pod that nobody has heard of."""
    return where.CLIENT + "9"


def kinds(where: Places) -> dict[str, Packet]:
    """What a pod may send to another one, SECOND, where no backend listens; by whether that takes the walk."""
    ends, ip = (where.CLIENT, where.SECOND), frame(where.CLIENT, where.SECOND)
    six = where is V6
    quoted = (IPerror6 if six else IPerror)(src=where.SECOND, dst=where.CLIENT) / UDPerror(sport=9, dport=9) / Raw(b"x")
    found = {
        "a datagram": udp(where.CLIENT, 40000, where.SECOND, 9),
        "a segment": tcp(where.CLIENT, 40000, where.SECOND, 9, "A"),
        "a reset": tcp(where.CLIENT, 40000, where.SECOND, 9, "RA"),
        "SCTP": sctp(where.CLIENT, 40000, where.SECOND, 9),
        "walked: a SYN": tcp(where.CLIENT, 40000, where.SECOND, 9, "S"),
        "walked: an answered SYN": tcp(where.CLIENT, 40000, where.SECOND, 9, "SA"),
        "walked: an echo": ip / (ICMPv6EchoRequest() if six else ICMP()),
        "walked: an error": ip / (ICMPv6DestUnreach(code=4) if six else ICMP(type=3, code=3)) / quoted,
        "walked: a later fragment": fragment(where, ends, 1),
        "walked: a first fragment": fragment(where, ends, 0),
    }
    if six:
        found["walked: extension headers"] = ip / IPv6ExtHdrDestOpt() / UDP(sport=40000, dport=9) / Raw(b"x")
    else:
        found["another protocol"] = frame(*ends, proto=47) / Raw(bytes(20))
    return found


def fragment(where: Places, ends: tuple[str, str], offset: int) -> Packet:
    """A part of a datagram, in units of eight bytes."""
    more, content = (
        offset == 0,
        (UDP(sport=40000, dport=9, len=24, chksum=7) / Raw(bytes(8)) if not offset else bytes(8)),
    )
    if where is V6:
        return frame(*ends) / IPv6ExtHdrFragment(nh=17, m=more, offset=offset, id=7) / content
    return frame(*ends, proto=17, id=7, flags="MF" if more else 0, frag=offset) / content


def check(outcome: Outcome, packet: Packet, verdict: int) -> None:
    """It is let go by this verdict, as it came."""
    assert outcome.packet == bytes(packet)
    assert outcome.verdict == verdict


@BOTH
def test_what_a_pod_sends_to_another_is_handed_over_as_it_came(past: Bed, where: Places):
    """By TCP, UDP, SCTP, ICMP and what has no ports; whole or in fragments; by the walk only where that may matter."""
    for kind, packet in kinds(where).items():
        outcome = past.run(Hook.FROM_POD, packet)
        check(outcome, packet, REDIRECT)
        assert outcome.walked is kind.startswith("walked"), kind
    assert not past.entries()
    assert not past.entries("half_open")


@BOTH
def test_without_the_option_it_is_the_bridges(bed: Bed, where: Places):
    """All of the same."""
    for packet in kinds(where).values():
        check(bed.run(Hook.FROM_POD, packet), packet, PASS)


@BOTH
@pytest.mark.parametrize("hook", [Hook.TO_BRIDGE, Hook.TO_UPLINK], ids=["the bridge", "the uplink"])
def test_what_a_pod_has_not_sent_is_not_handed_over(past: Bed, where: Places, hook: Hook):
    """What the node sends to a pod, or to elsewhere, goes its way."""
    packet = udp(where.NODE, 40000, where.SECOND, 9)
    check(past.run(hook, packet), packet, PASS)


@BOTH
@pytest.mark.parametrize(
    "mac", [GATEWAY_MAC, MAC[V4.NODE], MAC[V4.BACKEND], NEW_MAC, "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01"]
)
def test_a_frame_that_is_not_for_the_pods_MAC_is_the_bridges(past: Bed, where: Places, mac: str):
    """The gateway's is routed by the node, another pod's by that pod; broadcasts are everybody's."""
    for payload in (udp, tcp):
        packet = payload(where.CLIENT, 40000, where.SECOND, 9, **({"flags": "A"} if payload is tcp else {}))
        packet[Ether].dst = mac
        check(past.run(Hook.FROM_POD, packet), packet, PASS)


@BOTH
def test_who_is_not_known_here_is_the_bridges_to_find(past: Bed, where: Places):
    """An address that no pod has sent from, whatever the MAC; the node's own; one of another network."""
    for address in (new(where), where.NODE, where.UPLINK, where.REMOTE, where.OUTSIDE):
        for flags in ("S", "A"):
            packet = tcp(where.CLIENT, 40000, address, 9, flags, to_mac=MAC[where.SECOND])
            check(past.run(Hook.FROM_POD, packet), packet, PASS)


@BOTH
def test_nothing_is_handed_back_to_where_it_came_from(past: Bed, where: Places):
    """Who is behind the sender's own interface: a bridge does not send there either."""
    past.put_endpoint(new(where), past.devices["pod2"], NEW_MAC, EndpointKind.POD)
    packet = udp(where.CLIENT, 40000, new(where), 9, to_mac=NEW_MAC)
    check(past.run(Hook.FROM_POD, packet), packet, PASS)
    check(
        past.run(Hook.FROM_POD, udp(where.CLIENT, 40000, where.SECOND, 9)),
        udp(where.CLIENT, 40000, where.SECOND, 9),
        REDIRECT,
    )


@BOTH
def test_a_pod_that_is_gone_is_the_bridges_to_find(past: Bed, where: Places):
    """Its address and even its MAC may be another's, whose interface no `load` has seen."""
    past.kill(where.SECOND)
    for packet in kinds(where).values():
        check(past.run(Hook.FROM_POD, packet), packet, PASS)
    past.revive(where.SECOND)
    packet = udp(where.CLIENT, 40000, where.SECOND, 9)
    check(past.run(Hook.FROM_POD, packet), packet, REDIRECT)


@BOTH
@pytest.mark.parametrize("flags", ["A", "S"])
def test_who_sends_is_learned_first(past: Bed, where: Places, flags: str):
    """By the walk, once; again where its MAC is another."""
    for mac in (NEW_MAC, "02:00:00:00:00:98"):
        packet = tcp(new(where), 40000, where.SECOND, 9, flags)
        packet[Ether].src = mac
        first, second = (past.run(Hook.FROM_POD, packet) for _ in range(2))
        check(first, packet, REDIRECT)
        check(second, packet, REDIRECT)
        assert (first.walked, second.walked) == (True, flags == "S")
        assert past.endpoint(new(where)) == (past.devices["pod2"], mac, EndpointKind.POD)


def test_ARP_is_the_bridges(past: Bed):
    """Asked of all or of one: so the bridge goes on learning where pods are."""
    for to in ("ff:ff:ff:ff:ff:ff", MAC[V4.SECOND]):
        packet = Ether(src=MAC[V4.CLIENT], dst=to) / ARP(psrc=V4.CLIENT, pdst=V4.SECOND, hwsrc=MAC[V4.CLIENT])
        check(past.run(Hook.FROM_POD, packet), packet, PASS)


@BOTH
def test_a_tagged_frame_is_the_bridges(past: Bed, where: Places):
    """As it has always been: what is behind a tag is not looked at."""
    plain = udp(where.CLIENT, 40000, where.SECOND, 9)
    packet = Ether(src=plain.src, dst=plain.dst) / Dot1Q(vlan=5) / plain.payload
    check(past.run(Hook.FROM_POD, packet), packet, PASS)


@BOTH
def test_a_packet_whose_lengths_lie_is_the_bridges(past: Bed, where: Places):
    """As it has always been, and counted."""
    raw = bytearray(bytes(udp(where.CLIENT, 40000, where.SECOND, 9)))
    place = 14 + (4 if where is V6 else 2)
    struct.pack_into("!H", raw, place, 1000)
    if where is V4:
        struct.pack_into("!H", raw, 24, 0)
        struct.pack_into("!H", raw, 24, checksum(bytes(raw[14:34])))
    check(past.run(Hook.FROM_POD, bytes(raw)), Raw(bytes(raw)), PASS)
    assert past.counted() == {"pass_malformed": 1}


@BOTH
def test_a_later_fragment_alone_is_counted_as_ever(past: Bed, where: Places):
    """Nobody has seen its first: it is handed over unread."""
    packet = fragment(where, (where.CLIENT, where.SECOND), 1)
    check(past.run(Hook.FROM_POD, packet), packet, REDIRECT)
    assert past.counted() == {"pass_fragment": 1}


# Services lose nothing by it


@BOTH
@pytest.mark.parametrize("make", [tcp, udp], ids=["TCP", "UDP"])
def test_the_answer_of_a_service_is_the_services(past: Bed, where: Places, make: object):
    """A backend's frame is for the client's MAC, its packet not as it is: also where the flow is half open."""
    call = tcp(where.CLIENT, 40000, where.VIP, 80) if make is tcp else udp(where.CLIENT, 40000, where.VIP, 53)
    called = addresses(call)
    there = past.run(Hook.FROM_POD, call)
    for flags in ("SA", "A", "PA") if make is tcp else ("", ""):
        answer = answer_to(there, flags)
        assert answer.dst == MAC[where.CLIENT]
        back = past.run(Hook.FROM_POD, answer, device="pod3")
        assert addresses(back) == (*called[2:], *called[:2])
        assert back.verdict == REDIRECT
        past.confirm(call)


@BOTH
def test_a_direct_connection_to_a_backend_is_known(past: Bed, where: Places):
    """N93: entered by its SYN, promoted, counted, handed over all the while; what is later takes no walk."""
    ends = where.CLIENT, 40000, where.BACKEND, 8080
    there, back = tcp(*ends, "S"), tcp(*ends[2:], *ends[:2], "SA")
    segment = tcp(*ends, "A", payload=b"data")
    check(past.run(Hook.FROM_POD, there), there, REDIRECT)
    assert past.entry(back, "half_open") is not None
    check(past.run(Hook.FROM_POD, back, device="pod3"), back, REDIRECT)
    check(past.run(Hook.FROM_POD, segment), segment, REDIRECT)
    known = past.entry(segment)
    assert known is not None
    assert known.flags & FlowFlag.PLAIN
    outcome = past.run(Hook.FROM_POD, segment)
    check(outcome, segment, REDIRECT)
    assert not outcome.walked
    counted = past.entry(segment)
    assert counted is not None
    assert counted.packets == known.packets + 1


@BOTH
@pytest.mark.parametrize("flags", ["A", "PA", "FA"])
def test_in_the_middle_of_a_direct_connection_it_is_entered_again(past: Bed, where: Places, flags: str):
    """What the LRU has dropped: a service's flow must not take its ports."""
    packet = tcp(where.CLIENT, 40000, where.BACKEND, 8080, flags)
    outcome = past.run(Hook.FROM_POD, packet)
    check(outcome, packet, REDIRECT)
    assert outcome.walked
    assert past.entry(tcp(where.BACKEND, 8080, where.CLIENT, 40000), "half_open") is not None


@BOTH
@pytest.mark.parametrize("make", [tcp, udp], ids=["TCP", "UDP"])
def test_an_address_of_a_pods_that_a_service_owns_is_the_services(past: Bed, where: Places, make: object):
    """Whatever stands there: its ports lead to its backends, and a cluster IP has no others."""
    past.serve({f"{at(where.SECOND, 80)}/{'TCP' if make is tcp else 'UDP'}": [at(where.BACKEND, 8080)]})
    flags = {"flags": "A"} if make is tcp else {}
    call = (tcp if make is tcp else udp)(where.CLIENT, 40000, where.SECOND, 80, **flags)
    assert addresses(past.run(Hook.FROM_POD, call)) == (where.CLIENT, 40000, where.BACKEND, 8080)
    other = (tcp if make is tcp else udp)(where.CLIENT, 40000, where.SECOND, 81, **flags)
    refused = past.run(Hook.FROM_POD, other)
    assert refused.packet != bytes(other)
    assert past.counted()["drop_no_service"] == 1


@BOTH
def test_what_comes_in_by_the_uplink_is_not_handed_over(past: Bed, where: Places):
    """It is routed, and loses a hop."""
    packet = udp(where.FAR, 40000, where.SECOND, 9, to_mac=UPLINK_MAC)
    check(past.run(Hook.FROM_UPLINK, packet), packet, PASS)
