"""Rules of ICMP errors and fragments that need packets of their own kind: hairpin, extensions, damage, floods."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from frames import (
    DROP,
    ICMP,
    IP,
    PASS,
    REDIRECT,
    TCP,
    Ether,
    IPv6,
    Outcome,
    Packet,
    Raw,
    addresses,
    answer_to,
    frame,
    tcp,
    udp,
)
from packetbed import Bed
from places import V4, V6, Places
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6ND_Redirect,
    ICMPv6TimeExceeded,
    IPv6ExtHdrFragment,
)

from pydatapath.kernel.layout import Hook

FAMILIES = pytest.mark.parametrize("where", [V4, V6], ids=["IPv4", "IPv6"])
MAKE = pytest.mark.parametrize("make", [tcp, udp], ids=["TCP", "UDP"])
Make = Callable[..., Packet]


def quote(packet: Outcome | Packet, size: int = 8) -> bytes:
    """What an error quotes: the IP header and this many bytes behind it."""
    raw = packet.packet if isinstance(packet, Outcome) else bytes(packet)
    return raw[14 : 14 + (40 if raw[12:14] == b"\x86\xdd" else 20) + size]


def error(source: str, destination: str, about: bytes, *, exceeded: bool = False, words: int = 0) -> Packet:
    """An ICMP error, by default "port unreachable"; `words`: the length that RFC 4884 has it say."""
    if ":" in source:
        kind = ICMPv6TimeExceeded(length=words) if exceeded else ICMPv6DestUnreach(code=4, length=words)
        return frame(source, destination) / kind / Raw(about)
    kind = ICMP(type=11, code=0, length=words) if exceeded else ICMP(type=3, code=3, length=words)
    return frame(source, destination) / kind / Raw(about)


def ends(raw: bytes) -> tuple[str, str, int, int]:
    """Addresses and ports of a quoted packet."""
    ip = IPv6(raw) if raw[0] >> 4 == 6 else IP(raw)
    return ip.src, ip.dst, *struct.unpack("!HH", raw[40 if raw[0] >> 4 == 6 else 20 :][:4])


def content(outcome: Outcome | bytes) -> bytes:
    """ICMP with all that is in it."""
    raw = outcome.packet if isinstance(outcome, Outcome) else outcome
    return raw[14 + (40 if raw[12:14] == b"\x86\xdd" else 20) :]


def is_summed_right(outcome: Outcome) -> bool:
    """Whether scapy would make the same ICMP checksum."""
    again = Ether(outcome.packet)
    layer = again.payload.payload
    field = "chksum" if again.haslayer(ICMP) else "cksum"
    setattr(layer, field, None)
    return bytes(again) == outcome.packet


# Whose errors


@FAMILIES
@MAKE
def test_N32_an_error_of_a_hairpin_flow_finds_the_pod_itself(bed: Bed, where: Places, make: Make):
    """A pod that calls itself has closed the port: it is told by the service, about what it has sent."""
    port = 80 if make is tcp else 53
    call = make(where.BACKEND, 40000, where.VIP, port)
    there = bed.run(Hook.FROM_POD, call, device="pod3")
    assert addresses(there)[0] == where.NODE
    back = bed.run(Hook.FROM_POD, error(where.BACKEND, where.NODE, quote(there)), device="pod3")
    assert (back.verdict, back.ip.src, back.ip.dst) == (REDIRECT, where.VIP, where.BACKEND)
    assert ends(content(back)[8:]) == (where.BACKEND, where.VIP, 40000, port)
    assert is_summed_right(back)


@FAMILIES
@MAKE
def test_N32_also_about_its_answer(bed: Bed, where: Places, make: Make):
    """The calling half of the pod no longer listens: the serving half learns that from whom it has answered."""
    call = make(where.BACKEND, 40000, where.VIP, 80 if make is tcp else 53)
    answer = answer_to(bed.run(Hook.FROM_POD, call, device="pod3"))
    back = bed.run(Hook.FROM_POD, answer, device="pod3")
    told = bed.run(Hook.FROM_POD, error(where.BACKEND, where.VIP, quote(back)), device="pod3")
    assert (told.verdict, told.ip.src, told.ip.dst) == (REDIRECT, where.NODE, where.BACKEND)
    assert ends(content(told)[8:]) == ends(quote(answer))
    assert is_summed_right(told)


@FAMILIES
@MAKE
def test_N56_an_error_about_an_answer_from_elsewhere_finds_that_backend(bed: Bed, where: Places, make: Make):
    """A client outside, a backend on another node, which sees this one: a router's word gets to it, in its terms."""
    called, listens = (81, 8080) if make is tcp else (54, 5353)
    call = make(where.FAR, 40000, where.VIP, called)
    there = bed.run(Hook.FROM_UPLINK, call)
    assert addresses(there) == (where.UPLINK, 40000, where.REMOTE, listens)
    back = bed.run(Hook.FROM_UPLINK, make(where.REMOTE, listens, where.UPLINK, 40000))
    assert (back.ip.src, back.ip.dst) == (where.VIP, where.FAR)
    told = bed.run(Hook.FROM_UPLINK, error(where.NEXT_HOP, where.VIP, quote(back)))
    assert (told.verdict, told.ip.dst) == (REDIRECT, where.REMOTE)
    assert ends(content(told)[8:]) == (where.REMOTE, where.UPLINK, listens, 40000)
    assert is_summed_right(told)


