"""N87: packets that come in by an uplink under a source that only this node's own can have."""

from __future__ import annotations

import pytest
from frames import DROP, ICMP, PASS, REDIRECT, UDP, Packet, frame, tcp, udp
from packetbed import Bed
from places import MAC, V4, V6, Places
from scapy.layers.inet6 import ICMPv6EchoRequest

from pydatapath.kernel.layout import EndpointKind, Hook

pytestmark = pytest.mark.same_everywhere

FAMILIES = pytest.mark.parametrize("where", [V4, V6], ids=["IPv4", "IPv6"])


def ping(source: str, destination: str) -> Packet:
    """An echo request."""
    return frame(source, destination) / (ICMPv6EchoRequest() if ":" in source else ICMP())


@FAMILIES
def test_N87_a_pods_source_does_not_come_in_by_an_uplink(bed: Bed, where: Places):
    """Not even where it would pass for the answer of a live flow; to whomever it is sent, and whatever it is."""
    bed.establish(tcp(where.CLIENT, 40000, where.VIP, 80))
    for packet in (
        tcp(where.BACKEND, 8080, where.CLIENT, 40000, "A"),
        tcp(where.BACKEND, 1, where.VIP, 80),
        udp(where.SECOND, 1, where.CLIENT, 53),
        ping(where.SECOND, where.VIP),
        tcp(where.VIP, 80, where.CLIENT, 40000, "A"),
    ):
        assert bed.run(Hook.FROM_UPLINK, packet).verdict == DROP
    assert bed.counted()["drop_spoofed"] == 5
    assert bed.run(Hook.FROM_POD, tcp(where.CLIENT, 40000, where.VIP, 80, "A")).verdict == REDIRECT


@FAMILIES
def test_N87_a_packet_to_itself_is_none(bed: Bed, where: Places):
    """LAND: equal source and destination."""
    bed.serve({where.called("80/TCP", where.UPLINK): [f"[{where.BACKEND}]:8080"]})
    assert bed.run(Hook.FROM_UPLINK, tcp(where.UPLINK, 80, where.UPLINK, 80)).verdict == DROP


@FAMILIES
def test_N87_others_come_in(bed: Bed, where: Places):
    """Other nodes' pods, and anybody else."""
    for source in (where.REMOTE, where.FAR, where.OUTSIDE):
        assert bed.run(Hook.FROM_UPLINK, tcp(source, 40000, where.VIP, 80)).verdict == REDIRECT
        assert bed.run(Hook.FROM_UPLINK, frame(source, where.CLIENT) / UDP(sport=1, dport=2)).verdict == PASS
    assert "drop_spoofed" not in bed.counted()


@FAMILIES
def test_N87_nor_does_the_nodes_own_address(bed: Bed, where: Places):
    """Whichever of its interfaces has it; a flow that is known is not looked at again."""
    bed.put_endpoint(where.UPLINK, bed.devices["br0"], MAC[where.NODE], EndpointKind.NODE)
    for packet in (tcp(where.UPLINK, 1, where.VIP, 80), udp(where.UPLINK, 1, where.CLIENT, 53)):
        assert bed.run(Hook.FROM_UPLINK, packet).verdict == DROP
    assert bed.counted()["drop_spoofed"] == 2
