"""The first packet of a flow to a service: it leaves for a backend, and nothing changes but what must.

Each row is a packet and what must leave, every byte of it; checksums are those that scapy computes.
"""

from __future__ import annotations

import struct
from collections import Counter

import pytest
from frames import DROP, IP, PASS, TCP, UDP, Ether, Packet, Padding, answer_to, frame, leaves, tcp, udp
from packetbed import Bed, Case, ids
from places import BACKEND, CLIENT, MAC, NODE, NOWHERE, OUTSIDE, REMOTE, SECOND, UPLINK, VIP
from scapy.layers.inet import IPOption_RR, IPOption_Timestamp

from pydatapath.kernel.layout import Hook

TO_TCP = {"dst": BACKEND, "dport": 8080, "mac": MAC[BACKEND]}
TO_UDP = {"dst": BACKEND, "dport": 5353, "mac": MAC[BACKEND]}
SYN = tcp(CLIENT, 40000, VIP, 80)
QUERY = udp(CLIENT, 40000, VIP, 53)


def case(why: str, packet: Packet, changes: dict[str, object], hook: Hook = Hook.FROM_POD) -> Case:
    """A row whose packet leaves with these changes."""
    return Case(why, packet, leaves(packet, **changes), hook, counted="new_flow")


def with_options(packet: Packet, options: list[tuple[str, object]]) -> Packet:
    """The packet with these TCP options."""
    packet = packet.copy()
    packet[TCP].options = options
    return packet


def without_checksum(packet: Packet) -> Packet:
    """The datagram with 0 for its checksum: none was computed (RFC 768)."""
    packet = packet.copy()
    packet[UDP].chksum = 0
    return packet


def word_for_zero(want: Packet, layer: type[Packet]) -> bytes:
    """The word that, in a place where `want` has 0, makes its checksum come out as 0."""
    return struct.pack("!H", Ether(bytes(want))[layer].chksum)


def payload_for_zero(packet: Packet, layer: type[Packet], changes: dict[str, object]) -> Packet:
    """The packet, which ends in a payload of two zeros, with two bytes for which it leaves with the checksum 0."""
    wanted = packet.copy()
    wanted[layer].payload.load = word_for_zero(leaves(packet, **changes), layer)
    assert Ether(bytes(leaves(wanted, **changes)))[layer].chksum == (0xFFFF if layer is UDP else 0)
    return wanted


def identification_for_zero(packet: Packet, changes: dict[str, object]) -> Packet:
    """The packet with the identification for which it leaves with 0 as the header's checksum."""
    wanted = packet.copy()
    wanted[IP].id = 0
    wanted[IP].id = int.from_bytes(word_for_zero(leaves(wanted, **changes), IP), "big")
    assert Ether(bytes(leaves(wanted, **changes)))[IP].chksum == 0
    return wanted