@FAMILIES
def test_N60_a_redirect_is_not_translated(bed: Bed, where: Places):
    """About a live flow or none: it goes to the stack as it came, and teaches no flow anything."""
    there = bed.establish(tcp(where.CLIENT, 40000, where.VIP, 80))
    flows = bed.entries()
    if where is V4:
        packet = frame(where.BACKEND, where.CLIENT) / ICMP(type=5, code=1, gw=where.SECOND) / Raw(quote(there))
    else:
        packet = frame(where.BACKEND, where.CLIENT) / ICMPv6ND_Redirect(tgt=where.SECOND, dst=where.REMOTE)
    for hook in (Hook.FROM_POD, Hook.FROM_UPLINK):
        source = packet.copy()
        if hook is Hook.FROM_UPLINK:
            source.payload.src = where.FAR
        outcome = bed.run(hook, source)
        assert (outcome.verdict, outcome.packet) == (PASS, bytes(source))
    assert bed.entries() == flows


@FAMILIES
@pytest.mark.parametrize("about", ["no service", "no backend"])
def test_N60_an_error_for_a_services_address_is_not_answered(bed: Bed, where: Places, about: str):
    """About a flow that nobody knows: no answer is made of it, whatever the address has to do with us."""
    port = 1234 if about == "no service" else 9
    quoted = quote(udp(where.VIP, port, where.FAR, 40000))
    outcome = bed.run(Hook.FROM_UPLINK, error(where.FAR, where.VIP, quoted))
    assert outcome.verdict in (PASS, DROP)
    assert outcome.packet == bytes(error(where.FAR, where.VIP, quoted))


# What an error holds


@FAMILIES
@MAKE
def test_N61_a_wrong_checksum_stays_wrong(bed: Bed, where: Places, make: Make):
    """Of the error and of the header that it quotes: sums are changed, not made anew, so the receiver still sees it."""
    there = bed.run(Hook.FROM_POD, make(where.CLIENT, 40000, where.VIP, 80 if make is tcp else 53))
    whole = bytes(error(where.BACKEND, where.CLIENT, quote(there)))
    good = bed.run(Hook.FROM_POD, whole, device="pod3")
    assert is_summed_right(good)
    place = len(whole) - len(content(whole)) + 2
    for damaged in (place, *((place + 6 + 10,) if where is V4 else ())):
        raw = bytearray(whole)
        raw[damaged] ^= 0x40
        bad = bed.run(Hook.FROM_POD, bytes(raw), device="pod3")
        assert (bad.ip.src, bad.ip.dst) == (where.VIP, where.CLIENT)
        sums = [int.from_bytes(one.packet[damaged : damaged + 2], "big") for one in (good, bad)]
        assert (sums[1] - sums[0]) % 0xFFFF in (0x4000, 0xFFFF - 0x4000)


