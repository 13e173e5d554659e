"""What stands in the maps as bytes: keys and values of services, backends, source ranges and networks."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable
from enum import IntEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_network
from socket import AF_INET, AF_INET6, inet_pton
from typing import Final, TypeVar, cast

from pydatapath.guarding import SourceRange
from pydatapath.kernel.layout import (
    BACKEND,
    BACKEND_RECORD,
    LAYOUTS,
    PROTOCOL_NAMES,
    PROTOCOLS,
    RUN,
    SERVICE,
    BackendState,
    Family,
    ServiceFlag,
)
from pydatapath.model import Protocol
from pydatapath.plan import Address, Called, LiveBackend, Run

__all__ = [
    "CALLED_AT",
    "RANGES",
    "STATE_OFFSET",
    "U32",
    "as_member",
    "pack_address",
    "pack_addresses",
    "pack_backend",
    "pack_called",
    "pack_ip",
    "pack_network",
    "pack_numbers",
    "pack_range",
    "unpack_address",
    "unpack_backend",
    "unpack_called",
    "unpack_ip",
    "unpack_network",
    "unpack_range",
]

U32: Final = struct.Struct("=I")
STATE_OFFSET: Final = next(offset for name, offset, _ in BACKEND_RECORD.shape if name == "state")
RANGES: Final = {family: layout.source_range.struct for family, layout in LAYOUTS.items()}
CALLED_AT: Final = {family: layout.transport_address.struct for family, layout in LAYOUTS.items()}
_NETWORKS: Final = {family: layout.network.struct for family, layout in LAYOUTS.items()}
_MAPPED: Final = IPv6Address("::ffff:0.0.0.0").packed[:12]  # RFC 4291 2.5.5.2
_Kind = TypeVar("_Kind", bound=IntEnum)


def pack_ip(text: str) -> bytes:
    """An address as it stands in packets."""
    return inet_pton(AF_INET6 if ":" in text else AF_INET, text)


@lru_cache(maxsize=65_536)
def unpack_ip(raw: bytes) -> str:
    """The canonical text of 4 or 16 bytes."""
    return str(IPv4Address(raw) if len(raw) == Family.IPV4.address_size else IPv6Address(raw))


def pack_address(at: Address) -> bytes:
    """struct transport_address."""
    return pack_addresses([at], at.family)


def pack_addresses(places: Iterable[Address], family: Family) -> bytes:
    """struct transport_address of each, which are of one family: of fifty thousand as well as of one."""
    kind, pack = AF_INET6 if family is Family.IPV6 else AF_INET, CALLED_AT[family].pack
    return b"".join(
        [pack(inet_pton(kind, text), port.to_bytes(2, "big"), PROTOCOLS[protocol]) for text, port, protocol in places]
    )


def pack_numbers(numbers: Collection[int]) -> bytes:
    """Each as 4 bytes, in the host's order."""
    return struct.pack(f"={len(numbers)}I", *numbers)


def unpack_address(raw: bytes, family: Family) -> Address:
    """The Address of a struct transport_address."""
    address, port, protocol = CALLED_AT[family].unpack(raw)
    return Address(unpack_ip(address), int.from_bytes(port, "big"), _protocol(protocol))


def _protocol(number: int) -> Protocol:
    return cast("Protocol", PROTOCOL_NAMES.get(number, "TCP"))  # an entry that was never used has none


def pack_called(called: Called) -> bytes:
    """struct service."""
    runs = (RUN.pack(run.first_slot, run.slot_count) for run in (called.inside, called.outside))
    return SERVICE.pack(*runs, called.number, called.affinity, called.flags, called.shared)


def unpack_called(raw: bytes) -> Called:
    """What a struct service says."""
    inside, outside, number, affinity, flags, shared = SERVICE.unpack(raw)
    return Called(Run(*RUN.unpack(inside)), Run(*RUN.unpack(outside)), number, affinity, ServiceFlag(flags), shared)


def pack_backend(backend: LiveBackend, state: BackendState) -> bytes:
    """struct backend; an IPv4 address as RFC 4291 maps it."""
    (text, port, protocol), generation, service, _ = backend
    address = inet_pton(AF_INET6, text) if ":" in text else _MAPPED + inet_pton(AF_INET, text)
    return BACKEND.pack(address, port.to_bytes(2, "big"), PROTOCOLS[protocol], state, generation, service)


def unpack_backend(raw: bytes) -> tuple[LiveBackend, BackendState]:
    """What a struct backend says."""
    address, port, protocol, state, generation, service = BACKEND.unpack(raw)
    text = unpack_ip(address.removeprefix(_MAPPED))
    at = Address(text, int.from_bytes(port, "big"), _protocol(protocol))
    return LiveBackend(at, generation, service, draining=state == BackendState.DRAINING), as_member(BackendState, state)


def pack_range(one: SourceRange) -> bytes:
    """The key of a source range: the length of its prefix counts the service, too."""
    network = ip_network(one.network)
    address = network.network_address.packed
    return RANGES[Family.of(one.network)].pack(32 + network.prefixlen, one.service, address)


def unpack_range(raw: bytes, family: Family) -> SourceRange:
    """The source range of a key."""
    length, service, address = RANGES[family].unpack(raw)
    return SourceRange(service, f"{unpack_ip(address)}/{length - 32}")


def pack_network(text: str) -> bytes:
    """The key of a network."""
    address, _, length = text.partition("/")
    return _NETWORKS[Family.of(address)].pack(int(length), pack_ip(address))


def unpack_network(raw: bytes, family: Family) -> str:
    """The network of a key, canonical text."""
    length, address = _NETWORKS[family].unpack(raw)
    return f"{unpack_ip(address)}/{length}"


def as_member(kind: type[_Kind], number: int) -> _Kind:
    """The member of this number; what somebody wrote by hand stays a number, and equals none."""
    try:
        return kind(number)
    except ValueError:
        return cast("_Kind", number)
