"""IPv6 from the same walk: what is the same, and what IPv6 has of its own: headers, neighbour discovery, ICMPv6."""

from __future__ import annotations

import pytest
from frames import (
    DROP,
    PASS,
    REDIRECT,
    TCP,
    UDP,
    Ether,
    IPv6,
    Outcome,
    Packet,
    Raw,
    addresses,
    answer_to,
    frame,
    leaves,
    met_at,
    reverse,
    tcp,
    udp,
)
from packetbed import Bed
from places import GATEWAY_MAC, MAC, V4, V6, at
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)

from pydatapath.kernel.layout import Hook

SYN = tcp(V6.CLIENT, 40000, V6.VIP, 80)
QUERY = udp(V6.CLIENT, 40000, V6.VIP, 53)
BOTH = pytest.mark.parametrize("packet", [SYN, QUERY], ids=["TCP", "UDP"])
ROUTER = V6.NEXT_HOP


def chain(packet: Packet, *headers: Packet) -> Packet:
    """The packet with extension headers before its transport header."""
    ip = packet[IPv6]
    inner, load = ip.payload, ip.copy()
    load.remove_payload()
    del load.nh
    for header in headers:
        load = load / header
    return Ether(bytes(packet[Ether].copy())[:14]) / load / inner.copy()


def sums_are_right(packet: bytes) -> bool:
    """Whether the transport checksum is what scapy makes it."""
    again = Ether(packet)
    last = again.lastlayer()
    while not hasattr(last, "chksum") and not hasattr(last, "cksum"):
        last = last.underlayer
    delattr(last, "chksum" if hasattr(last, "chksum") else "cksum")
    return bytes(again) == packet


# Services


@BOTH
def test_S28_a_pod_reaches_a_service_and_sees_its_answer_come_from_there(bed: Bed, packet: Packet):
    """There the destination changes, back the source; a packet of a known flow takes no walk."""
    port = 8080 if packet.haslayer(TCP) else 5353
    there = bed.run(Hook.FROM_POD, packet)
    assert there.verdict == REDIRECT
    assert there.packet == bytes(leaves(packet, dst=V6.BACKEND, dport=port, mac=MAC[V6.BACKEND]))
    back = bed.answer(there)
    assert addresses(back) == reverse(addresses(packet))
    assert sums_are_right(back.packet)
    bed.confirm(packet)
    later = tcp(*addresses(packet), "A") if packet.haslayer(TCP) else packet
    assert not bed.run(Hook.FROM_POD, later).walked


def test_S8_families_do_not_meet(bed: Bed):
    """Equal ports in both families are two flows, and one family's backends are not the other's."""
    bed.establish(SYN)
    bed.establish(tcp(V4.CLIENT, 40000, V4.VIP, 80))
    assert len(bed.entries()) == 4
    bed.serve({V6.called("80/TCP"): [], V4.called("80/TCP"): [at(V4.BACKEND, 8080)]})
    assert bed.run(Hook.FROM_POD, tcp(V6.CLIENT, 40001, V6.VIP, 80)).packet != bytes(SYN)
    assert addresses(bed.run(Hook.FROM_POD, tcp(V4.CLIENT, 40001, V4.VIP, 80)))[2] == V4.BACKEND


def test_S29_hairpin_is_hidden_behind_the_bridge(bed: Bed):
    """A pod that is balanced to itself sees the node's address."""
    there = bed.run(Hook.FROM_POD, tcp(V6.BACKEND, 40000, V6.VIP, 80), device="pod3")
    assert addresses(there) == (V6.NODE, 40000, V6.BACKEND, 8080)
    assert sums_are_right(there.packet)
    assert addresses(bed.answer(there)) == (V6.VIP, 80, V6.BACKEND, 40000)


def test_S49_a_client_from_elsewhere_keeps_its_address_for_a_pod_here(bed: Bed):
    """And loses it where the backend is elsewhere, too (C4)."""
    here = bed.run(Hook.FROM_UPLINK, tcp(V6.FAR, 40000, V6.VIP, 80))
    assert addresses(here) == (V6.FAR, 40000, V6.BACKEND, 8080)
    there = bed.run(Hook.FROM_UPLINK, tcp(V6.FAR, 40000, V6.VIP, 81))
    assert addresses(there) == (V6.UPLINK, 40000, V6.REMOTE, 8080)
    assert here.verdict == there.verdict == REDIRECT


