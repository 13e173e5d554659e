"""The model's packets and flow entries as bytes, and what the kernel has in the model's words."""

from __future__ import annotations

import struct
from dataclasses import replace
from functools import lru_cache
from ipaddress import ip_address
from typing import Final, Literal

from frames import pack_tuple, packed
from places import GATEWAY_MAC, MAC, NODE, SERVICE_NETWORKS, V6_SERVICE_NETWORKS
from scapy.layers.sctp import crc32c

from pydatapath.kernel.layout import (
    LAYOUTS,
    PROTOCOL_NAMES,
    PROTOCOLS,
    Family,
    FamilyLayout,
    FlowFlag,
    FlowState,
    MappingSide,
    ServiceFlag,
    VipKind,
)
from pydatapath.plan import Live, Run
from pydatapath.reference import (
    NEXT_HOPS,
    PORTS,
    WITH_PORTS,
    Address,
    Backend,
    Entry,
    Error,
    FlowTuple,
    Fragment,
    Fragments,
    Mappings,
    Packet,
    Protocol,
    Service,
    State,
    World,
)
from pydatapath.reference.packet import Version, version_of

__all__ = [
    "ELSEWHERE_MAC",
    "NO_MAC",
    "Wrong",
    "budget_key",
    "entry_in",
    "flagged",
    "flow_bytes",
    "fragment_bytes",
    "fragment_key_in",
    "frame",
    "is_by_bridge",
    "layout_of",
    "mapping_bytes",
    "mapping_key",
    "mapping_key_in",
    "ports_tried",
    "refusal",
    "told",
    "tuple_bytes",
    "tuple_in",
    "tuple_of",
]

ICMP: Final = {4: 1, 6: 58}
ECHO: Final = {4: (8, 0), 6: (128, 129)}  # types of the request and the reply (RFC 792, RFC 4443 4)
# Type, code and what stands behind the checksum (RFC 792, RFC 1191, RFC 4443 3; redirects: RFC 792, RFC 4861 4.5)
ERRORS: Final = {
    "port unreachable": {4: (3, 3, 0), 6: (1, 4, 0)},
    "host unreachable": {4: (3, 1, 0), 6: (1, 3, 0)},
    "too big": {4: (3, 4, 1400), 6: (2, 0, 1400)},
    "time exceeded": {4: (11, 0, 0), 6: (3, 0, 0)},
    "parameter problem": {4: (12, 0, 20 << 24), 6: (4, 1, 6)},
    "redirect": {4: (5, 1, 0x0A010003), 6: (137, 0, 0)},
}
# Which sum of an error is not right: its own, that of the quoted IPv4 header, or of the quoted datagram or echo; or
# what the quoted datagram has none of (RFC 768)
Wrong = Literal["", "error", "header", "datagram", "no datagram"]
OFF: Final = 0x0102  # by so much
UNREAD: Final = 0xBEEF  # of a quoted segment, whose checksum nobody reads (RFC 5508 REQ-3)
FRAGMENT_HEADER: Final = 44  # RFC 8200 4.5
MORE: Final = {4: 0x2000, 6: 1}  # fragments
HEADERS: Final[dict[Protocol, int]] = {"TCP": 20, "UDP": 8, "SCTP": 12, "ICMP": 8}  # bytes
STATES: Final = {state: FlowState[state.name] for state in State}
FLAGS: Final = {"F": 1, "S": 2, "R": 4, "P": 8, "A": 16}
WINDOW: Final = 0xFFFF  # of every segment
IDENTIFIED: Final = 1  # what is no fragment
STAMP_BYTES: Final = 8  # of struct mapping and struct fragment, at their beginning
WORD: Final = 0xFFFF_FFFF_FFFF_FFFF
NO_MAC: Final = "00:00:00:00:00:00"  # of the loopback interface
ELSEWHERE_MAC: Final = "02:00:00:00:02:02"  # of a router
ANSWER_TTL: Final = 64


@lru_cache
def is_by_bridge(address: str) -> bool:
    """Whether the way to it leads over the bridge, to the gateway's MAC."""
    networks = (*SERVICE_NETWORKS, *V6_SERVICE_NETWORKS)
    return address in NEXT_HOPS.values() or any(ip_address(address) in network for network in networks)


def layout_of(raw: bytes) -> FamilyLayout:
    """The structs of the family that a struct tuple or flow is of."""
    return next(one for one in LAYOUTS.values() if len(raw) in {one.tuple.struct.size, one.flow.struct.size})


