"""Packets of a packet bed, made and read by scapy; what has come of one."""

from __future__ import annotations

from functools import cache
from ipaddress import ip_address
from typing import NamedTuple

from places import GATEWAY_MAC, MAC, V4, V6
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Padding, Raw

from pydatapath.kernel.layout import LAYOUTS, PROTOCOLS, Family, Hook

__all__ = [
    "DROP",
    "ICMP",
    "IP",
    "PASS",
    "REDIRECT",
    "SCTP",
    "TCP",
    "UDP",
    "Ether",
    "IPv6",
    "Outcome",
    "Packet",
    "Padding",
    "Raw",
    "addresses",
    "answer_to",
    "frame",
    "key_of",
    "leaves",
    "met_at",
    "pack_tuple",
    "packed",
    "reverse",
    "sctp",
    "shown",
    "tcp",
    "transport_of",
    "udp",
]

# Verdicts (include/uapi/linux/pkt_cls.h); PASS is TC_ACT_UNSPEC: the other filters of the hook have their turn, too
PASS, DROP, REDIRECT = 0xFFFFFFFF, 2, 7


class Outcome(NamedTuple):
    """What became of a packet. `walked`: the hook's own program did not do, `walk` was called."""

    verdict: int
    packet: bytes
    walked: bool

    @property
    def ip(self) -> Packet:
        """Layer 3 of the packet as it leaves."""
        return Ether(self.packet).payload


def frame(source: str, destination: str, *, to_mac: str = "", **ip: object) -> Packet:
    """Ethernet and IP from one address to another; services are at the gateway's MAC."""
    from_mac = MAC.get(source, "02:00:00:00:02:02")
    layer = IPv6 if ":" in source else IP
    return Ether(src=from_mac, dst=to_mac or MAC.get(destination, GATEWAY_MAC)) / layer(
        src=source, dst=destination, **ip
    )


def tcp(
    source: str,
    sport: int,
    destination: str,
    dport: int,
    flags: str = "S",
    *,
    payload: bytes = b"",
    ack: int | None = None,
    **ip: object,
) -> Packet:
    """A TCP segment, whose ACK is that of a SYN-ACK from here; what is not named goes to IP."""
    numbers = {"seq": 1000, "ack": (1001 if "A" in flags else 0) if ack is None else ack}
    return frame(source, destination, **ip) / TCP(sport=sport, dport=dport, flags=flags, **numbers) / Raw(payload)


def udp(source: str, sport: int, destination: str, dport: int, *, payload: bytes = b"dns?", **ip: object) -> Packet:
    """A UDP datagram; what is not named goes to IP."""
    return frame(source, destination, **ip) / UDP(sport=sport, dport=dport) / Raw(payload)


def sctp(source: str, sport: int, destination: str, dport: int, *, payload: bytes = b"chunks", **ip: object) -> Packet:
    """An SCTP packet with its CRC32c; what is not named goes to IP."""
    return frame(source, destination, **ip) / SCTP(sport=sport, dport=dport, tag=7) / Raw(payload)


@cache
def packed(address: str) -> bytes:
    """An address as it stands in a packet."""
    return ip_address(address).packed


def _port(value: int) -> bytes:
    return value.to_bytes(2, "big")


def pack_tuple(protocol: int, source: str, sport: int, destination: str, dport: int) -> bytes:
    """struct tuple, of the addresses' family."""
    record = LAYOUTS[Family.of(source)].tuple
    return record.struct.pack(packed(source), packed(destination), _port(sport), _port(dport), protocol)


def key_of(packet: Packet | bytes) -> bytes:
    """A packet's key in the flow tables."""
    ip = (Ether(packet) if isinstance(packet, bytes) else packet).payload
    transport = transport_of(ip)
    protocol = PROTOCOLS[type(transport).__name__]
    return pack_tuple(protocol, ip.src, transport.sport, ip.dst, transport.dport)


def transport_of(packet: Packet) -> Packet:
    """Layer 4 of a packet that has ports."""
    return next(packet[layer] for layer in (TCP, UDP, SCTP) if packet.haslayer(layer))


def met_at(hook: Hook, packet: Packet) -> Packet:
    """A pod's packet as it may be met at a hook: by an uplink come those of pods elsewhere (N87)."""
    moved = packet.copy()
    where = V6 if moved.haslayer(IPv6) else V4
    if hook is Hook.FROM_UPLINK and moved.haslayer(IPv6 if where is V6 else IP) and moved.payload.src == where.CLIENT:
        moved.payload.src = where.REMOTE
        for layer in (moved.payload, moved.payload.payload):
            for name in ("chksum", "cksum"):
                if name in layer.fields:
                    layer.delfieldval(name)
    return moved


def answer_to(outcome: Outcome, flags: str = "SA", payload: bytes = b"answer") -> Packet:
    """What the receiver of a packet sends back to where it seems to come from."""
    ip = outcome.ip
    transport = transport_of(ip)
    ends = ip.dst, transport.dport, ip.src, transport.sport
    if isinstance(transport, TCP):
        return tcp(*ends, flags, payload=payload if flags == "PA" else b"")
    return (udp if isinstance(transport, UDP) else sctp)(*ends, payload=payload)


def addresses(outcome: Outcome | Packet) -> tuple[str, int, str, int]:
    """(source, source port, destination, destination port) of a packet."""
    ip = outcome.ip if isinstance(outcome, Outcome) else outcome.payload
    transport = transport_of(ip)
    return ip.src, transport.sport, ip.dst, transport.dport


def shown(packet: bytes) -> str:
    """A packet as scapy writes it: an assertion that fails says which field differs."""
    return repr(Ether(packet))


def reverse(tuple_: tuple[str, int, str, int]) -> tuple[str, int, str, int]:
    """The addresses of the answer."""
    source, sport, destination, dport = tuple_
    return destination, dport, source, sport


def leaves(packet: Packet, *, mac: str = "", **fields: object) -> Packet:
    """The packet as it must leave: other addresses (src, dst), ports (sport, dport), ttl, hlim or MAC; sums made by
    scapy.

    A UDP checksum of 0, no checksum, stays.
    """
    want = packet.copy()
    transport = transport_of(want)
    for name, value in fields.items():
        setattr(transport if name in {"sport", "dport"} else want.payload, name, value)
    if mac:
        want[Ether].dst = mac
    if want.haslayer(IP):
        del want[IP].chksum
    if not (want.haslayer(UDP) and transport.chksum == 0):
        del transport.chksum
    return want
