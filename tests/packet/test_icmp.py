"""ICMP errors about translated packets: who gets them, whom they name, and what they quote."""

from __future__ import annotations

import pytest
from frames import ICMP, IP, PASS, REDIRECT, UDP, Ether, Outcome, Packet, Raw, answer_to, frame, leaves, tcp, udp
from packetbed import Bed
from places import BACKEND, CLIENT, MAC, REMOTE, VIP
from rows import tell

from pydatapath.kernel.layout import FlowState, Hook

ROUTER = "192.168.9.2"
SYN = tcp(CLIENT, 40000, VIP, 80)
QUERY = udp(CLIENT, 40000, VIP, 53)
BOTH = pytest.mark.parametrize("packet", [SYN, QUERY], ids=["TCP", "UDP"])
# (type, code, the word that a packet too big carries: RFC 1191)
ERRORS = {
    "frag needed": (3, 4, 1400),
    "port unreachable": (3, 3, 0),
    "host unreachable": (3, 1, 0),
    "time exceeded": (11, 0, 0),
    "parameter problem": (12, 0, 0),
}


def quote(packet: Packet | bytes | Outcome, size: int = 8) -> bytes:
    """What an error quotes of a frame: the IP header and this many bytes of what follows (RFC 792: 8)."""
    raw = packet.packet if isinstance(packet, Outcome) else bytes(packet)
    return raw[14 : 14 + 4 * (raw[14] & 15) + size]


def error(source: str, destination: str, about: bytes, kind: str = "port unreachable", **ip: object) -> Packet:
    """An ICMP error about a packet, complete with its checksum."""
    number, code, mtu = ERRORS[kind]
    return frame(source, destination, **ip) / ICMP(type=number, code=code, nexthopmtu=mtu) / Raw(about)


def sums_are_right(packet: bytes) -> bool:
    """Whether both checksums of an ICMP packet are what scapy makes them."""
    again = Ether(packet)
    del again[IP].chksum
    del again[ICMP].chksum
    return bytes(again) == packet


def flow_of(bed: Bed, packet: Packet, *, established: bool) -> Outcome:
    """The first packet as it left, of a flow that was answered or not."""
    return bed.establish(packet) if established else bed.run(Hook.FROM_POD, packet)


def check(outcome: Outcome, source: str, destination: str, about: bytes, kind: str, **ip: object) -> None:
    """The error leaves for `destination`, in the name of `source`, quotes `about`, and its sums are right."""
    want = bytes(error(source, destination, about, kind, **ip))
    assert Ether(outcome.packet[:14] + want[14:]).show(dump=True) == Ether(outcome.packet).show(dump=True)
    assert outcome.packet[14:] == want[14:]
    assert outcome.verdict == REDIRECT
    if destination in MAC:
        assert outcome.packet[:6].hex(":") == MAC[destination]


@BOTH
@pytest.mark.parametrize("established", [True, False], ids=["established", "half-open"])
@pytest.mark.parametrize("kind", ERRORS)
def test_N55_an_error_of_the_backend_is_the_services(bed: Bed, packet: Packet, established: bool, kind: str):
    """It comes from the address that the client has called, and quotes what the client has sent."""
    there = flow_of(bed, packet, established=established)
    outcome = bed.run(Hook.FROM_POD, error(BACKEND, CLIENT, quote(there), kind), device="pod3")
    check(outcome, VIP, CLIENT, quote(packet), kind)


@pytest.mark.parametrize("packet", [tcp(CLIENT, 40000, VIP, 81), udp(CLIENT, 40000, VIP, 54)], ids=["TCP", "UDP"])
@pytest.mark.parametrize("kind", ERRORS)
def test_N49_N50_an_error_of_a_router_stays_the_routers(bed: Bed, packet: Packet, kind: str):
    """On the way to a backend elsewhere: path MTU discovery and traceroute work through a virtual IP."""
    there = bed.run(Hook.FROM_POD, packet)
    assert there.ip.dst == REMOTE
    outcome = bed.run(Hook.FROM_UPLINK, error(ROUTER, CLIENT, quote(there), kind, ttl=64))
    sent = leaves(packet, ttl=there.ip.ttl)
    if packet.haslayer(UDP):
        sent[UDP].chksum = packet.__class__(bytes(packet))[UDP].chksum
    check(outcome, ROUTER, CLIENT, quote(sent), kind, ttl=63)


