"""Packets that nobody should send: frames cut off, mutated and made up, and what the model says of each.

A frame is read here once more, from the RFCs and docs/design.md, apart from bpf/packet.h: into a packet of the model,
or into why it is none. What is none is the stack's as it came, or dropped by name where nobody else could deliver it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from ipaddress import ip_address
from random import Random
from typing import Final, Literal, cast

from frames import packed
from places import GATEWAY_MAC
from scapy.layers.sctp import crc32c
from wire import ERRORS, FLAGS, FRAGMENT_HEADER, ICMP

from pydatapath.kernel.layout import PROTOCOL_NAMES
from pydatapath.reference import Error, ErrorKind, Fragment, Hook, Packet, Protocol, World
from pydatapath.reference.services import may_call

__all__ = ["Kind", "Reading", "mutants", "off", "read", "unread", "unsummed", "written"]

# `other`: of neither family. `malformed`: its lengths lie, or its headers end early. `protocol`: one without ports.
# `query`: ICMP that is neither an echo request nor an error about ports. `unreadable`: more extension headers than are
# followed. `part`: a later fragment of a protocol that the model has not.
Kind = Literal["other", "arp", "malformed", "protocol", "query", "unreadable", "part", "packet"]

ETHERNET: Final = 14
EXTENSIONS: Final = (0, 43, FRAGMENT_HEADER, 60)  # RFC 8200 4: hop-by-hop, routing, fragment, destination options
MOST_EXTENSIONS, MOST_BYTES = 8, 256  # N75
LEAST: Final = {"TCP": 20, "UDP": 8, "SCTP": 12, "ICMP": 8}
QUOTED_CHECKS: Final = {"UDP": 6, "ICMP": 2}  # of what is quoted whole enough
ECHOES: Final = {4: (8, 0), 6: (128, 129)}  # request, reply
CHECKS: Final = {"TCP": 16, "UDP": 6, "SCTP": 8, "ICMP": 2}  # where in the header its checksum is


@dataclass(frozen=True)
class Reading:
    """What a frame is. `transport`: where layer 4 begins; `quoted`: that of a quoted packet; 0 for none."""

    kind: Kind
    source: str = ""
    destination: str = ""
    packet: Packet | None = None
    transport: int = 0
    quoted: int = 0
    is_extended: bool = False


@dataclass(frozen=True)
class _Ip:
    """What the IP headers say, and where layer 4 begins; `total`: bytes of layer 3."""

    number: int
    transport: int
    total: int
    fragment: Fragment | None = None


def read(raw: bytes, world: World | None = None, hook: Hook = Hook.FROM_POD) -> Reading:
    """Reads a frame of at least an Ethernet header.

    `world`: where it is. If pods are masqueraded there, replies to echoes are packets, too, and so are echoes of any
    code but those that call a service at this hook (RFC 792 knows the code 0 only), and what is quoted of them.
    """
    family = {b"\x08\x00": 4, b"\x86\xdd": 6}.get(raw[12:14])
    if family is None:
        return Reading("arp" if raw[12:14] == b"\x08\x06" else "other")
    if len(raw) < ETHERNET + (20 if family == 4 else 40):
        return Reading("malformed")
    ends = raw[26:34] if family == 4 else raw[22:54]
    half = len(ends) // 2
    source, destination = (str(ip_address(one)) for one in (ends[:half], ends[half:]))
    ip = _ipv4(raw, ETHERNET) if family == 4 else _ipv6(raw, ETHERNET)
    extended = family == 6 and raw[20] in EXTENSIONS
    if not isinstance(ip, _Ip):
        return Reading(ip, source, destination, is_extended=extended)
    found = Reading("packet", source, destination, transport=ip.transport, is_extended=extended)
    name = _name(ip.number, family)
    if ip.fragment and ip.fragment.offset:
        if name is None:
            return replace(found, kind="part")
        packet = Packet(source, 0, destination, 0, name, fragment=ip.fragment)
    elif name is None:
        return replace(found, kind="protocol")
    elif ip.transport + LEAST[name] > len(raw):
        return replace(found, kind="malformed")
    elif name == "ICMP":
        return _icmp(raw, found, family, ip, world if world and world.masquerade else None, hook)
    elif _lies(raw, name, ip):
        return replace(found, kind="malformed")
    else:
        sport, dport = struct.unpack_from("!HH", raw, ip.transport)
        flags = _flags(raw, name, ip.transport)
        packet = Packet(source, sport, destination, dport, name, flags, fragment=ip.fragment)
        if name == "TCP":
            sequence, acknowledged = struct.unpack_from("!II", raw, ip.transport + 4)
            header = ip.transport - ETHERNET + (raw[ip.transport + 12] >> 4) * 4
            packet = replace(packet, sequence=sequence, acknowledged=acknowledged, data=ip.total > header)
    return replace(found, packet=_sized(packet, raw, family))


def _sized(packet: Packet, raw: bytes, family: int) -> Packet:
    extended = family == 6 and raw[20] in EXTENSIONS
    return replace(packet, ttl=raw[22 if family == 4 else 21], length=len(raw) - ETHERNET, extended=extended)


def _name(number: int, family: int) -> Protocol | None:
    if number == ICMP[family]:
        return "ICMP"
    name = PROTOCOL_NAMES.get(number)
    return cast("Protocol", name) if name in {"TCP", "UDP", "SCTP"} else None


def _ipv4(raw: bytes, at: int) -> _Ip | Kind:
    first, total, identification, where, number = struct.unpack_from("!BxHHHxB", raw, at)
    if first >> 4 != 4 or first & 15 < 5:
        return "malformed"
    offset, more = (where & 0x1FFF) * 8, where & 0x2000
    fragment = Fragment(identification, offset) if offset or more else None
    return _Ip(number, at + (first & 15) * 4, total, fragment)


def _ipv6(raw: bytes, at: int) -> _Ip | Kind:
    first, payload, number = struct.unpack_from("!BxxxHB", raw, at)
    if first >> 4 != 6:
        return "malformed"
    place, fragment, total = at + 40, None, payload and 40 + payload
    for _ in range(MOST_EXTENSIONS):
        if number not in EXTENSIONS:
            break
        if place + 8 > len(raw):
            return "malformed"
        following, length, where, identification = struct.unpack_from("!BBHI", raw, place)
        if number == FRAGMENT_HEADER:
            # An atomic one is a whole packet (RFC 6946)
            fragment = Fragment(identification, where & 0xFFF8) if where & 0xFFF9 else None
            if fragment and fragment.offset:
                # What it is a part of is told by the identification alone: whatever protocol the header names
                return _Ip(following if following in {6, 17, 132, 58} else 17, place + 8, total, fragment)
            length = 0
        number, place = following, place + (length + 1) * 8
        if place > at + 40 + MOST_BYTES:
            return "unreadable"
    return "unreadable" if number in EXTENSIONS else _Ip(number, place, total, fragment)


def _lies(raw: bytes, name: Protocol, ip: _Ip) -> bool:
    """Whether the headers want more room than there is; a datagram's own length is the whole one's, also in a part."""
    says = LEAST[name]
    if name == "TCP":
        says = (raw[ip.transport + 12] >> 4) * 4
    elif name == "UDP" and not ip.fragment:
        says = int.from_bytes(raw[ip.transport + 4 : ip.transport + 6])
    room = ip.total - (ip.transport - ETHERNET)
    return says < LEAST[name] or room < says or ip.total > len(raw) - ETHERNET


def _flags(raw: bytes, name: Protocol, at: int) -> str:
    if name == "TCP":
        return "".join(flag for flag, bit in FLAGS.items() if raw[at + 13] & bit)
    opens = name == "SCTP" and raw[at + 4 : at + 8] == bytes(4) and raw[at + 12 : at + 13] == b"\1"
    return "S" if opens else ""  # RFC 9260 3.3.2


def _icmp(raw: bytes, found: Reading, family: int, ip: _Ip, hidden: World | None, hook: Hook) -> Reading:
    """An echo request, its reply, or an error about a packet with ports; anything else is a query."""
    kind, code = raw[found.transport], raw[found.transport + 1]
    ends = found.source, 0, found.destination, 0
    asks, replies = (kind == one for one in ECHOES[family])
    any_code = hidden is not None and (replies or not _pings_service(found, hidden, hook))
    if (asks or (replies and hidden)) and (code == 0 or any_code):
        packet = replace(_echo(*ends[::2], raw, family, found.transport), fragment=ip.fragment)
        return replace(found, packet=_sized(packet, raw, family))
    told = next((name for name, of in ERRORS.items() if of[family][0] == kind and name != "redirect"), None)
    inner = found.transport + 8
    if told is None or inner + (20 if family == 4 else 40) > len(raw):
        return replace(found, kind="query")
    about = _quoted(raw, family, inner, echoes=hidden is not None)
    if about is None:
        return replace(found, kind="query")
    error = Error(cast("ErrorKind", told), about[0])
    packet = Packet(*ends, "ICMP", fragment=ip.fragment, error=error)
    return replace(found, packet=_sized(packet, raw, family), quoted=about[1])


def _pings_service(found: Reading, world: World, hook: Hook) -> bool:
    asked = Packet(found.source, 0, found.destination, 0, "ICMP")
    return world.answers_ping(found.destination) and may_call(asked, hook, world)


def _echo(source: str, destination: str, raw: bytes, family: int, at: int) -> Packet:
    """A request or reply: the identifier is the port of who asks."""
    identifier = int.from_bytes(raw[at + 4 : at + 6])
    if raw[at] == ECHOES[family][0]:
        return Packet(source, identifier, destination, 0, "ICMP")
    return Packet(source, 0, destination, identifier, "ICMP", "" if identifier else "A")


def _quoted(raw: bytes, family: int, at: int, *, echoes: bool) -> tuple[Packet, int] | None:
    """What an error quotes, and where that packet's ports are; of IPv6's headers that of fragments alone is known."""
    place = at + (raw[at] & 15) * 4
    number, where, ends = raw[at + 9], int.from_bytes(raw[at + 6 : at + 8]) & 0x1FFF, raw[at + 12 : at + 20]
    if family == 6:
        number, where, ends, place = raw[at + 6], 0, raw[at + 8 : at + 40], at + 40
        if number == FRAGMENT_HEADER:
            if place + 8 > len(raw):
                return None
            number, where, place = raw[place], int.from_bytes(raw[place + 2 : place + 4]) & 0xFFF8, place + 8
    name = _name(number, family)
    short = family == 4 and raw[at] & 15 < 5
    if name is None or raw[at] >> 4 != family or short or where or place + 8 > len(raw):
        return None
    source, destination = (str(ip_address(one)) for one in (ends[: len(ends) // 2], ends[len(ends) // 2 :]))
    if name == "ICMP":
        is_echo = echoes and raw[place] in ECHOES[family]
        return (_echo(source, destination, raw, family, place), place) if is_echo else None
    sport, dport = struct.unpack_from("!HH", raw, place)
    return Packet(source, sport, destination, dport, cast("Protocol", name)), place


# What must become of it


def unread(hook: Hook, raw: bytes, reading: Reading, world: World) -> list[str]:
    """The counters that a frame moves which is no packet of the model; with a drop among them it is dropped."""
    nowhere = hook is Hook.TO_BRIDGE and raw[:6].hex(":") == GATEWAY_MAC
    passed = ["drop_no_service"] if nowhere else []
    if hook is Hook.TO_LOOPBACK or reading.kind in {"other", "arp"}:
        return passed
    # Whoever it is from, nobody's own address leaves by an uplink (C13)
    hides = hook is Hook.TO_UPLINK and bool(reading.source) and world.must_hide(reading.source, reading.destination)
    hidden = ["drop_untranslated"] if hides else []
    if reading.kind == "malformed":
        return ["pass_malformed", *passed, *hidden]
    stand_in = Packet(reading.source, 0, reading.destination, 0, "UDP")
    is_walked = reading.kind != "protocol" or reading.is_extended
    if hook is Hook.FROM_UPLINK and is_walked and (world.is_spoofed(stand_in) or world.is_own(reading.source)):
        return ["drop_spoofed"]
    if reading.kind in {"protocol", "query"}:
        return hidden or passed
    name = "headers" if reading.kind == "unreadable" else "fragment"
    if world.is_cluster_ip(reading.destination) and may_call(stand_in, hook, world):
        return [f"drop_{name}"]
    return hidden or passed or [f"pass_{name}"]


def written(raw: bytes, reading: Reading, packet: Packet) -> bytes:
    """The frame with the addresses, ports and hops that a packet of the model has."""
    made, is_v4 = bytearray(raw), raw[12] == 8
    _write_ends(made, ETHERNET, packet)
    made[22 if is_v4 else 21] = packet.ttl
    if packet.error:
        _write_ends(made, reading.transport + 8, packet.error.about)
        _write_ports(made, reading.quoted, packet.error.about)
    elif not packet.is_later:
        _write_ports(made, reading.transport, packet)
    return bytes(made)


def _write_ports(made: bytearray, at: int, packet: Packet) -> None:
    """Of an echo one is its identifier, the other 0."""
    if packet.protocol == "ICMP":
        made[at + 4 : at + 6] = (packet.source_port | packet.destination_port).to_bytes(2)
    else:
        made[at : at + 4] = struct.pack("!HH", packet.source_port, packet.destination_port)


def _write_ends(made: bytearray, at: int, packet: Packet) -> None:
    ends = packed(packet.source) + packed(packet.destination)
    at += 12 if len(ends) == 8 else 8
    made[at : at + len(ends)] = ends


def unsummed(raw: bytes, reading: Reading) -> bytes:
    """The frame without its MACs and checksums, which `off` looks at."""
    made = bytearray(raw)
    made[:12] = bytes(12)
    packet = reading.packet
    if packet is None:
        return bytes(made)
    if raw[12] == 8:
        made[24:26] = bytes(2)
    if not packet.is_later:
        place = reading.transport + CHECKS[packet.protocol]
        made[place : place + (4 if packet.protocol == "SCTP" else 2)] = bytes(4 if packet.protocol == "SCTP" else 2)
    if packet.error:
        if raw[12] == 8:
            made[reading.transport + 18 : reading.transport + 20] = bytes(2)
        if place := QUOTED_CHECKS.get(packet.error.about.protocol):
            made[reading.quoted + place : reading.quoted + place + 2] = bytes(2)
    return bytes(made)


def off(raw: bytes, reading: Reading) -> list[int]:
    """By what its checksums are off, which no translation may change: what is wrong stays so, and by as much (N81)."""
    packet, is_v4 = reading.packet, raw[12] == 8
    if packet is None:
        return []
    found = [_sum(raw[14 : 14 + (raw[14] & 15) * 4])] if is_v4 else []
    ends, rest = raw[26:34] if is_v4 else raw[22:54], raw[reading.transport :]
    if packet.protocol == "UDP" and not packet.is_later and rest[6:8] == bytes(2):
        found.append(-1)  # none at all (RFC 768)
    elif packet.protocol == "SCTP" and not packet.is_later:
        found += _off_crc(raw, reading)
    elif not packet.is_later:
        found.append(_sum(rest if is_v4 and packet.protocol == "ICMP" else ends + rest))
    if packet.error:
        found += _off_quoted(raw, reading, packet.error.about)
    return found


def _off_quoted(raw: bytes, reading: Reading, about: Packet) -> list[int]:
    """Of a quoted header all is there, and of a datagram what covers its ports; a segment's sum nobody reads."""
    inner, place, is_v4 = reading.transport + 8, reading.quoted, raw[12] == 8
    found = [_sum(raw[inner : inner + (raw[inner] & 15) * 4])] if is_v4 else []
    if about.protocol == "UDP":
        check = raw[place + 6 : place + 8]
        ends = raw[inner + 12 : inner + 20] if is_v4 else raw[inner + 8 : inner + 40]
        found.append(_sum(ends + raw[place : place + 8]) if any(check) else -1)
    return found


