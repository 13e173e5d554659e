"""Fragments: the later ones follow the first, which alone has ports."""

from __future__ import annotations

import pytest
from frames import DROP, ICMP, IP, PASS, REDIRECT, UDP, Ether, Packet, Raw, frame, leaves, tcp, udp
from packetbed import Bed
from places import BACKEND, CLIENT, FAR, MAC, REMOTE, SECOND, VIP

from pydatapath.kernel.layout import Hook

SIZE = 1480  # bytes of layer 3's load in each fragment but the last
PAYLOAD = bytes(range(256)) * 14
QUERY = udp(CLIENT, 40000, VIP, 53, payload=PAYLOAD, id=0xBEEF)


def pieces(packet: Packet) -> list[bytes]:
    """A packet in fragments, whose checksum is that of the whole (RFC 791 3.2)."""
    whole = bytes(packet)
    header, load = whole[:34], whole[34:]
    found = []
    for start in range(0, len(load), SIZE):
        part = Ether(header + load[start : start + SIZE])
        part[IP].frag = start // 8
        part[IP].flags = "MF" if start + SIZE < len(load) else ""
        part[IP].len = 20 + len(load[start : start + SIZE])
        del part[IP].chksum
        found.append(bytes(part))
    return found


def joined(parts: list[bytes]) -> bytes:
    """Layer 3 of the datagram that fragments make."""
    load = b"".join(part[34:] for part in sorted(parts, key=lambda part: int.from_bytes(part[20:22], "big") & 0x1FFF))
    ip = Ether(parts[0])[IP].copy()
    ip.remove_payload()
    ip.flags, ip.frag, ip.len, ip.chksum = "", 0, 20 + len(load), None
    return bytes(ip / Raw(load))


def run(bed: Bed, packet: bytes, hook: Hook = Hook.FROM_POD, device: str = "") -> bytes:
    """A fragment that must be sent on, as it leaves; its header's checksum is right."""
    outcome = bed.run(hook, packet, device=device)
    assert outcome.verdict == REDIRECT
    again = Ether(outcome.packet)
    del again[IP].chksum
    assert bytes(again)[:34] == outcome.packet[:34]
    return outcome.packet


@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1)], ids=["in order", "the last before the middle"])
@pytest.mark.parametrize("make", [tcp, udp], ids=["TCP", "UDP"])
def test_N63_N66_later_fragments_follow_the_first(bed: Bed, order: tuple[int, ...], make: type):
    """Both ways; the whole's checksum is right, and of the later ones only addresses and TTL have changed."""
    packet = QUERY if make is udp else tcp(CLIENT, 40000, VIP, 80, "PA", payload=PAYLOAD, id=0xBEEF)
    port = 5353 if make is udp else 8080
    sent = pieces(packet)
    assert len(sent) == 3
    there = [run(bed, sent[place]) for place in order]
    assert {part[:6].hex(":") for part in there} == {MAC[BACKEND]}
    assert joined(there) == bytes(leaves(packet, dst=BACKEND, dport=port)[IP])
    answer = leaves(packet, src=BACKEND, dst=CLIENT, sport=port, dport=40000)
    back = [run(bed, part, device="pod3") for part in pieces(answer)]
    assert joined(back) == bytes(leaves(answer, src=VIP, sport=53 if make is udp else 80)[IP])
    for before, after in zip([sent[place] for place in order[1:]], there[1:], strict=True):
        assert before[34:] == after[34:]


def test_N72_fragments_that_are_routed_lose_one_hop(bed: Bed):
    """Each of them."""
    bed.serve({f"{VIP}:53/UDP": [f"{REMOTE}:5353"]})
    there = [run(bed, part) for part in pieces(QUERY)]
    assert [Ether(part)[IP].ttl for part in there] == [63, 63, 63]
    assert joined(there) == bytes(leaves(QUERY, dst=REMOTE, dport=5353, ttl=63)[IP])


def test_C4_fragments_are_hidden_behind_the_node_together(bed: Bed):
    """A client from elsewhere to a backend elsewhere: source and destination change, of all."""
    bed.serve({f"{VIP}:53/UDP": [f"{REMOTE}:5353"]})
    packet = udp(FAR, 40000, VIP, 53, payload=PAYLOAD, id=7)
    there = [run(bed, part, Hook.FROM_UPLINK) for part in pieces(packet)]
    assert {Ether(part)[IP].src for part in there} == {"192.168.9.1"}