MPLS = b"\x20\x00" + b"\x00\x00" + b"\x00\x08\x01\x01" + b"\x00\x01\x01\xff"  # RFC 4950: one label; its sum comes below


@FAMILIES
@MAKE
def test_N62_extensions_of_an_error_stay_as_they_are(bed: Bed, where: Places, make: Make):
    """RFC 4884: the quoted packet is filled up to 128 bytes, its length is told, and an MPLS label follows."""
    call = make(where.CLIENT, 40000, where.VIP, 81 if make is tcp else 54)
    there = bed.run(Hook.FROM_POD, call)
    quoted = quote(there, 28).ljust(128, b"\0")
    about = quoted + MPLS
    words = 16 if where is V6 else 32
    packet = bytes(error(where.NEXT_HOP, where.CLIENT, about, exceeded=True, words=words))
    back = bed.run(Hook.FROM_UPLINK, packet)
    assert (back.verdict, back.ip.dst) == (REDIRECT, where.CLIENT)
    assert is_summed_right(back)
    header = (40 if where is V6 else 20) + 8
    before, after = content(packet), content(back)
    assert len(after) == len(before)
    assert (after[:2], after[4:8]) == (before[:2], before[4:8])  # the length stands there
    assert after[8 + header :] == before[8 + header :]
    assert ends(after[8:]) == (where.CLIENT, where.VIP, 40000, addresses(call)[3])


# Fragments