def _off_crc(raw: bytes, reading: Reading) -> list[int]:
    """RFC 9260 appendix A; of what IP says is the packet, without what Ethernet has put behind it."""
    end = ETHERNET + (int.from_bytes(raw[16:18]) if raw[12] == 8 else 40 + int.from_bytes(raw[18:20]))
    at = reading.transport
    summed = crc32c(raw[at : at + 8] + bytes(4) + raw[at + 12 : end])
    return [int.from_bytes(raw[at + 8 : at + 12]) ^ int.from_bytes(struct.pack("!I", summed))]


def _sum(data: bytes) -> int:
    """RFC 1071's sum, as the remainder by 65,535."""
    return int.from_bytes(data + bytes(len(data) % 2)) % 0xFFFF


# What is made of a frame


def mutants(rng: Random, raw: bytes, count: int) -> list[bytes]:
    """So many frames that this one has become; its MACs stay.

    Not less than IP's header: Linux 6.18 refuses to run a program on that (EINVAL).
    """
    made = (_mutant(rng, raw) for _ in range(count))
    return [one for one in made if len(one) >= ETHERNET + {b"\x08\x00": 20, b"\x86\xdd": 40}.get(one[12:14], 1)]


def _mutant(rng: Random, raw: bytes) -> bytes:
    made = rng.choice((_cut, _cut, _flipped, _flipped, _numbered, _with_headers, _with_headers, _made_up, _padded))
    mutated = made(rng, raw)
    if rng.randrange(4) == 0:
        mutated = _flipped(rng, mutated)
    return raw[:12] + mutated[12:]