def test_N93_a_direct_connection_and_one_through_the_service(bed: Bed):
    """With equal ports both live: the second is sent from another port."""
    direct = tcp(V6.CLIENT, 40000, V6.BACKEND, 8080)
    assert bed.run(Hook.FROM_POD, direct).packet == bytes(direct)
    there = bed.run(Hook.FROM_POD, SYN)
    assert addresses(there)[1] != 40000
    assert addresses(bed.answer(there)) == (V6.VIP, 80, V6.CLIENT, 40000)


def test_N72_hop_limit(bed: Bed):
    """One less where it is routed, as it was between pods, and at 1 the stack's."""
    assert bed.run(Hook.FROM_POD, tcp(V6.CLIENT, 1, V6.VIP, 80, hlim=9)).ip.hlim == 9
    assert bed.run(Hook.FROM_POD, tcp(V6.CLIENT, 2, V6.VIP, 81, hlim=9)).ip.hlim == 8
    last = tcp(V6.CLIENT, 3, V6.VIP, 81, hlim=1)
    outcome = bed.run(Hook.FROM_POD, last)
    assert (outcome.verdict, outcome.packet) == (PASS, bytes(last))


def test_N73_traffic_class_and_flow_label_stay(bed: Bed):
    """The first word of the header leaves as it came, from the first packet on."""
    packet = tcp(V6.CLIENT, 40000, V6.VIP, 80, tc=0xB9, fl=0xABCDE)
    for outcome in (bed.run(Hook.FROM_POD, packet), bed.run(Hook.FROM_POD, packet)):
        assert (outcome.ip.tc, outcome.ip.fl) == (0xB9, 0xABCDE)


# Extension headers


HEADERS = {
    "hop-by-hop": [IPv6ExtHdrHopByHop()],
    "destination options": [IPv6ExtHdrDestOpt()],
    "routing, at its end": [IPv6ExtHdrRouting(segleft=0)],
    "three": [IPv6ExtHdrHopByHop(), IPv6ExtHdrRouting(segleft=0), IPv6ExtHdrDestOpt()],
    "eight": [IPv6ExtHdrDestOpt() for _ in range(8)],
    "atomic fragment": [IPv6ExtHdrFragment(id=7, offset=0, m=0)],
}


@BOTH
@pytest.mark.parametrize("headers", HEADERS.values(), ids=HEADERS)
def test_N75_N68_ports_are_found_behind_extension_headers(bed: Bed, packet: Packet, headers: list[Packet]):
    """And the headers are kept, there and back; later packets without them are of the same flow."""
    full = chain(packet, *headers)
    there = bed.run(Hook.FROM_POD, full)
    assert there.verdict == REDIRECT
    assert there.packet == bytes(leaves(full, dst=V6.BACKEND, dport=addresses(there)[3], mac=MAC[V6.BACKEND]))
    back = bed.run(Hook.FROM_POD, chain(answer_to(there), *headers), device="pod3")
    assert addresses(back) == reverse(addresses(packet))
    assert sums_are_right(back.packet)


@pytest.mark.parametrize(
    "headers",
    [[IPv6ExtHdrDestOpt() for _ in range(9)], [IPv6ExtHdrDestOpt(len=40, autopad=0) / Raw(bytes(322))]],
    ids=["nine", "328 bytes"],
)
def test_N75_more_headers_than_are_followed_never_leak(bed: Bed, headers: list[Packet]):
    """To a service's address they are dropped by name; elsewhere the stack may have them."""
    outcome = bed.run(Hook.FROM_POD, chain(SYN, *headers))
    assert outcome.verdict == DROP
    assert bed.counted()["drop_headers"] == 1
    other = chain(tcp(V6.CLIENT, 40000, V6.BACKEND, 8080), *headers)
    assert (passed := bed.run(Hook.FROM_POD, other)).verdict == PASS
    assert passed.packet == bytes(other)
    assert bed.counted()["pass_headers"] == 1


@pytest.mark.parametrize("cut", [1, 8, 13, 20])
def test_headers_that_are_cut_are_the_stacks(bed: Bed, cut: int):
    """A chain that ends before its transport header is never rewritten."""
    full = bytes(chain(SYN, IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt()))
    short = full[: 14 + 40 + 8 + cut]
    outcome = bed.run(Hook.FROM_POD, short)
    assert (outcome.verdict, outcome.packet) == (PASS, short)


def test_what_has_no_next_header_is_left_alone(bed: Bed):
    """RFC 8200 4.7; and protocols that have no ports."""
    for number in (59, 50, 51, 47, 89):
        packet = frame(V6.CLIENT, V6.BACKEND, nh=number) / Raw(bytes(32))
        outcome = bed.run(Hook.FROM_POD, packet)
        assert (outcome.verdict, outcome.packet) == (PASS, bytes(packet))