ADDRESSES = [
    case("a SYN goes to the backend's address, port and MAC", SYN, TO_TCP),
    case("a datagram goes to the backend's address, port and MAC", QUERY, TO_UDP),
    case("a port that stays is not touched", tcp(CLIENT, 1, VIP, 443), {"dst": BACKEND, "mac": MAC[BACKEND]}),
    case("a first packet may be any: there is no window", tcp(CLIENT, 40000, VIP, 80, "PA", payload=b"x"), TO_TCP),
    case("the highest source port is one like others", tcp(CLIENT, 65535, VIP, 80), TO_TCP),
    case("source port 0 is kept", udp(CLIENT, 0, VIP, 53), TO_UDP),
]
KEPT = [
    case("N73 DSCP and ECN are kept", tcp(CLIENT, 40000, VIP, 80, tos=0xB9), TO_TCP),
    case("N73 DSCP and ECN of a datagram are kept", udp(CLIENT, 40000, VIP, 53, tos=0xFF), TO_UDP),
    case(
        "N74 ports are found behind IP options, which are kept",
        tcp(CLIENT, 4, VIP, 80, options=[IPOption_RR()]),
        TO_TCP,
    ),
    case(
        "N74 40 bytes of IP options, the most there are",
        udp(CLIENT, 4, VIP, 53, options=[IPOption_Timestamp(length=40, pointer=5)]),
        TO_UDP,
    ),
    case("the identification and Don't Fragment are kept", udp(CLIENT, 4, VIP, 53, id=0xBEEF, flags="DF"), TO_UDP),
    case(
        "N107 TCP options are kept: MPTCP, Fast Open, timestamps",
        with_options(SYN, [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (7, 0)), (34, b"cookie12"), (30, bytes(10))]),
        TO_TCP,
    ),
    case("N107 ECN's flags in a SYN are kept", tcp(CLIENT, 40000, VIP, 80, "SEC"), TO_TCP),
    case("N107 data in a SYN is kept", tcp(CLIENT, 40000, VIP, 80, payload=b"GET /"), TO_TCP),
    case("urgent data is kept", tcp(CLIENT, 40000, VIP, 80, "PAU", payload=b"!"), TO_TCP),
    *(
        case(f"a payload of {size} bytes is kept", udp(CLIENT, 4, VIP, 53, payload=bytes(range(size))), TO_UDP)
        for size in (0, 1, 3, 255)
    ),
    case("a payload of odd length over TCP is kept", tcp(CLIENT, 4, VIP, 80, "PA", payload=b"abc"), TO_TCP),
    case("a full frame", tcp(CLIENT, 4, VIP, 80, "A", payload=bytes(1460)), TO_TCP),
    case("what pads a short frame is kept and not summed", SYN / Padding(b"secret"), TO_TCP),
]
CHECKSUMS = [
    case("N76 UDP without a checksum stays without", without_checksum(QUERY), TO_UDP),
    case("N76 UDP without a checksum, odd payload", without_checksum(udp(CLIENT, 4, VIP, 53, payload=b"abc")), TO_UDP),
    case(
        "N76 a UDP checksum that comes out as 0 becomes 0xffff",
        payload_for_zero(udp(CLIENT, 40000, VIP, 53, payload=bytes(2)), UDP, TO_UDP),
        TO_UDP,
    ),
    case(
        "N76 a UDP checksum that came as 0xffff for 0",
        payload_for_zero(udp(CLIENT, 40000, VIP, 53, payload=bytes(2)), UDP, {}),
        TO_UDP,
    ),
    case(
        "a TCP checksum that comes out as 0 is 0",
        payload_for_zero(tcp(CLIENT, 40000, VIP, 80, payload=bytes(2)), TCP, TO_TCP),
        TO_TCP,
    ),
    case("a header checksum that comes out as 0 is 0", identification_for_zero(SYN, TO_TCP), TO_TCP),
]
TO_REMOTE = {"dst": REMOTE, "dport": 8080}
TTL = [
    case("N72 the TTL is kept to a pod of this node: the same subnet", tcp(CLIENT, 4, VIP, 80, ttl=7), TO_TCP),
    case("N72 a TTL of 1 is enough to a pod of this node", tcp(CLIENT, 4, VIP, 80, ttl=1), TO_TCP),
    case("N72 routed to another node: one hop off", tcp(CLIENT, 4, VIP, 81, ttl=7), {**TO_REMOTE, "ttl": 6}),
    case("N72 a datagram routed to another node", udp(CLIENT, 4, VIP, 54), {"dst": REMOTE, "dport": 5353, "ttl": 63}),
    case("N72 the lowest TTL that is routed", tcp(CLIENT, 4, VIP, 81, ttl=2), {**TO_REMOTE, "ttl": 1}),
    case("N72 a TTL whose change carries in the sum", tcp(CLIENT, 4, VIP, 81, ttl=255), {**TO_REMOTE, "ttl": 254}),
    case(
        "N72 from the uplink to a pod: one hop off", tcp(OUTSIDE, 4, VIP, 80), {**TO_TCP, "ttl": 63}, Hook.FROM_UPLINK
    ),
    case(
        "N72 C4 from uplink to uplink: one hop off, and the answer comes back by the node",
        tcp(OUTSIDE, 4, VIP, 81),
        {**TO_REMOTE, "src": UPLINK, "ttl": 63},
        Hook.FROM_UPLINK,
    ),
    case("N72 what the node itself sends is not routed", tcp(NODE, 4, VIP, 80), TO_TCP, Hook.TO_BRIDGE),
    case(
        "N72 nor is it on its way to another node",
        udp(NODE, 4, VIP, 54),
        {"dst": REMOTE, "dport": 5353},
        Hook.TO_BRIDGE,
    ),
]
TO_THE_STACK = [
    Case("N72 TTL 1 to another node: the stack answers time exceeded", tcp(CLIENT, 4, VIP, 81, ttl=1), verdict=PASS),
    Case("N72 TTL 0 as well", tcp(CLIENT, 4, VIP, 81, ttl=0), verdict=PASS),
    Case("N72 TTL 1 from the uplink", udp(OUTSIDE, 4, VIP, 53, ttl=1), hook=Hook.FROM_UPLINK, verdict=PASS),
    Case(
        "too long for the uplink: translated, the stack says so to the sender",
        tcp(CLIENT, 4, VIP, 81, "A", payload=bytes(1500)),
        leaves(tcp(CLIENT, 4, VIP, 81, "A", payload=bytes(1500)), **TO_REMOTE),
        verdict=PASS,
    ),
]


