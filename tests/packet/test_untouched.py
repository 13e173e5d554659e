"""What is not ours, or not whole, goes to the stack as it came: not a byte of it is changed (F21)."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address

import pytest
from frames import (
    DROP,
    ICMP,
    IP,
    PASS,
    REDIRECT,
    TCP,
    UDP,
    Ether,
    Packet,
    Raw,
    answer_to,
    frame,
    leaves,
    met_at,
    tcp,
    udp,
)
from packetbed import Bed, Case, ids
from places import BACKEND, CLIENT, GATEWAY_MAC, MAC, NODE, OUTSIDE, VIP
from rows import tell
from scapy.layers.inet import IPOption_RR
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q

from pydatapath.errors import KernelError
from pydatapath.kernel.layout import Hook

SYN = tcp(CLIENT, 40000, VIP, 80, payload=b"12345")
QUERY = udp(CLIENT, 40000, VIP, 53)
OPTIONS = tcp(CLIENT, 40000, VIP, 80, options=[IPOption_RR()])
OPTIONS[TCP].options = [("MSS", 1460), ("WScale", 7)]
POD = Ether(src=MAC[CLIENT], dst=MAC[NODE])
NOBODY = str(IPv4Address(0))  # who has no address yet
ECHO = POD / IP(src=CLIENT, dst=BACKEND) / ICMP()


def run_if_the_kernel_does(bed: Bed, hook: Hook, packet: bytes) -> tuple[int, bytes]:
    """Verdict and packet. Newer kernels (6.18) refuse a test-run of IPv4 that ends inside its header: not changed."""
    try:
        outcome = bed.run(hook, packet)
    except KernelError:
        assert len(packet) < 14 + 20
        return PASS, packet
    return outcome.verdict, outcome.packet


OTHERS = [
    Case("ARP", POD / ARP(psrc=CLIENT, pdst=BACKEND)),
    Case("IPv6 between others", POD / IPv6(src="2001:db8::1", dst="2001:db8::2") / TCP()),
    Case("a VLAN tag in the packet", POD / Dot1Q(vlan=7) / IP(src=CLIENT, dst=VIP) / TCP(dport=80)),
    Case("ping", ECHO),
    Case("ICMP errors", POD / IP(src=CLIENT, dst=VIP) / ICMP(type=3, code=3) / IP(bytes(SYN[IP]))),
    Case("IGMP", POD / IP(src=CLIENT, dst="224.0.0.22", proto=2, ttl=1) / Raw(bytes(8))),
    Case("UDP-Lite", POD / IP(src=CLIENT, dst=VIP, proto=136) / Raw(bytes(12))),
    Case("IP in IP", POD / IP(src=CLIENT, dst=VIP, proto=4) / IP(bytes(SYN[IP]))),
    Case("protocol 0", POD / IP(src=CLIENT, dst=VIP, proto=0) / Raw(bytes(20))),
    Case("N85 multicast", Ether(dst="01:00:5e:00:00:fb") / IP(src=CLIENT, dst="224.0.0.251") / UDP(dport=5353)),
    Case(
        "N85 broadcast: a DHCP client",
        Ether(dst="ff:ff:ff:ff:ff:ff") / IP(src=NOBODY, dst="255.255.255.255") / UDP(sport=68, dport=67),
    ),
    Case("N85 link-local: the cloud's metadata", POD / IP(src=CLIENT, dst="169.254.169.254") / TCP(dport=80)),
    Case("pod to pod", tcp(CLIENT, 40000, BACKEND, 22)),
    Case("pod to the world", udp(CLIENT, 40000, OUTSIDE, 53, to_mac=MAC[NODE])),
    Case("to the node", tcp(CLIENT, 40000, NODE, 22)),
    Case("a frame of a length, not a type: 802.3", Ether(type=64) / Raw(bytes(64))),
    Case("LLDP, of an ethertype that nobody knows", Ether(type=0x88CC) / Raw(bytes(64))),
]


@pytest.mark.parametrize("hook", list(Hook), ids=ids)
@pytest.mark.parametrize("row", OTHERS, ids=ids)
def test_what_is_not_ours_passes(bed: Bed, row: Case, hook: Hook):
    """TC_ACT_UNSPEC and the same bytes, at every hook; no flow, no counter."""
    packet = met_at(hook, row.packet)
    outcome = bed.run(hook, packet)
    assert (outcome.verdict, outcome.packet) == (PASS, bytes(packet))
    assert bed.entries("flows") == bed.entries("half_open") == bed.counted() == {}


# Not whole


WHOLE = [
    Case("a SYN with data", SYN),
    Case("a datagram", QUERY),
    Case("IP options and TCP options", OPTIONS),
    Case("a direct segment to a backend", tcp(CLIENT, 40000, BACKEND, 8080)),
    Case("to an address that no service owns", udp(CLIENT, 40000, "10.96.9.9", 53)),
]


@pytest.mark.parametrize("known", [False, True], ids=["new flow", "known flow"])
@pytest.mark.parametrize("row", WHOLE, ids=ids)
def test_F21_cut_at_each_byte(bed: Bed, row: Case, known: bool):
    """A packet that is shorter than it says is never rewritten, at any hook; where its header says so it is counted."""
    whole = bytes(row.packet)
    if known:
        bed.run(Hook.FROM_POD, row.packet)
        bed.run(Hook.FROM_POD, answer_to(bed.run(Hook.FROM_POD, row.packet)), device="pod3")
        bed.confirm(row.packet)
    entries = bed.entries("flows") | bed.entries("half_open")
    tell(sent=2 * (len(whole) - 14))
    for hook in (Hook.FROM_POD, Hook.FROM_UPLINK):
        counted = bed.counted().get("pass_malformed", 0)
        for length in range(14, len(whole)):
            assert run_if_the_kernel_does(bed, hook, whole[:length]) == (PASS, whole[:length]), length
        assert bed.counted()["pass_malformed"] - counted >= len(whole) - 14 - 20
    assert bed.entries("flows") | bed.entries("half_open") == entries


def test_F21_what_the_node_sends_cut(bed: Bed):
    """To the gateway's MAC nothing may go out of the bridge: what cannot be translated is dropped by name."""
    whole = bytes(leaves(SYN, src=NODE))
    tell(sent=len(whole) - 34)
    for length in range(14 + 20, len(whole)):
        outcome = bed.run(Hook.TO_BRIDGE, whole[:length])
        assert (outcome.verdict, outcome.packet) == (DROP, whole[:length])
    counted = bed.counted()
    assert counted == {"pass_malformed": len(whole) - 34, "drop_no_service": len(whole) - 34}