def _cut(rng: Random, raw: bytes) -> bytes:
    return raw[: rng.randrange(ETHERNET + 1, len(raw) + 1)]


def _padded(rng: Random, raw: bytes) -> bytes:
    return raw + rng.randbytes(rng.randrange(1, 40))


def _flipped(rng: Random, raw: bytes) -> bytes:
    """A few bits, or bytes, among the headers."""
    mutated = bytearray(raw)
    for _ in range(rng.randrange(1, 4)):
        place = rng.randrange(12, min(len(raw), 120))
        mutated[place] = rng.choice((mutated[place] ^ 1 << rng.randrange(8), rng.randrange(256), 0, 255))
    return bytes(mutated)


def _numbered(rng: Random, raw: bytes) -> bytes:
    """A field of two bytes has some number: lengths, offsets, ports, sums."""
    place = rng.randrange(12, min(len(raw), 80) - 1) & ~1
    number = rng.choice(
        (0, 1, 7, 8, 19, 20, 39, 40, len(raw) - ETHERNET, len(raw), 0x7FFF, 0xFFFF, rng.randrange(1 << 16))
    )
    return raw[:place] + number.to_bytes(2) + raw[place + 2 :]


def _made_up(rng: Random, raw: bytes) -> bytes:
    """Bytes by chance behind the MACs, behind Ethernet or IP; or where ARP is looked for."""
    kept = rng.choice((12, 14, 34, 54))
    made = raw[:kept] + rng.randbytes(rng.randrange(4, 100))
    return made[:12] + b"\x08\x06" + made[14:] if rng.randrange(8) == 0 else made


