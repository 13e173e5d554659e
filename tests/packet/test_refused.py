"""Refusing in the kernel: what a caller is told where nobody answers."""

from __future__ import annotations

import pytest
from packetbed import (
    CLIENT,
    DROP,
    GATEWAY_MAC,
    ICMP,
    IP,
    MAC,
    NODE,
    REDIRECT,
    TCP,
    VIP,
    Bed,
    Ether,
    Hook,
    Outcome,
    Packet,
    tcp,
    udp,
)

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
@pytest.mark.parametrize("flags", ["A", "PA", "FA", "SA"])
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