@pytest.mark.parametrize("row", [*ADDRESSES, *KEPT, *CHECKSUMS, *TTL, *TO_THE_STACK], ids=ids)
def test_a_first_packet(bed: Bed, row: Case):
    """The packet leaves as the row says, byte by byte."""
    bed.check(row)


@pytest.mark.parametrize("packet", [SYN, QUERY], ids=["TCP", "UDP"])
def test_a_wrong_checksum_stays_wrong(bed: Bed, packet: Packet):
    """A checksum is changed by what changed, never computed anew: damage on the way is not covered up."""
    layer = TCP if packet.haslayer(TCP) else UDP
    damaged = packet.copy()
    damaged[layer].chksum = Ether(bytes(packet))[layer].chksum ^ 0x0100
    left = Ether(bed.run(Hook.FROM_POD, damaged).packet)
    right = Ether(bytes(leaves(packet, **(TO_TCP if layer is TCP else TO_UDP))))
    assert left[layer].chksum != right[layer].chksum
    left[layer].chksum = right[layer].chksum
    assert bytes(left) == bytes(right)


def test_a_damaged_header_stays_damaged(bed: Bed):
    """The same for the IP header's checksum."""
    damaged = SYN.copy()
    damaged[IP].chksum = Ether(bytes(SYN))[IP].chksum ^ 0x0100
    left = bed.run(Hook.FROM_POD, damaged).ip
    written = left.chksum
    del left.chksum
    assert IP(bytes(left)).chksum != written


@pytest.mark.parametrize(
    ("hook", "source", "verdict", "counted"),
    [(Hook.FROM_POD, CLIENT, PASS, {"new_flow": 1}), (Hook.TO_BRIDGE, NODE, DROP, {"new_flow": 1, "drop_no_route": 1})],
    ids=["a pod's goes on through the stack", "the node's own has been through the stack"],
)
def test_a_backend_without_a_route(bed: Bed, hook: Hook, source: str, verdict: int, counted: dict[str, int]):
    """What our own lookup cannot route is the stack's after translation; its TTL is the stack's to lower."""
    bed.serve({f"{VIP}:80/TCP": [f"{NOWHERE}:8080"]})
    packet = tcp(source, 40000, VIP, 80)
    outcome = bed.run(hook, packet)
    assert outcome.packet == bytes(leaves(packet, dst=NOWHERE, dport=8080))
    assert outcome.verdict == verdict
    assert bed.counted() == counted