# Neighbour discovery


DISCOVERY = {
    "solicitation": ICMPv6ND_NS(tgt=V6.NODE),
    "advertisement": ICMPv6ND_NA(tgt=V6.CLIENT) / ICMPv6NDOptDstLLAddr(lladdr=MAC[V6.CLIENT]),
    "router solicitation": ICMPv6ND_RS(),
    "router advertisement": ICMPv6ND_RA(),
    "redirect": ICMPv6ND_Redirect(tgt=V6.NODE, dst=V6.REMOTE),
}


@pytest.mark.parametrize("kind", DISCOVERY)
@pytest.mark.parametrize("hook", Hook)
def test_N85_neighbour_discovery_is_left_alone(bed: Bed, kind: str, hook: Hook):
    """Whoever sends it, at every hook, and for a service's address too."""
    for destination in ("ff02::1", V6.NODE, V6.VIP, "fe80::1"):
        packet = met_at(hook, frame(V6.CLIENT, destination, hlim=255, to_mac=MAC[V6.NODE]) / DISCOVERY[kind].copy())
        outcome = bed.run(hook, packet)
        assert (outcome.verdict, outcome.packet) == (PASS, bytes(packet))


def test_endpoints_are_learned_from_neighbour_discovery(bed: Bed):
    """A pod that has only been asked for its MAC is known, at its own interface; a link-local address never is."""
    new = "fd00:10:1::99"
    packet = frame(new, V6.NODE, hlim=255) / ICMPv6ND_NA(tgt=new)
    packet.src = "02:00:00:00:00:99"
    bed.run(Hook.FROM_POD, packet, device="pod4")
    assert bed.endpoint(new) == (bed.devices["pod4"], "02:00:00:00:00:99", 0)
    bed.run(Hook.FROM_POD, frame("fe80::99", V6.NODE, hlim=255) / ICMPv6ND_NS(tgt=V6.NODE))
    assert bed.endpoint("fe80::99") is None


@pytest.mark.parametrize("destination", ["ff02::fb", "ff0e::1", "fe80::5", "::1", "2001:db8:77::7"])
def test_N85_multicast_and_link_local_are_left_alone(bed: Bed, destination: str):
    """No service has such an address, and nothing of them is entered."""
    packet = udp(V6.CLIENT, 5353, destination, 53)
    outcome = bed.run(Hook.FROM_POD, packet)
    assert (outcome.verdict, outcome.packet) == (PASS, bytes(packet))
    assert bed.entries("half_open") == {}


# Answers that are made in the kernel


def test_S39_ping_of_a_services_address_is_answered(bed: Bed):
    """From the address that was called, with the same identifier, number and data."""
    ask = frame(V6.CLIENT, V6.VIP) / ICMPv6EchoRequest(id=7, seq=3, data=b"abcdefgh")
    outcome = bed.run(Hook.FROM_POD, ask)
    want = (
        Ether(src=GATEWAY_MAC, dst=MAC[V6.CLIENT])
        / IPv6(src=V6.VIP, dst=V6.CLIENT, hlim=64)
        / ICMPv6EchoReply(id=7, seq=3, data=b"abcdefgh")
    )
    assert (outcome.verdict, outcome.packet) == (REDIRECT, bytes(want))


@pytest.mark.parametrize("port", [9, 1234], ids=["S41 no backend", "S37 no such port"])
def test_S37_S41_TCP_is_refused_by_a_reset(bed: Bed, port: int):
    """With the numbers of RFC 9293, and a right checksum."""
    outcome = bed.run(Hook.FROM_POD, tcp(V6.CLIENT, 40000, V6.VIP, port))
    segment = outcome.ip[TCP]
    assert outcome.verdict == REDIRECT
    assert addresses(outcome) == (V6.VIP, port, V6.CLIENT, 40000)
    assert (segment.flags, segment.seq, segment.ack) == ("RA", 0, 1001)
    assert sums_are_right(outcome.packet)