def lying(packet: Packet, offset: int, code: str, value: int) -> bytes:
    """The packet with one field overwritten; `offset` from the frame's first byte, `code` of the struct module."""
    raw = bytearray(bytes(packet))
    struct.pack_into(code, raw, offset, value)
    return bytes(raw)


_SYN, _QUERY = len(SYN) - 14, len(QUERY) - 14
LIES = [
    ("version 5", lying(SYN, 14, "!B", 0x55)),
    ("version 6", lying(SYN, 14, "!B", 0x65)),
    *((f"IHL {ihl}: shorter than the least", lying(SYN, 14, "!B", 0x40 | ihl)) for ihl in range(5)),
    ("IHL 15: the header reaches beyond the packet", lying(SYN, 14, "!B", 0x4F)),
    ("IHL 11: TCP would reach beyond the packet", lying(SYN, 14, "!B", 0x4B)),
    ("total length 0 though it is no BIG TCP", lying(SYN, 16, "!H", 0)),
    ("total length 19: not even a header", lying(SYN, 16, "!H", 19)),
    ("total length ends before TCP", lying(SYN, 16, "!H", 20)),
    ("total length ends inside TCP", lying(SYN, 16, "!H", 39)),
    ("total length ends inside UDP", lying(QUERY, 16, "!H", 27)),
    ("total length is one more than there is", lying(SYN, 16, "!H", _SYN + 1)),
    ("total length is the most there can be", lying(QUERY, 16, "!H", 0xFFFF)),
    *((f"data offset {words}: shorter than the least", lying(SYN, 46, "!B", words << 4)) for words in range(5)),
    ("data offset 15: the header reaches beyond the packet", lying(SYN, 46, "!B", 0xF0)),
    ("data offset 7: one word more than there is", lying(SYN, 46, "!B", 0x70)),
    ("UDP length 0", lying(QUERY, 38, "!H", 0)),
    ("UDP length 7: not even a header", lying(QUERY, 38, "!H", 7)),
    ("UDP length is one more than there is", lying(QUERY, 38, "!H", _QUERY - 20 + 1)),
]


