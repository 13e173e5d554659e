"""The model's packets and flow entries as bytes, and what the kernel has in the model's words."""

from __future__ import annotations

import struct
from dataclasses import replace
from functools import lru_cache
from ipaddress import IPv4Address
from typing import Final

from packetbed import GATEWAY_MAC, MAC, NODE, SERVICE_NETWORKS, pack_tuple

from pydatapath.kernel.layout import FLOW, PROTOCOL_NAMES, PROTOCOLS, TUPLE, FlowFlag, FlowState, ServiceFlag, VipKind
from pydatapath.plan import Live, Run
from pydatapath.reference import PORTS, Address, Backend, Entry, FlowTuple, Packet, Service, State, World

__all__ = [
    "entry_in",
    "expected_refusal",
    "flow_bytes",
    "frame",
    "in_service_network",
    "packed",
    "ports_tried",
    "refusal",
    "told",
    "tuple_bytes",
    "tuple_in",
    "tuple_of",
]

STATES: Final = {State.NEW: FlowState.NEW, State.ESTABLISHED: FlowState.ESTABLISHED}
FLAGS: Final = {"F": 1, "S": 2, "R": 4, "P": 8, "A": 16}
WORD: Final = 0xFFFF_FFFF_FFFF_FFFF


@lru_cache
def in_service_network(address: str) -> bool:
    """Whether the way to it leads over the bridge, to the gateway's MAC."""
    return any(IPv4Address(address) in network for network in SERVICE_NETWORKS)


@lru_cache
def packed(address: str) -> bytes:
    """An address as it stands in a packet."""
    return IPv4Address(address).packed


def _checksum(data: bytes) -> int:
    """RFC 1071, by arithmetic: the ones' complement sum of 16-bit words is the remainder by 65,535."""
    return -int.from_bytes(data, "big") % 0xFFFF


def frame(packet: Packet, from_mac: str, to_mac: str = "") -> bytes:
    """A packet of the model, whole, with right checksums and nothing in it."""
    to_mac = to_mac or (GATEWAY_MAC if in_service_network(packet.destination) else MAC[NODE])
    protocol = PROTOCOLS[packet.protocol]
    ends = packed(packet.source) + packed(packet.destination)
    head = struct.pack("!BBHHHBB", 0x45, 0, packet.length, 1, 0, packet.ttl, protocol)
    rest = _transport(packet, ends + struct.pack("!HH", protocol, packet.length - 20))
    ethernet = bytes.fromhex(to_mac.replace(":", "") + from_mac.replace(":", "")) + b"\x08\x00"
    return ethernet + head + _checksum(head + ends).to_bytes(2, "big") + ends + rest


def _transport(packet: Packet, pseudo: bytes) -> bytes:
    ports, length = struct.pack("!HH", packet.source_port, packet.destination_port), packet.length - 20
    if packet.protocol == "UDP":
        head = ports + struct.pack("!H", length)
        return (head + (_checksum(pseudo + head) or 0xFFFF).to_bytes(2, "big")).ljust(length, b"\0")
    head = ports + struct.pack("!IIBBH", 1000, 2000, 0x50, sum(FLAGS[flag] for flag in packet.flags), 0xFFFF)
    return (head + _checksum(pseudo + head).to_bytes(2, "big")).ljust(length, b"\0")


def ports_tried(packet: Packet) -> list[int]:
    """The source ports with which a new flow may leave: its own, and those of tuple_hash in bpf/packet.h."""
    return [packet.source_port, *(PORTS.start + (_tuple_hash(packet, salt) & 0x7FFF) for salt in range(1, 5))]


def _tuple_hash(packet: Packet, salt: int) -> int:
    source, destination, sport, dport = struct.unpack(
        "<IIHH",
        packed(packet.source)
        + packed(packet.destination)
        + struct.pack("!HH", packet.source_port, packet.destination_port),
    )
    mixed = (source << 32 | destination) * 0x9E3779B97F4A7C15 & WORD
    mixed ^= mixed >> 32
    mixed += sport << 48 | dport << 32 | PROTOCOLS[packet.protocol] << 24 | salt
    mixed &= WORD
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & WORD
    return mixed >> 32