@pytest.mark.parametrize("headers", [[], [IPv6ExtHdrDestOpt()], [IPv6ExtHdrDestOpt() for _ in range(8)]], ids=len)
def test_S41_UDP_is_refused_by_port_unreachable(bed: Bed, headers: list[Packet]):
    """ICMPv6 type 1, code 4 (RFC 4443 3.1), quoting the headers and 8 bytes; the sum covers the pseudo-header."""
    packet = chain(udp(V6.CLIENT, 40000, V6.VIP, 9, payload=b"x" * 100), *headers)
    outcome = bed.run(Hook.FROM_POD, packet)
    error = outcome.ip[ICMPv6DestUnreach]
    assert (outcome.verdict, error.type, error.code) == (REDIRECT, 1, 4)
    assert (outcome.ip.src, outcome.ip.dst, outcome.ip.hlim) == (V6.VIP, V6.CLIENT, 64)
    quoted = bytes(packet)[14 : 14 + 40 + 8 * len(headers) + 8]
    assert outcome.packet[14 + 40 + 8 :] == quoted
    again = outcome.ip.copy()
    del again[ICMPv6DestUnreach].cksum
    assert bytes(again) == outcome.packet[14:]


def test_S38_an_address_that_no_service_owns(bed: Bed):
    """Is dropped by name, not sent on."""
    assert bed.run(Hook.FROM_POD, tcp(V6.CLIENT, 40000, "fd00:10:96::99", 80)).verdict == DROP
    assert bed.counted() == {"drop_no_service": 1}


# ICMPv6 errors


ERRORS = {
    "too big": ICMPv6PacketTooBig(mtu=1400),
    "time exceeded": ICMPv6TimeExceeded(),
    "unreachable": ICMPv6DestUnreach(code=1),
    "parameter problem": ICMPv6ParamProblem(ptr=6),
}


def about(kind: str, source: str, destination: str, quoted: bytes) -> Packet:
    """An error from one address to another."""
    return frame(source, destination) / ERRORS[kind].copy() / Raw(quoted)


def error_sum_is_right(outcome: Outcome, kind: str) -> bool:
    """Whether the error's own checksum is what scapy makes it."""
    again = outcome.ip.copy()
    del again[type(ERRORS[kind])].cksum
    return bytes(again) == outcome.packet[14:]


@BOTH
@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("size", [8, 60], ids=["8 bytes quoted", "all quoted"])
def test_N50_an_error_finds_the_client(bed: Bed, packet: Packet, kind: str, size: int):
    """A router tells of the translated packet: the client learns of the one that it sent, from that router."""
    sent = leaves(packet, dport=81 if packet.haslayer(TCP) else 54)
    there = bed.run(Hook.FROM_POD, sent)
    quoted = there.packet[14 : 14 + 40 + size]
    back = bed.run(Hook.FROM_UPLINK, about(kind, ROUTER, V6.CLIENT, quoted))
    assert back.verdict == REDIRECT
    assert (back.ip.src, back.ip.dst) == (ROUTER, V6.CLIENT)
    inner = IPv6(back.packet[14 + 40 + 8 :])
    assert (inner.src, inner.dst) == (V6.CLIENT, V6.VIP)
    assert back.packet[14 + 48 + 40 : 14 + 48 + 44] == bytes(sent)[54:58]
    if packet.haslayer(UDP):
        assert back.packet[14 + 48 + 46 : 14 + 48 + 48] == bytes(sent)[60:62]
    assert error_sum_is_right(back, kind)


@BOTH
def test_N55_an_error_of_the_backends_own_comes_from_the_service(bed: Bed, packet: Packet):
    """Its sender is who was called, as it must seem to the client."""
    there = bed.run(Hook.FROM_POD, packet)
    back = bed.run(
        Hook.FROM_POD, about("unreachable", V6.BACKEND, V6.CLIENT, there.packet[14 : 14 + 48]), device="pod3"
    )
    assert (back.verdict, back.ip.src, back.ip.dst) == (REDIRECT, V6.VIP, V6.CLIENT)
    assert error_sum_is_right(back, "unreachable")


@BOTH
def test_N50_an_error_about_an_answer_finds_the_backend(bed: Bed, packet: Packet):
    """Path MTU discovery works both ways: a client's router says that an answer is too big."""
    calling = leaves(packet, src=V6.FAR)
    there = bed.run(Hook.FROM_UPLINK, calling)
    back = bed.answer(there)
    error = about("too big", ROUTER, V6.VIP, back.packet[14 : 14 + 60])
    outcome = bed.run(Hook.FROM_UPLINK, error)
    inner = IPv6(outcome.packet[14 + 48 :])
    assert (outcome.verdict, outcome.ip.dst) == (REDIRECT, V6.BACKEND)
    assert (inner.src, inner.dst) == (V6.BACKEND, V6.FAR)
    assert error_sum_is_right(outcome, "too big")


