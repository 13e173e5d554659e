"""Refusing in the kernel: what a caller is told where nobody answers."""

from __future__ import annotations

import pytest
from frames import DROP, ICMP, IP, PASS, REDIRECT, TCP, Ether, Outcome, Packet, Raw, frame, tcp, udp
from packetbed import Bed, Serving
from places import BACKEND, CLIENT, GATEWAY_MAC, MAC, NODE, OUTSIDE, VIP

from pydatapath.kernel.compile import ANSWERS_PER_SECOND
from pydatapath.kernel.layout import Hook
from pydatapath.plan import FrontendKind

HOOKS = pytest.mark.parametrize(
    ("hook", "caller"), [(Hook.FROM_POD, CLIENT), (Hook.TO_BRIDGE, NODE)], ids=["a pod", "the node"]
)


def sums_are_right(packet: bytes) -> bool:
    """Whether the checksums of a packet are what scapy makes them."""
    again = Ether(packet)
    del again[IP].chksum
    del again[TCP if again.haslayer(TCP) else ICMP].chksum
    return bytes(again) == packet


def refused(bed: Bed, hook: Hook, packet: Packet) -> Outcome:
    """What comes back for a packet: to its sender's MAC, counted, with right sums."""
    outcome = bed.run(hook, packet)
    assert outcome.verdict == REDIRECT
    assert outcome.packet[:12].hex(":") == f"{packet[Ether].src}:{packet[Ether].dst}"
    assert (outcome.ip.src, outcome.ip.dst) == (VIP, packet[IP].src)
    assert sums_are_right(outcome.packet)
    assert bed.counted() == {"drop_no_backend": 1}
    assert bed.entries("half_open") == bed.entries() == {}
    return outcome


@HOOKS
@pytest.mark.parametrize("size", [0, 7])
@pytest.mark.parametrize("options", [[], [("MSS", 1460), ("NOP", None), ("WScale", 7)]], ids=["plain", "options"])
def test_S41_C2_a_SYN_is_answered_by_RST(bed: Bed, hook: Hook, caller: str, size: int, options: list[object]):
    """RFC 9293 3.10.7.1: sequence 0, and everything acknowledged, so that the caller believes it."""
    packet = tcp(caller, 40000, VIP, 9, "S", payload=b"x" * size)
    packet[TCP].options = options
    answer = refused(bed, hook, packet).ip[TCP]
    assert (answer.sport, answer.dport, answer.flags, answer.seq, answer.ack) == (9, 40000, "RA", 0, 1001 + size)


@HOOKS
@pytest.mark.parametrize("flags", ["A", "PA", "FA"])
def test_S41_C2_a_segment_with_ACK_is_answered_by_its_own_number(bed: Bed, hook: Hook, caller: str, flags: str):
    """The only RST that its sender believes is the one whose sequence it acknowledges."""
    packet = tcp(caller, 40000, VIP, 9, flags, payload=b"data")
    packet[TCP].ack = 77_000
    answer = refused(bed, hook, packet).ip[TCP]
    assert (answer.flags, answer.seq, answer.ack) == ("R", 77_000, 0)


def test_a_RST_is_never_answered(bed: Bed):
    """Two that refuse each other would go on for ever."""
    outcome = bed.run(Hook.FROM_POD, tcp(CLIENT, 40000, VIP, 9, "R"))
    assert outcome.verdict == DROP


def test_one_answer_to_many_segments_is_none(bed: Bed):
    """A GSO packet would be cut into as many answers."""
    outcome = bed.run(Hook.FROM_POD, tcp(CLIENT, 40000, VIP, 9, "A", payload=b"x" * 2800), gso=(2, 1400))
    assert outcome.verdict == DROP


@HOOKS
@pytest.mark.parametrize("size", [0, 1, 100, 1400])
def test_S41_C2_a_datagram_is_answered_by_port_unreachable(bed: Bed, hook: Hook, caller: str, size: int):
    """RFC 792: type 3, code 3, the datagram's header and eight bytes; it comes from the address that was called."""
    packet = udp(caller, 40000, VIP, 9, payload=b"x" * size)
    answer = refused(bed, hook, packet)
    assert (answer.ip[ICMP].type, answer.ip[ICMP].code) == (3, 3)
    assert bytes(answer.ip[ICMP])[8:] == bytes(packet)[14 : 14 + 28]
    assert answer.ip.len == 56 == len(answer.packet) - 14


def test_a_datagram_with_options_is_quoted_with_them(bed: Bed):
    """The whole header, so that its sender finds the socket."""
    packet = udp(CLIENT, 40000, VIP, 9, options=[b"\x94\x04\x00\x00"])
    answer = refused(bed, Hook.FROM_POD, packet)
    assert bytes(answer.ip[ICMP])[8:] == bytes(packet)[14 : 14 + 32]