def _checksum(data: bytes) -> bytes:
    """RFC 1071, by arithmetic: the ones' complement sum of 16-bit words is the remainder by 65,535."""
    return (-int.from_bytes(data + bytes(len(data) % 2), "big") % 0xFFFF).to_bytes(2, "big")


def _macs(from_mac: str, to_mac: str) -> bytes:
    return bytes.fromhex(to_mac.replace(":", "") + from_mac.replace(":", ""))


def frame(packet: Packet, from_mac: str, to_mac: str = "", wrong: Wrong = "") -> bytes:
    """A packet of the model, with nothing in it; its checksums are right but for the one that is named."""
    to_mac = to_mac or (GATEWAY_MAC if is_by_bridge(packet.destination) else MAC[NODE])
    if packet.error:
        content = _error(packet, packet.error, wrong)
    else:
        data = bytes(packet.length - _headers(packet))
        content = data if packet.is_later else _transport(packet, data)
    return _macs(from_mac, to_mac) + _datagram(number_of(packet.protocol, packet.source), packet, content, IDENTIFIED)


def _headers(packet: Packet) -> int:
    """Bytes of its headers of layer 3 and, where they are in it, of layer 4."""
    return _ip_headers(packet) + (0 if packet.is_later else HEADERS[packet.protocol])


def _ip_headers(packet: Packet) -> int:
    if Family.of(packet.source) is Family.IPV6:
        return 48 if packet.fragment else 40
    return 20


def _datagram(
    protocol: int, packet: Packet, content: bytes, identification: int = 0, *, tos: int = 0, flags: int = 0
) -> bytes:
    """Ethernet's type, the IP header and what is in it. Of a fragment it has the identification and the offset."""
    ends, part = packed(packet.source) + packed(packet.destination), packet.fragment
    if Family.of(packet.source) is Family.IPV6:
        if part:
            content = struct.pack("!BxHI", protocol, _part(part, 6), part.identification) + content
            protocol = FRAGMENT_HEADER
        return b"\x86\xdd" + struct.pack("!IHBB", 6 << 28, len(content), protocol, packet.ttl) + ends + content
    if part:
        identification, flags = part.identification, _part(part, 4)
    head = struct.pack("!BBHHHBB", 0x45, tos, 20 + len(content), identification, flags, packet.ttl, protocol)
    return b"\x08\x00" + head + _checksum(head + ends) + ends + content