def _with_headers(rng: Random, raw: bytes) -> bytes:
    """IPv4 with options of every kind (RFC 791 3.1), IPv6 with extension headers, the lengths set right."""
    if raw[12:14] == b"\x08\x00" and raw[14] == 0x45:
        return _with_options(rng, raw)
    if raw[12:14] != b"\x86\xdd":
        return _flipped(rng, raw)
    kinds = [rng.choice((*EXTENSIONS, 60, 51, 135, 59)) for _ in range(rng.choice((1, 1, 2, 3, 7, 8, 9)))]
    headers, following = b"", raw[20]
    for kind in reversed(kinds):
        units = rng.choice((0, 0, 0, 1, 3, 31)) if kind != FRAGMENT_HEADER else 0
        where = rng.choice((0, 0, 0, 1, 8, 0xFFF8)) if kind == FRAGMENT_HEADER else 0
        headers = struct.pack("!BBH", following, units, where) + rng.randbytes(4 + units * 8) + headers
        following = kind
    payload = (int.from_bytes(raw[18:20]) + len(headers)) & 0xFFFF
    return raw[:18] + payload.to_bytes(2) + bytes([following]) + raw[21:54] + headers + raw[54:]


def _with_options(rng: Random, raw: bytes) -> bytes:
    words = rng.randrange(1, 11)
    option = bytes([rng.randrange(256), rng.choice((0, 1, 4, words * 4, 40, 255))])
    options = (option + rng.randbytes(words * 4))[: words * 4]
    total = (int.from_bytes(raw[16:18]) + len(options)) & 0xFFFF
    made = bytearray(raw[:34] + options + raw[34:])
    made[14], made[16:18] = 0x45 + words, total.to_bytes(2)
    made[24:26] = bytes(2)
    words_of = struct.unpack(f"!{10 + words * 2}H", made[14 : 34 + words * 4])
    made[24:26] = (-sum(words_of) % 0xFFFF).to_bytes(2)
    return bytes(made)