def refusal(raw: bytes) -> tuple[bytes, bytes, bytes]:
    """Who is refused by whom, and what by: TCP's ports and RST, or ICMP's type, code and quotation."""
    if raw[23] == 6:
        return raw[26:30], raw[30:34], raw[34:38] + bytes([raw[47] & 4])
    return raw[26:30], raw[30:34], raw[34:36] + raw[42:70]


def expected_refusal(raw: bytes) -> tuple[bytes, bytes, bytes]:
    """The same, from the packet that is refused (C2)."""
    if raw[23] == 6:
        return raw[30:34], raw[26:30], raw[36:38] + raw[34:36] + b"\4"
    return raw[30:34], raw[26:30], b"\3\3" + raw[14:42]


# Flow entries as they stand in the maps


@lru_cache(maxsize=4096)
def tuple_bytes(one: FlowTuple) -> bytes:
    """struct tuple."""
    return pack_tuple(PROTOCOLS[one.protocol], one.source, one.source_port, one.destination, one.destination_port)


@lru_cache(maxsize=4096)
def tuple_of(raw: bytes) -> FlowTuple:
    """The tuple of a struct tuple."""
    source, destination, sport, dport, protocol = TUPLE.unpack(raw)
    ports = (int.from_bytes(port, "big") for port in (sport, dport))
    return FlowTuple(
        str(IPv4Address(source)), next(ports), str(IPv4Address(destination)), next(ports), PROTOCOL_NAMES[protocol]
    )


def tuple_in(raw: bytes) -> FlowTuple:
    """The tuple of a packet without IP options."""
    return tuple_of(TUPLE.pack(raw[26:30], raw[30:34], raw[34:36], raw[36:38], raw[23]))


def flow_bytes(entry: Entry) -> bytes:
    """struct flow, its stamp left out."""
    number, generation = (entry.backend.number, entry.backend.generation) if entry.backend else (0, 0)
    flags = (
        FlowFlag.REPLY * entry.reply,
        FlowFlag.PLAIN * entry.plain,
        FlowFlag.FIN * entry.fin,
        FlowFlag.RST * entry.rst,
    )
    return FLOW.pack(
        tuple_bytes(entry.to), 0, entry.packets, entry.octets, number, generation, STATES[entry.state], sum(flags)
    )


def entry_in(raw: bytes) -> str:
    """A struct flow in words, without its stamp."""
    to, _, packets, octets, number, generation, state, flags = FLOW.unpack(raw)
    counted = f"{packets} packets, {octets} bytes, backend {number}.{generation}"
    return f"to {tuple_of(to)}, {counted}, {FlowState(state).name}, {FlowFlag(flags)!r}"


# Services


def told(world: World, live: Live) -> World:
    """The world with the services that the maps have."""
    backends = {
        number: Backend(one.address.address, one.address.port, number, one.generation)
        for number, one in live.backends.items()
    }
    draining = {number for number, one in live.backends.items() if one.draining}

    def run(slots: Run) -> tuple[Backend, ...]:
        numbers = live.slots[slots.first_slot] if slots.slot_count else ()
        return tuple(backends[number] for number in numbers)

    services = {}
    for at, called in live.services.items():
        flags = called.flags
        ranges = tuple(one.network for one in live.guards.ranges if one.service == called.number)
        services[Address(at.address, at.port, at.protocol)] = Service(
            called.number,
            run(called.inside),
            run(called.outside),
            drop_inside=ServiceFlag.DROP_INSIDE in flags,
            drop_outside=ServiceFlag.DROP_OUTSIDE in flags,
            affinity=called.affinity,
            sources=ranges if ServiceFlag.RANGES in flags else None,
        )
    drained = {live.backends[number].address for number in draining}
    return replace(
        world,
        services=services,
        cluster_ips=frozenset(at for at, kind in live.guards.vips.items() if kind is VipKind.CLUSTER),
        targets=frozenset(Address(one.address, one.port, one.protocol) for one in drained),
        draining=frozenset(backends[number] for number in draining),
    )