# Fragments


def pieces(packet: Packet, size: int = 1448) -> list[bytes]:
    """A datagram in fragments (RFC 8200 4.5)."""
    whole = bytes(packet)
    load = whole[54:]
    ip = packet[IPv6].copy()
    ip.remove_payload()
    del ip.plen
    found = []
    for start in range(0, len(load), size):
        more = int(start + size < len(load))
        ip.nh = 44
        header = IPv6ExtHdrFragment(nh=packet[IPv6].nh, offset=start // 8, m=more, id=0xBEEF)
        found.append(whole[:14] + bytes(ip / header / Raw(load[start : start + size])))
    return found


def joined(parts: list[bytes]) -> bytes:
    """Layer 4 of the datagram that fragments make."""
    order = sorted(parts, key=lambda part: int.from_bytes(part[14 + 42 : 14 + 44], "big") >> 3)
    return b"".join(part[14 + 48 :] for part in order)


BIG = udp(V6.CLIENT, 40000, V6.VIP, 53, payload=bytes(range(256)) * 14)


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1)])
def test_N63_N66_later_fragments_follow_the_first(bed: Bed, order: tuple[int, ...]):
    """There and back, in any order behind the first; the whole's checksum is right."""
    parts = pieces(BIG)
    there = [bed.run(Hook.FROM_POD, parts[place]) for place in order]
    assert [one.verdict for one in there] == [REDIRECT] * 3
    assert {(one.ip.src, one.ip.dst) for one in there} == {(V6.CLIENT, V6.BACKEND)}
    want = leaves(BIG, dst=V6.BACKEND, dport=5353)
    assert joined([one.packet for one in there]) == bytes(want)[54:]
    answer = udp(V6.BACKEND, 5353, V6.CLIENT, 40000, payload=bytes(4000))
    back = [bed.run(Hook.FROM_POD, part, device="pod3") for part in pieces(answer)]
    assert {(one.ip.src, one.ip.dst) for one in back} == {(V6.VIP, V6.CLIENT)}
    assert joined([one.packet for one in back]) == bytes(leaves(answer, src=V6.VIP, sport=53))[54:]


def test_N64_a_later_fragment_before_its_first_is_dropped_by_name(bed: Bed):
    """For a service's address; elsewhere it is the stack's."""
    assert bed.run(Hook.FROM_POD, pieces(BIG)[1]).verdict == DROP
    assert bed.counted() == {"drop_fragment": 1}
    other = pieces(udp(V6.CLIENT, 40000, V6.BACKEND, 5353, payload=bytes(4000)))[1]
    assert bed.run(Hook.FROM_POD, other).verdict == PASS


def test_N65_another_datagram_is_not_known_by_its_source(bed: Bed):
    """The identification's 32 bits count, all of them."""
    first = pieces(BIG)
    bed.run(Hook.FROM_POD, first[0])
    other = bytearray(first[1])
    other[14 + 44] ^= 1
    assert bed.run(Hook.FROM_POD, bytes(other)).verdict == DROP


@pytest.mark.parametrize("size", [8, 60])
def test_N52_an_error_about_a_fragment_finds_the_client(bed: Bed, size: int):
    """IPv6's senders fragment, so what is too big for a link is a fragment; the first one has ports."""
    query = udp(V6.CLIENT, 40000, V6.VIP, 54, payload=bytes(4000))
    there = bed.run(Hook.FROM_POD, pieces(query)[0])
    outcome = bed.run(Hook.FROM_UPLINK, about("too big", ROUTER, V6.CLIENT, there.packet[14 : 14 + 48 + size]))
    assert outcome.verdict == REDIRECT
    inner = outcome.packet[14 + 48 :]
    sent = pieces(query)[0][14:]
    assert inner[8:40] == sent[8:40]
    assert inner[48:52] == sent[48:52]
    assert error_sum_is_right(outcome, "too big")


def test_N72_the_last_hop_at_the_nodes_own_address_is_none_of_its_sockets(bed: Bed):
    """A call of a node port with nothing left to live for: dropped by name, not delivered to whom it is not for."""
    bed.put_endpoint(V6.UPLINK, bed.devices["br0"], MAC[V6.NODE], 1)
    bed.serve({V6.called("30080/TCP", V6.UPLINK): [at(V6.REMOTE, 8080)]})
    assert bed.run(Hook.FROM_UPLINK, tcp(V6.FAR, 1, V6.UPLINK, 30080, hlim=1)).verdict == DROP
    assert bed.counted()["drop_hops"] == 1