def test_the_answer_goes_to_the_senders_MAC(bed: Bed):
    """And says that it comes from where the sender thought the service to be."""
    outcome = bed.run(Hook.FROM_POD, tcp(CLIENT, 40000, VIP, 9))
    assert (Ether(outcome.packet).dst, Ether(outcome.packet).src) == (MAC[CLIENT], GATEWAY_MAC)


# A service's own address, beside its ports


@HOOKS
@pytest.mark.parametrize("make", [tcp, udp], ids=["TCP", "UDP"])
def test_S37_C2_a_port_that_a_cluster_IP_has_not_is_refused(bed: Bed, hook: Hook, caller: str, make: type):
    """Nobody else can have it; of a service with TCP port 80, UDP port 80 is none."""
    outcome = bed.run(hook, make(caller, 40000, VIP, 8443))
    assert (outcome.verdict, outcome.ip.src) == (REDIRECT, VIP)
    assert bed.counted() == {"drop_no_service": 1}


def test_C2_of_an_external_address_only_the_services_ports_are_ours(bed: Bed):
    """Whose address it is besides, we do not know: the stack decides."""
    bed.serve({f"{OUTSIDE}:80/TCP": Serving([f"{BACKEND}:8080"], kind="external-ip")})
    packet = tcp(CLIENT, 40000, OUTSIDE, 8443)
    outcome = bed.run(Hook.FROM_POD, packet)
    assert (outcome.verdict, outcome.packet) == (PASS, bytes(packet))


def ping(source: str, destination: str, size: int = 56) -> Packet:
    """An echo request."""
    return frame(source, destination) / ICMP(type=8, id=77, seq=3) / Raw(b"x" * size)


@HOOKS
@pytest.mark.parametrize("kind", ["cluster-ip", "external-ip", "load-balancer-ip"])
@pytest.mark.parametrize("size", [0, 1, 56, 1400])
def test_S39_C3_N48_a_ping_is_answered(bed: Bed, hook: Hook, caller: str, kind: FrontendKind, size: int):
    """By the address itself, whatever becomes of the backends: nothing is routed on, nothing loops."""
    bed.serve({f"{OUTSIDE}:80/TCP": Serving([], kind=kind)})
    packet = ping(caller, OUTSIDE, size)
    outcome = bed.run(hook, packet)
    assert outcome.verdict == REDIRECT
    assert (outcome.ip.src, outcome.ip.dst, outcome.ip.ttl) == (OUTSIDE, caller, 64)
    assert bytes(outcome.ip[ICMP])[4:] == bytes(packet[ICMP])[4:]
    assert outcome.ip[ICMP].type == 0
    assert sums_are_right(outcome.packet)


def test_an_address_that_is_no_longer_a_services_answers_no_ping(bed: Bed):
    """Nor does one that never was."""
    bed.serve({f"{OUTSIDE}:80/TCP": Serving([], kind="external-ip")})
    assert bed.run(Hook.FROM_POD, ping(CLIENT, OUTSIDE)).verdict == REDIRECT
    bed.serve({})
    for address in (OUTSIDE, BACKEND):
        packet = ping(CLIENT, address)
        assert bed.run(Hook.FROM_POD, packet).packet == bytes(packet)


def test_N60_no_answer_answers_an_echo_reply(bed: Bed):
    """Two services that answered each other would go on for ever."""
    packet = frame(CLIENT, VIP) / ICMP(type=0, id=77, seq=3)
    outcome = bed.run(Hook.FROM_POD, packet)
    assert (outcome.verdict, outcome.packet) == (PASS, bytes(packet))


@pytest.mark.parametrize(
    "packet", [tcp(CLIENT, 40000, VIP, 9), udp(CLIENT, 40000, VIP, 9), ping(CLIENT, VIP)], ids=["TCP", "UDP", "ping"]
)
def test_S45_C2_all_answers_together_have_a_limit(bed: Bed, packet: Packet):
    """A flood with forged sources is not turned on those; a second later there are answers again."""
    bed.run(Hook.FROM_POD, packet)
    bed.spend_answers(ANSWERS_PER_SECOND - 1)
    assert bed.run(Hook.FROM_POD, packet).verdict == REDIRECT
    bed.spend_answers(ANSWERS_PER_SECOND)
    assert bed.run(Hook.FROM_POD, packet).verdict == DROP
    assert bed.counted()["drop_answer_limit"] == 1
    bed.spend_answers(ANSWERS_PER_SECOND, seconds_ago=1)
    assert bed.run(Hook.FROM_POD, packet).verdict == REDIRECT