def _part(part: Fragment, version: Version) -> int:
    """Its offset: IPv4 counts it by eight bytes, IPv6 keeps three bits free. More follow the first."""
    return (part.offset // 8 if version == 4 else part.offset) | MORE[version] * (part.offset == 0)


def _pseudo(packet: Packet, protocol: int, length: int) -> bytes:
    """What a checksum covers beside layer 4 itself (RFC 9293 3.1, RFC 8200 8.1), in whatever order."""
    return packed(packet.source) + packed(packet.destination) + struct.pack("!II", protocol, length)


def _transport(packet: Packet, data: bytes) -> bytes:
    ports = struct.pack("!HH", packet.source_port, packet.destination_port)
    match packet.protocol:
        case "TCP":
            flags = sum(FLAGS[flag] for flag in packet.flags)
            return _segment(packet, packet.sequence, packet.acknowledged, flags, WINDOW, data)
        case "UDP":
            head = ports + struct.pack("!H", 8 + len(data))
            check = _checksum(_pseudo(packet, PROTOCOLS["UDP"], 8 + len(data)) + head + data)
            return head + (check if any(check) else b"\xff\xff") + data
        case "SCTP":
            return _sctp(ports, len(data), opens=packet.opens)
        case "ICMP":
            return _echo(packet, data)


def _segment(packet: Packet, seq: int, ack: int, flags: int, window: int, data: bytes) -> bytes:
    ports = struct.pack("!HH", packet.source_port, packet.destination_port)
    head = ports + struct.pack("!IIBBH", seq, ack, 0x50, flags, window)
    return head + _checksum(_pseudo(packet, PROTOCOLS["TCP"], 20 + len(data)) + head + data) + bytes(2) + data


def _echo(packet: Packet, data: bytes) -> bytes:
    """An echo request, or its reply; the checksum of ICMPv6 covers the addresses, too (RFC 4443 2.3)."""
    version = version_of(packet.source)
    kind = ECHO[version][not packet.asks]
    rest = struct.pack("!HH", packet.source_port or packet.destination_port, 1) + data
    pseudo = _pseudo(packet, ICMP[version], 4 + len(rest)) if version == 6 else b""
    return bytes([kind, 0]) + _checksum(pseudo + bytes([kind, 0]) + rest) + rest


def _error(packet: Packet, error: Error, wrong: Wrong) -> bytes:
    """An ICMP error with what it quotes; the checksum of ICMPv6 covers the addresses, too."""
    version = version_of(packet.source)
    kind, code, rest = ERRORS[error.kind][version]
    content = rest.to_bytes(4, "big") + _quote(error.about, error.quoted, wrong)
    pseudo = _pseudo(packet, ICMP[version], 4 + len(content)) if version == 6 else b""
    check = _checksum(pseudo + bytes([kind, code]) + content)
    return bytes([kind, code]) + (_off(check) if wrong == "error" else check) + content


def _quote(about: Packet, size: int, wrong: Wrong) -> bytes:
    """The IP headers of a packet and so many bytes of what follows; what is not read is what it was before."""
    data = bytes(about.length - _headers(about))
    content = data if about.is_later else _transport(about, data)
    place = {"TCP": 16, "UDP": 6, "ICMP": 2}.get("" if about.is_later else about.protocol, 0)
    if about.protocol == "TCP" and place:
        content = _with_sum(content, place, UNREAD.to_bytes(2, "big"))
    elif place and wrong == "datagram":
        content = _with_sum(content, place, _off(content[place : place + 2], never_none=about.protocol == "UDP"))
    elif about.protocol == "UDP" and place and wrong == "no datagram":
        content = _with_sum(content, place, bytes(2))
    elif about.protocol == "SCTP" and not about.is_later:
        content = content[:8] + bytes(4) + content[12:]
    raw = _datagram(number_of(about.protocol, about.source), about, content, IDENTIFIED)[2:]
    if wrong == "header" and version_of(about.source) == 4:
        raw = _with_sum(raw, 10, _off(raw[10:12]))
    return raw[: _ip_headers(about) + size]


def _with_sum(raw: bytes, place: int, check: bytes) -> bytes:
    return raw[:place] + check + raw[place + 2 :]


def _off(check: bytes, *, never_none: bool = False) -> bytes:
    """A sum that is not right, always by the same; `never_none`: 0 is written as the other 0 (RFC 768)."""
    off = (int.from_bytes(check, "big") + OFF) % 0xFFFF
    return (0xFFFF if never_none and off == 0 else off).to_bytes(2, "big")


@lru_cache(maxsize=4096)
def _sctp(ports: bytes, length: int, *, opens: bool) -> bytes:
    """A header and an INIT chunk under the tag 0, or DATA, of zeros: RFC 9260 3.1; its CRC32c covers no address."""
    head, data = ports + struct.pack("!I", 0 if opens else 7), (bytes([opens]) + bytes(length))[:length]
    return head + struct.pack("!I", crc32c(head + bytes(4) + data)) + data


def flagged(packet: Packet, flags: str) -> Packet:
    """The packet with these flags, as far as its protocol has them.

    "!": its own number is another one than all others have; "?": so is the number that it acknowledges.
    """
    numbers = {"sequence": 5000 if "!" in flags else 1000, "acknowledged": 5001 if "?" in flags else 1001}
    packet, flags = replace(packet, **numbers), flags.rstrip("!?")
    had = {"TCP": flags, "SCTP": "S" if flags == "S" else "", "ICMP": packet.flags}
    return replace(packet, flags=had.get(packet.protocol, ""))


def ports_tried(packet: Packet, tries: int = 9) -> list[int]:
    """The first source ports with which a new flow may leave: its own, and those of tuple_hash in bpf/packet.h."""
    return [packet.source_port, *(PORTS.start + (_tuple_hash(packet, salt) & 0x7FFF) for salt in range(1, tries))]


def _tuple_hash(packet: Packet, salt: int) -> int:
    sport, dport = struct.unpack("<HH", struct.pack("!HH", packet.source_port, packet.destination_port))
    mixed = 0
    for source, destination in zip(_words(packet.source), _words(packet.destination), strict=True):
        mixed ^= source << 32 | destination
        mixed = mixed * 0x9E3779B97F4A7C15 & WORD
        mixed ^= mixed >> 32
    mixed += sport << 48 | dport << 32 | number_of(packet.protocol, packet.source) << 24 | salt
    mixed &= WORD
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB & WORD
    return mixed >> 32


def _words(address: str) -> tuple[int, ...]:
    """An address as a program loads it."""
    raw = packed(address)
    return struct.unpack(f"<{len(raw) // 4}I", raw)


def refusal(packet: Packet, raw: bytes, *, prohibited: bool = False) -> bytes:
    """The frame that tells the sender of a packet, of this frame, that it is refused (C2), or found no port (N23)."""
    back = replace(packet.readdressed(packet.tuple.reverse), ttl=ANSWER_TTL, fragment=None)
    macs, size = raw[6:12] + raw[:6], _headers(packet)
    quoted = raw[14 : 14 + _ip_headers(packet) + 8]
    if packet.protocol == "TCP" and not prohibited:
        data = bytes(packet.length - size)
        if "A" in packet.flags:
            segment = _segment(back, packet.acknowledged, 0, FLAGS["R"], 0, data)
        else:
            held = len(data) + ("S" in packet.flags) + ("F" in packet.flags)
            segment = _segment(back, 0, packet.sequence + held, FLAGS["R"] | FLAGS["A"], 0, data)
        return macs + _datagram(PROTOCOLS["TCP"], back, segment, IDENTIFIED)
    if Family.of(packet.source) is Family.IPV6:
        why = b"\1\1" if prohibited else b"\1\4"
        check = _checksum(_pseudo(back, 58, 8 + len(quoted)) + why + quoted)
        return macs + _datagram(58, back, why + check + bytes(4) + quoted)
    why = b"\3\15" if prohibited else b"\3\3"
    content = why + _checksum(why + quoted) + bytes(4) + quoted
    return macs + _datagram(1, back, content, tos=0xC0, flags=0x4000)


# Flow entries as they stand in the maps


@lru_cache(maxsize=4096)
def tuple_bytes(one: FlowTuple) -> bytes:
    """struct tuple."""
    ends = one.source, one.source_port, one.destination, one.destination_port
    return pack_tuple(number_of(one.protocol, one.source), *ends)


@lru_cache(maxsize=4096)
def tuple_of(raw: bytes) -> FlowTuple:
    """The tuple of a struct tuple."""
    source, destination, sport, dport, number = layout_of(raw).tuple.struct.unpack(raw)
    ends = str(ip_address(source)), int.from_bytes(sport, "big"), str(ip_address(destination)), int.from_bytes(dport)
    return FlowTuple(*ends, protocol_of(number))


def number_of(protocol: Protocol, address: str) -> int:
    """The number of a protocol in the headers of the address's family."""
    return ICMP[version_of(address)] if protocol == "ICMP" else PROTOCOLS[protocol]


def protocol_of(number: int) -> Protocol:
    """The name of a protocol."""
    return "ICMP" if number in ICMP.values() else next(one for one in WITH_PORTS if one == PROTOCOL_NAMES[number])


def tuple_in(raw: bytes) -> FlowTuple:
    """The tuple of a packet without IP options, and of extension headers the first fragment's at most."""
    if raw[12:14] == b"\x86\xdd":
        ends, protocol, transport = raw[22:54], raw[20:21], raw[54:]
        if protocol[0] == FRAGMENT_HEADER:
            protocol, transport = raw[54:55], raw[62:]
    else:
        ends, protocol, transport = raw[26:34], raw[23:24], raw[34:]
    ports = transport[:4]
    if protocol[0] in ICMP.values():
        asks = transport[0] in {request for request, _ in ECHO.values()}
        ports = transport[4:6] + bytes(2) if asks else bytes(2) + transport[4:6]
    return tuple_of(ends + ports + protocol + bytes(3))


def flow_bytes(entry: Entry) -> bytes:
    """struct flow, its stamp left out."""
    number, generation = (entry.backend.number, entry.backend.generation) if entry.backend else (0, 0)
    flags = (
        FlowFlag.REPLY * entry.reply,
        FlowFlag.PLAIN * entry.plain,
        FlowFlag.FIN * entry.fin,
        FlowFlag.RST * entry.rst,
        FlowFlag.PAIRED * entry.is_paired,
        FlowFlag.MASQUERADED * entry.masqueraded,
        FlowFlag.OPENED * entry.opened,
    )
    to = tuple_bytes(entry.to)
    counted = entry.packets, entry.octets
    numbers = (number.to_bytes(4, "big") for number in (entry.awaited, entry.granted))
    return layout_of(to).flow.struct.pack(
        to, 0, *counted, number, generation, STATES[entry.state], sum(flags), *numbers, 0
    )


def entry_in(raw: bytes) -> str:
    """A struct flow in words, without its stamp."""
    to, _, packets, octets, number, generation, state, flags, *numbers, _ = layout_of(raw).flow.struct.unpack(raw)
    counted = (
        f"{packets} packets, {octets} bytes, backend {number}.{generation}, {[int.from_bytes(one) for one in numbers]}"
    )
    return f"to {tuple_of(to)}, {counted}, {FlowState(state).name}, {FlowFlag(flags)!r}"


# Mappings, by their keys in the map


def mapping_bytes(mappings: Mappings, family: Family) -> dict[bytes, tuple[bytes, float]]:
    """Of a family: the end that each leads to as it stands in struct mapping, and its time."""
    insides = ((one.end, MappingSide.INSIDE, mapping) for one, mapping in mappings.outside.items())
    outsides = ((end, MappingSide.OUTSIDE, mapping) for end, mapping in mappings.inside.items())
    return {
        mapping_key(end, side): (_mapping_end(mapping.end), mapping.last_seen)
        for end, side, mapping in (*insides, *outsides)
        if Family.of(end.address) is family
    }


@lru_cache(maxsize=4096)
def mapping_key(end: Address, side: MappingSide) -> bytes:
    """struct mapping_key of one half."""
    record = LAYOUTS[Family.of(end.address)].mapping_key
    number = number_of(end.protocol, end.address)
    return record.struct.pack(packed(end.address), end.port.to_bytes(2, "big"), number, side)


def budget_key(pod: str) -> bytes:
    """struct mapping_key of what tells how many flows a pod may begin."""
    return LAYOUTS[Family.of(pod)].mapping_key.struct.pack(packed(pod), bytes(2), 0, MappingSide.BUDGET)


@lru_cache(maxsize=4096)
def _mapping_end(end: Address) -> bytes:
    """struct mapping, its stamp left out."""
    record = LAYOUTS[Family.of(end.address)].mapping
    return record.struct.pack(0, packed(end.address), end.port.to_bytes(2, "big"))[STAMP_BYTES:]


@lru_cache(maxsize=4096)
def mapping_key_in(raw: bytes) -> str:
    """A struct mapping_key in words."""
    layout = next(one for one in LAYOUTS.values() if one.mapping_key.struct.size == len(raw))
    address, port, number, side = layout.mapping_key.struct.unpack(raw)
    if side == MappingSide.BUDGET and not number:
        return f"{ip_address(address)} BUDGET"
    end = Address(str(ip_address(address)), int.from_bytes(port, "big"), protocol_of(number))
    return f"{end} {MappingSide(side).name}"


# Fragments, by their keys in the map


def fragment_bytes(fragments: Fragments, family: Family) -> dict[bytes, tuple[bytes, float]]:
    """Of a family: what the addresses become as it stands in struct fragment, and when the first one was seen."""
    layout = LAYOUTS[family]
    found = {}
    for of, noted in fragments.noted.items():
        if Family.of(of.source) is family:
            # IPv4's 16 bits are the first of the 32
            named = of.identification.to_bytes(2 if family is Family.IPV4 else 4, "big").ljust(4, b"\0")
            number = next((number_of(one, of.source) for one in HEADERS if one == of.protocol), 0)
            key = layout.fragment_key.struct.pack(packed(of.source), packed(of.destination), named, number)
            value = layout.fragment.struct.pack(0, packed(noted.source), packed(noted.destination))
            found[key] = value[STAMP_BYTES:], noted.first_seen
    return found


def fragment_key_in(raw: bytes) -> str:
    """A struct fragment_key in words."""
    layout = next(one for one in LAYOUTS.values() if one.fragment_key.struct.size == len(raw))
    source, destination, identification, number = layout.fragment_key.struct.unpack(raw)
    return f"{ip_address(source)} -> {ip_address(destination)}, {identification.hex()} of protocol {number}"


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
            shared=called.shared,
            sources=ranges if ServiceFlag.RANGES in flags else None,
        )
    drained = {live.backends[number].address for number in draining}
    return replace(
        world,
        services=services,
        cluster_ips=frozenset(at for at, kind in live.guards.vips.items() if kind is VipKind.CLUSTER),
        external_ips=frozenset(at for at, kind in live.guards.vips.items() if kind is VipKind.EXTERNAL),
        targets=frozenset(Address(one.address, one.port, one.protocol) for one in drained),
        draining=frozenset(backends[number] for number in draining),
    )