@pytest.mark.parametrize("known", [False, True], ids=["new flow", "known flow"])
@pytest.mark.parametrize("packet", [raw for _, raw in LIES], ids=[why for why, _ in LIES])
def test_F21_lengths_that_lie(bed: Bed, packet: bytes, known: bool):
    """Never rewritten, never a flow; counted."""
    if known:
        bed.establish(SYN)
        bed.establish(QUERY)
    flows = bed.entries("flows")
    tell(sent=1)
    outcome = bed.run(Hook.FROM_POD, packet)
    assert (outcome.verdict, outcome.packet) == (PASS, packet)
    assert bed.counted().get("pass_malformed") == 1
    assert bed.entries("flows") == flows
    assert bed.entries("half_open") == {}


@pytest.mark.parametrize(
    ("why", "packet"),
    [
        (
            "data offset 6 over data: it may be options",
            lying(tcp(CLIENT, 4, VIP, 80, payload=bytes(8)), 46, "!B", 0x60),
        ),
        ("UDP length less than there is: the rest is UDP's options", lying(QUERY, 38, "!H", 10)),
        ("total length less than there is: the rest is padding", bytes(QUERY) + bytes(4)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_only_looks_odd_is_served(bed: Bed, why: str, packet: bytes):
    """Lengths that leave something over are no lies."""
    assert bed.run(Hook.FROM_POD, packet).verdict == REDIRECT, why


def test_N78_a_packet_over_64_KiB_has_no_total_length(bed: Bed):
    """BIG TCP (Linux commit b1a78b9b9886, in v6.3): 0 is right where there are segments, else it is a lie."""
    packet = lying(tcp(CLIENT, 40000, VIP, 80, "A", payload=bytes(2800)), 16, "!H", 0)
    assert bed.run(Hook.FROM_POD, packet).verdict == PASS
    outcome = bed.run(Hook.FROM_POD, packet, gso=(2, 1400))
    assert outcome.verdict == REDIRECT
    assert (outcome.ip.dst, outcome.ip.len) == (BACKEND, 0)


# The bridge's side


@pytest.mark.parametrize(
    "row",
    [
        Case("ping", frame(NODE, "10.96.9.9") / ICMP()),
        Case("UDP-Lite", frame(NODE, VIP, proto=136) / Raw(bytes(12))),
        Case("a fragment", frame(NODE, "10.96.9.9", proto=17, frag=3) / Raw(bytes(16))),
        Case("IPv6", Ether(src=MAC[NODE], dst=GATEWAY_MAC) / IPv6() / TCP()),
        Case("TCP to no service", tcp(NODE, 40000, "10.96.9.9", 80)),
    ],
    ids=ids,
)
def test_nothing_goes_out_to_the_gateway_that_is_none(bed: Bed, row: Case):
    """The next hop for services has no interface: what is not translated would be flooded over the bridge."""
    outcome = bed.run(Hook.TO_BRIDGE, row.packet)
    assert (outcome.verdict, outcome.packet) == (DROP, bytes(row.packet))
    assert bed.counted()["drop_no_service"] == 1


def test_the_same_addresses_to_another_MAC_pass(bed: Bed):
    """Only our gateway's MAC is ours: what the node sends elsewhere is not for us to judge."""
    packet = tcp(NODE, 40000, "10.96.9.9", 80, to_mac=MAC[CLIENT])
    outcome = bed.run(Hook.TO_BRIDGE, packet)
    assert (outcome.verdict, outcome.packet) == (PASS, bytes(packet))
    assert bed.counted() == {}