@BOTH
def test_N56_an_error_of_the_client_finds_the_backend(bed: Bed, packet: Packet):
    """About an answer that came from the service: it quotes what the backend has sent."""
    answer = answer_to(bed.establish(packet))
    back = bed.run(Hook.FROM_POD, answer, device="pod3")
    outcome = bed.run(Hook.FROM_POD, error(CLIENT, VIP, quote(back)))
    check(outcome, CLIENT, BACKEND, quote(answer), "port unreachable")


@BOTH
@pytest.mark.parametrize("size", [8, 12, 20, 28])
def test_N51_N53_sums_are_right_however_much_is_quoted(bed: Bed, packet: Packet, size: int):
    """Eight bytes of layer 4 are enough; more of them are left as they are, but for UDP's checksum."""
    there = bed.run(Hook.FROM_POD, packet)
    outcome = bed.run(Hook.FROM_POD, error(BACKEND, CLIENT, quote(there, size)), device="pod3")
    assert (outcome.ip.src, outcome.ip.dst) == (VIP, CLIENT)
    assert sums_are_right(outcome.packet)


def test_N52_options_of_the_quoted_packet_are_stepped_over(bed: Bed):
    """The ports lie behind them (RFC 5508 REQ-3)."""
    packet = udp(CLIENT, 40000, VIP, 53, options=[b"\x94\x04\x00\x00", b"\x01\x01\x01\x01"])
    there = bed.run(Hook.FROM_POD, packet)
    outcome = bed.run(Hook.FROM_POD, error(BACKEND, CLIENT, quote(there)), device="pod3")
    check(outcome, VIP, CLIENT, quote(packet), "port unreachable")


def test_N76_a_quoted_datagram_without_a_checksum_stays_without(bed: Bed):
    """RFC 768: 0 means none."""
    packet = udp(CLIENT, 40000, VIP, 53)
    packet[UDP].chksum = 0
    there = bed.run(Hook.FROM_POD, packet)
    outcome = bed.run(Hook.FROM_POD, error(BACKEND, CLIENT, quote(there)), device="pod3")
    check(outcome, VIP, CLIENT, quote(packet), "port unreachable")


@BOTH
@pytest.mark.parametrize("kind", ERRORS)
def test_N41_N58_an_error_changes_no_flow(bed: Bed, packet: Packet, kind: str):
    """Forged or not, it neither ends a flow nor keeps it alive."""
    there = bed.establish(packet)
    bed.age(10)
    before = bed.entries()
    for _ in range(3):
        bed.run(Hook.FROM_POD, error(BACKEND, CLIENT, quote(there), kind), device="pod3")
    assert bed.entries() == before
    assert {entry.state for entry in before.values()} == {FlowState.ESTABLISHED}


def untouched(bed: Bed, packet: Packet | bytes, device: str = "pod3") -> None:
    """The packet goes to the stack as it came."""
    outcome = bed.run(Hook.FROM_POD, packet, device=device)
    assert (outcome.verdict, outcome.packet) == (PASS, bytes(packet))


def test_an_error_about_nothing_of_ours_is_left_alone(bed: Bed):
    """Unknown flows, direct connections, other protocols, a later fragment, and what is no error (N60: a redirect)."""
    direct = tcp(CLIENT, 40000, BACKEND, 8080)
    bed.run(Hook.FROM_POD, direct)
    there = bed.run(Hook.FROM_POD, QUERY)
    late = bytearray(quote(there))
    late[6:8] = b"\x00\x10"
    for about in (quote(udp(CLIENT, 1, BACKEND, 5353)), quote(direct), b"\x45" + bytes(19) + bytes(8), bytes(late)):
        untouched(bed, error(BACKEND, CLIENT, about))
    untouched(bed, frame(BACKEND, CLIENT) / ICMP(type=5, code=1) / Raw(quote(there)))
    untouched(bed, frame(BACKEND, CLIENT) / ICMP(type=8) / Raw(quote(there)))


def test_F21_an_error_that_is_cut_off_is_left_alone(bed: Bed):
    """At each byte before the eighth of the quoted packet's layer 4."""
    there = bed.run(Hook.FROM_POD, QUERY)
    whole = bytes(error(BACKEND, CLIENT, quote(there)))
    tell(sent=len(whole) - 34)
    for size in range(14 + 20, len(whole)):
        untouched(bed, whole[:size])
    assert bed.run(Hook.FROM_POD, whole, device="pod3").verdict == REDIRECT