@pytest.mark.parametrize(
    "row",
    [
        Case(
            "S38 an address in the service network that no service owns",
            tcp(CLIENT, 4, "10.96.9.9", 80),
            counted="drop_no_service",
        ),
        Case("S38 UDP", udp(CLIENT, 4, "10.96.9.9", 80), counted="drop_no_service"),
        Case(
            "S38 also from outside", tcp(OUTSIDE, 4, "10.96.9.9", 443), hook=Hook.FROM_UPLINK, counted="drop_no_service"
        ),
        Case(
            "S38 from the node itself",
            tcp(NODE, 4, "10.96.9.9", 80),
            hook=Hook.TO_BRIDGE,
            counted="drop_no_service",
        ),
        Case(
            "the node's ping to an address of no service finds nobody there",
            frame(NODE, "10.96.9.9"),
            hook=Hook.TO_BRIDGE,
            counted="drop_no_service",
        ),
    ],
    ids=ids,
)
def test_N108_what_nobody_serves_is_dropped_by_name(bed: Bed, row: Case):
    """Nothing is translated, no flow is entered, one counter says why, and none of the others moves."""
    outcome = bed.run(row.hook, row.packet)
    assert (outcome.verdict, outcome.packet) == (DROP, bytes(row.packet))
    assert bed.counted() == {row.counted: 1}
    assert bed.entries("flows") == bed.entries("half_open") == {}


def test_S26_backends_are_chosen_evenly(bed: Bed):
    """Of 1,000 flows each of four backends gets its quarter, give or take six standard deviations."""
    backends = [f"{address}:{port}" for address in (BACKEND, SECOND) for port in (8080, 8081)]
    bed.serve({f"{VIP}:80/TCP": backends})
    packet = bytearray(bytes(SYN))
    tally: Counter[tuple[int, str]] = Counter()
    for port in range(1000):
        packet[34:36] = struct.pack("!H", 20000 + port)
        left = bed.run(Hook.FROM_POD, bytes(packet)).packet
        tally[int.from_bytes(left[36:38], "big"), left[0:6].hex(":")] += 1
    assert len(tally) == 4
    assert all(250 - 6 * 14 < count < 250 + 6 * 14 for count in tally.values()), tally


def test_a_first_datagram_enters_both_directions(bed: Bed):
    """Both halves are half-open, mirror each other and name the same backend; nothing is in the main table yet."""
    there = bed.run(Hook.FROM_POD, QUERY)
    forward, back = bed.entry(QUERY, "half_open"), bed.entry(answer_to(there), "half_open")
    assert forward is not None
    assert back is not None
    assert forward.to == (CLIENT, 40000, BACKEND, 5353)
    assert back.to == (VIP, 53, CLIENT, 40000)
    assert (forward.packets, forward.bytes, back.packets, back.bytes) == (1, 32, 0, 0)
    assert forward.backend == back.backend > 0
    assert len(bed.entries("half_open")) == 2
    assert bed.entries("flows") == {}


def test_a_SYN_enters_the_claim_of_its_answer(bed: Bed):
    """One entry: it says what the answer must become, and counts what the client has sent."""
    there = bed.run(Hook.FROM_POD, SYN)
    claim = bed.entry(answer_to(there), "half_open")
    assert claim is not None
    assert claim.to == (VIP, 80, CLIENT, 40000)
    assert (claim.packets, claim.bytes) == (1, 40)
    assert claim.backend > 0
    assert len(bed.entries("half_open")) == 1
    assert bed.entries("flows") == {}


def test_the_answer_and_the_clients_word_enter_both_directions(bed: Bed):
    """With each direction's own packets, and nothing left of the claim."""
    there = bed.establish(SYN)
    forward, back = bed.entry(SYN), bed.entry(answer_to(there))
    assert forward is not None
    assert back is not None
    assert (forward.to, back.to) == ((CLIENT, 40000, BACKEND, 8080), (VIP, 80, CLIENT, 40000))
    assert (forward.packets, forward.bytes, back.packets, back.bytes) == (2, 80, 1, 40)
    assert forward.backend == back.backend > 0
    assert bed.entries("half_open") == {}