def test_N64_a_fragment_before_its_first_is_dropped_by_name(bed: Bed):
    """To a service's address nobody else could deliver it; towards others the stack may."""
    first, second, _ = pieces(QUERY)
    assert bed.run(Hook.FROM_POD, second).verdict == DROP
    assert bed.counted() == {"drop_fragment": 1}
    run(bed, first)
    run(bed, second)
    stray = pieces(udp(CLIENT, 40000, SECOND, 53, payload=PAYLOAD))[1]
    outcome = bed.run(Hook.FROM_POD, stray)
    assert (outcome.verdict, outcome.packet) == (PASS, stray)
    assert bed.counted() == {"drop_fragment": 1, "new_flow": 1, "pass_fragment": 1}


def test_N63_fragments_of_different_datagrams_do_not_mix(bed: Bed):
    """Another identification, protocol or sender is another datagram's."""
    first, second, _ = pieces(QUERY)
    run(bed, first)
    other = [
        pieces(udp(CLIENT, 40000, VIP, 53, payload=PAYLOAD, id=0xBEF0))[1],
        pieces(udp(SECOND, 40000, VIP, 53, payload=PAYLOAD, id=0xBEEF))[1],
        pieces(tcp(CLIENT, 40000, VIP, 80, payload=PAYLOAD, id=0xBEEF))[1],
    ]
    for packet in other:
        assert bed.run(Hook.FROM_POD, packet).verdict == DROP
    run(bed, second)


def test_N63_a_first_fragment_is_forgotten_after_half_a_minute(bed: Bed):
    """As long as a receiver waits for the rest of a datagram."""
    first, second, _ = pieces(QUERY)
    run(bed, first)
    bed.age_fragments(29)
    run(bed, second)
    bed.age_fragments(2)
    assert bed.run(Hook.FROM_POD, second).verdict == DROP


def test_what_is_no_services_is_not_noted(bed: Bed):
    """Plain fragments between pods pass as they came, and leave no trace."""
    for packet in (udp(CLIENT, 1, SECOND, 53, payload=PAYLOAD), udp(CLIENT, 1, BACKEND, 5353, payload=PAYLOAD)):
        for part in pieces(packet):
            outcome = bed.run(Hook.FROM_POD, part)
            assert (outcome.verdict, outcome.packet) == (PASS, part)
    assert not list(bed.maps["fragments"].items())


def test_N65_a_flood_of_fragments_pushes_out_no_flow(bed: Bed):
    """The table of fragments is one of its own, and an LRU."""
    bed.establish(udp(CLIENT, 40000, VIP, 53))
    packet = bytearray(pieces(QUERY)[0])
    for number in range(3000):
        packet[18:20] = number.to_bytes(2, "big")
        bed.run(Hook.FROM_POD, bytes(packet))
    assert bed.entry(udp(CLIENT, 40000, VIP, 53)) is not None
    assert len(bed.maps["fragments"]) <= bed.maps["fragments"].info.max_entries == 1024


@pytest.mark.parametrize("size", [0, 4, 7])
def test_N69_a_first_fragment_without_ports_is_the_stacks(bed: Bed, size: int):
    """Nothing is guessed, and what follows it finds no flow."""
    tiny = bytes(frame(CLIENT, VIP, proto=17, flags="MF") / Raw(bytes(size)))
    outcome = bed.run(Hook.FROM_POD, tiny)
    assert (outcome.verdict, outcome.packet) == (PASS, tiny)
    overlap = bytes(frame(CLIENT, VIP, proto=17, frag=1) / Raw(bytes(16)))
    assert bed.run(Hook.FROM_POD, overlap).verdict == DROP
    assert bed.counted() == {"pass_malformed": 1, "drop_fragment": 1}


def test_fragments_of_ICMP_are_left_alone(bed: Bed):
    """The first of a large ping is no whole echo request, so nobody answers half of it."""
    part = bytes(frame(CLIENT, BACKEND, flags="MF") / ICMP(type=8) / Raw(bytes(64)))
    outcome = bed.run(Hook.FROM_POD, part)
    assert (outcome.verdict, outcome.packet) == (PASS, part)
    assert UDP not in Ether(part)


def test_C3_a_ping_in_fragments_is_dropped_by_name(bed: Bed):
    """Of a virtual IP: an answer to its first fragment alone would be put together by nobody."""
    first = frame(CLIENT, VIP, flags="MF") / ICMP(type=8, id=7) / Raw(bytes(1472))
    assert bed.run(Hook.FROM_POD, first).verdict == DROP
    assert bed.counted() == {"drop_fragment": 1}