def pieces(packet: Packet, identification: int, cuts: tuple[tuple[int, int], ...]) -> list[bytes]:
    """Fragments of a packet, each from one byte of its load to another; the one that ends it is the last."""
    whole = bytes(packet)
    load, found = whole[14 + (40 if packet.haslayer(IPv6) else 20) :], []
    for start, end in cuts:
        ip = packet.payload.copy()
        ip.remove_payload()
        more = int(end < len(load))
        if packet.haslayer(IPv6):
            del ip.plen
            ip.nh = 44
            header = IPv6ExtHdrFragment(nh=packet[IPv6].nh, offset=start // 8, m=more, id=identification)
            made = ip / header / Raw(load[start:end])
        else:
            del ip.len, ip.chksum
            ip.id, ip.frag, ip.flags, ip.proto = identification, start // 8, "MF" * more, packet[IP].proto
            made = ip / Raw(load[start:end])
        found.append(whole[:14] + bytes(made))
    return found


def datagram(where: Places, sport: int = 40000) -> Packet:
    """One of 1600 bytes, header and all."""
    packet = udp(where.CLIENT, sport, where.VIP, 53, payload=bytes(1592))
    if where is V4:
        packet[IP].proto = 17
    else:
        packet[IPv6].nh = 17
    return packet


HALVES = ((0, 800), (800, 1600))


@FAMILIES
def test_N65_fragments_in_order_beside_a_flood_all_arrive(bed: Bed, where: Places):
    """Thousands of first fragments that nobody follows, and between a datagram's two halves 50 of them (Cilium 43781:
    8192 entries lost at random).
    """
    flood = [pieces(datagram(where, 1024 + number), number, HALVES[:1])[0] for number in range(50)]
    for number in range(60):
        first, second = pieces(datagram(where), 0x7000 + number, HALVES)
        assert bed.run(Hook.FROM_POD, first).ip.dst == where.BACKEND
        for place, one in enumerate(flood):
            raw = bytearray(one)
            struct.pack_into("!H", raw, 18 if where is V4 else 14 + 40 + 6, 50 * number + place)
            bed.run(Hook.FROM_POD, bytes(raw))
        outcome = bed.run(Hook.FROM_POD, second)
        assert (outcome.verdict, outcome.ip.dst) == (REDIRECT, where.BACKEND)
    assert "drop_fragment" not in bed.counted()


@FAMILIES
def test_N68_overlapping_fragments_are_never_joined(bed: Bed, where: Places):
    """RFC 5722: each leaves alone with its own offset and load, and the receiver sees the overlap and refuses all."""
    parts = pieces(datagram(where), 0x1234, ((0, 800), (400, 1200), (800, 1600)))
    there = [bed.run(Hook.FROM_POD, part) for part in parts]
    assert {(one.verdict, one.ip.dst) for one in there} == {(REDIRECT, where.BACKEND)}
    offsets = slice(20, 22) if where is V4 else slice(14 + 42, 14 + 44)
    header = 14 + (20 if where is V4 else 48)
    for part, one in zip(parts[1:], there[1:], strict=True):
        assert one.packet[offsets] == part[offsets]
        assert one.packet[header:] == part[header:]


@FAMILIES
@MAKE
def test_katran_206_an_answer_to_a_fragment_is_none_itself(bed: Bed, where: Places, make: Make):
    """Katran 206: an error was marked as a fragment, and nobody could put it together. Here a refused first one."""
    packet = make(where.CLIENT, 40000, where.VIP, 9, payload=bytes(1600))
    setattr(packet.payload, "proto" if where is V4 else "nh", 17 if make is udp else 6)
    (first,) = pieces(packet, 0x1234, HALVES[:1])
    outcome = bed.run(Hook.FROM_POD, first)
    assert bed.counted() == {"drop_no_backend": 1}
    if make is tcp:  # a RST is the segment turned round, and this one is not whole
        assert outcome.verdict == DROP
        return
    assert (outcome.ip.src, outcome.ip.dst) == (where.VIP, where.CLIENT)
    if where is V4:
        assert (int(outcome.ip.flags) & 1, outcome.ip.frag) == (0, 0)
    else:
        assert outcome.ip.nh != 44


@FAMILIES
def test_C3_a_ping_of_a_services_address_with_few_hops_left_is_answered(bed: Bed, where: Places):
    """Cilium 14118: it came back to the router and ran in a circle. Here it is answered, though it has one hop left."""
    hops = {"ttl": 1} if where is V4 else {"hlim": 1}
    echo = ICMP(id=7) if where is V4 else ICMPv6EchoRequest(id=7)
    for hook, source in ((Hook.FROM_POD, where.CLIENT), (Hook.FROM_UPLINK, where.FAR)):
        outcome = bed.run(hook, frame(source, where.VIP, **hops) / echo)
        assert (outcome.verdict, outcome.ip.src, outcome.ip.dst) == (REDIRECT, where.VIP, source)


@FAMILIES
def test_N59_a_hop_that_is_the_last_is_the_stacks_for_every_way_of_asking(bed: Bed, where: Places):
    """traceroute by SYN and by datagram, towards a backend elsewhere and back: the packet gets there as it was sent."""
    for make, port in ((tcp, 81), (udp, 54)):
        hops = {"ttl": 1} if where is V4 else {"hlim": 1}
        call = make(where.CLIENT, 40000, where.VIP, port, **hops)
        outcome = bed.run(Hook.FROM_POD, call)
        assert (outcome.verdict, outcome.packet) == (PASS, bytes(call))
        there = bed.run(Hook.FROM_POD, make(where.CLIENT, 40000, where.VIP, port))
        back = make(where.REMOTE, addresses(there)[3], where.CLIENT, 40000, **hops)
        if make is tcp:
            back[TCP].flags = "SA"
        outcome = bed.run(Hook.FROM_UPLINK, back)
        assert (outcome.verdict, outcome.packet) == (PASS, bytes(back))
