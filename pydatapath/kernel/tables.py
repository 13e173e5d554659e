"""The plan meets the maps: reads what is live there, and writes a change in its safe order.

Maps that hold addresses are there once for each family that is loaded; an address's family says which is meant.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Final, cast

from pydatapath.errors import KernelError
from pydatapath.guarding import Guards, SourceRange
from pydatapath.kernel.layout import (
    BACKEND,
    BACKEND_RECORD,
    LAYOUTS,
    MAPS,
    PROTOCOL_NAMES,
    PROTOCOLS,
    RUN,
    SERVICE,
    BackendState,
    Counter,
    Family,
    ServiceFlag,
    VipKind,
)
from pydatapath.kernel.maps import Map, Maps
from pydatapath.model import Protocol
from pydatapath.plan import Address, Called, Change, Live, LiveBackend, Run

__all__ = [
    "check_room",
    "count_backends",
    "counters",
    "loaded_families",
    "pack_ip",
    "read_backends",
    "read_live",
    "unpack_ip",
    "write",
]

_U32 = struct.Struct("=I")
_STATE_OFFSET: Final = next(offset for name, offset, _ in BACKEND_RECORD.shape if name == "state")
_CALLED_AT: Final = {family: layout.transport_address.struct for family, layout in LAYOUTS.items()}
_RANGES: Final = {family: layout.source_range.struct for family, layout in LAYOUTS.items()}
_SOCKET_FAMILIES: Final = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_MAPPED: Final = IPv6Address("::ffff:0.0.0.0").packed[:12]  # RFC 4291 2.5.5.2
# A write's keys and values, for each family's map of one kind
_Entries = Iterable[tuple[Family, bytes, bytes]]


def loaded_families(maps: Maps) -> list[Family]:
    """The families whose maps are there. IPv4's always are, or asking for one says which is not."""
    six = (name for name, contract in MAPS.items() if contract.family is Family.IPV6)
    return [Family.IPV4, Family.IPV6] if any((maps.directory / name).exists() for name in six) else [Family.IPV4]


def pack_ip(text: str) -> bytes:
    """An address as it stands in packets."""
    return socket.inet_pton(_SOCKET_FAMILIES[Family.of(text)], text)


def unpack_ip(raw: bytes) -> str:
    """The canonical text of 4 or 16 bytes."""
    return str(IPv4Address(raw) if len(raw) == Family.IPV4.address_size else IPv6Address(raw))


def pack_address(at: Address) -> bytes:
    """struct transport_address."""
    return _CALLED_AT[at.family].pack(pack_ip(at.address), at.port.to_bytes(2, "big"), PROTOCOLS[at.protocol])


def unpack_address(raw: bytes, family: Family) -> Address:
    """The Address of a struct transport_address."""
    address, port, protocol = _CALLED_AT[family].unpack(raw)
    return Address(unpack_ip(address), int.from_bytes(port, "big"), _protocol(protocol))


def _protocol(number: int) -> Protocol:
    return cast("Protocol", PROTOCOL_NAMES.get(number, "TCP"))  # an entry that was never used has none


def pack_called(called: Called) -> bytes:
    """struct service."""
    runs = (RUN.pack(run.first_slot, run.slot_count) for run in (called.inside, called.outside))
    return SERVICE.pack(*runs, called.number, called.affinity, called.flags)


def unpack_called(raw: bytes) -> Called:
    """What a struct service says."""
    inside, outside, number, affinity, flags = SERVICE.unpack(raw)
    return Called(Run(*RUN.unpack(inside)), Run(*RUN.unpack(outside)), number, affinity, ServiceFlag(flags))


def _pack_backend(backend: LiveBackend, state: BackendState) -> bytes:
    at = backend.address
    address = pack_ip(at.address)
    return BACKEND.pack(
        address if at.family is Family.IPV6 else _MAPPED + address,
        at.port.to_bytes(2, "big"),
        PROTOCOLS[at.protocol],
        state,
        backend.generation,
        backend.service,
    )


def _unpack_backend(raw: bytes) -> tuple[LiveBackend, BackendState]:
    address, port, protocol, state, generation, service = BACKEND.unpack(raw)
    text = unpack_ip(address.removeprefix(_MAPPED))
    at = Address(text, int.from_bytes(port, "big"), _protocol(protocol))
    return LiveBackend(at, generation, service, draining=state == BackendState.DRAINING), BackendState(state)


def read_live(maps: Maps, numbers: Iterable[int] | None) -> Live:
    """What the maps hold for the service ports of these numbers (None: of all), and where there is room for more."""
    changing = set(numbers or ())
    live = Live(
        slot_limit=maps["slots"].info.max_entries,
        backend_limit=maps["backends"].info.max_entries,
        whole=numbers is None,
    )
    for family, key, value in _items(maps, "services"):
        live.services[unpack_address(key, family)] = unpack_called(value)
    backends = maps["backends"].values()
    changing_ones = [one for one in live.services.values() if live.whole or one.number in changing]
    # A megabyte or more: not for nothing
    slots = memoryview(maps["slots"].values() if changing_ones else b"").cast("I")
    for run, owner in {(run, one.number) for one in changing_ones for run in one.runs}:
        members = tuple(slots[run.first_slot : run.first_slot + run.slot_count])
        live.slots[run.first_slot] = members
        for number in {*members}:
            backend, state = _unpack_backend(backends[number * BACKEND.size : (number + 1) * BACKEND.size])
            if state is BackendState.ACTIVE and backend.service == owner:
                live.backends[number] = backend
    if live.whole:
        live.backends = dict(_backends_in(backends, BackendState.ACTIVE))
    for number, backend in _backends_in(backends, BackendState.DRAINING):
        if live.whole or backend.service in changing:
            live.backends[number] = backend
    live.targets = {
        unpack_address(key, family): _U32.unpack(value)[0] for family, key, value in _items(maps, "targets")
    }
    live.free_backends = _free_backends(backends)
    live.guards = _read_guards(maps)
    return live


def _items(maps: Maps, name: str) -> Iterator[tuple[Family, bytes, bytes]]:
    """The entries of each family's map of this kind."""
    for family in loaded_families(maps):
        for key, value in maps[name + family.suffix].items():
            yield family, key, value


def _read_guards(maps: Maps) -> Guards:
    vips = {unpack_ip(key): VipKind(_U32.unpack(value)[0]) for _, key, value in _items(maps, "vips")}
    return Guards(vips, {_unpack_range(key, family) for family, key, _ in _items(maps, "ranges")})


def _pack_range(one: SourceRange) -> bytes:
    network = ip_network(one.network)
    address = network.network_address.packed
    return _RANGES[Family.of(one.network)].pack(32 + network.prefixlen, one.service, address)


def _unpack_range(raw: bytes, family: Family) -> SourceRange:
    length, service, address = _RANGES[family].unpack(raw)
    return SourceRange(service, f"{unpack_ip(address)}/{length - 32}")


def _free_backends(backends: bytes) -> Iterator[tuple[int, int]]:
    """Numbers that may be given, with their generation: never-used ones first, for flows may still name the others."""
    for state in (BackendState.UNUSED, BackendState.GONE):
        for number in _numbers_in(backends, state):
            yield number, BACKEND.unpack_from(backends, number * BACKEND.size)[4]


def _numbers_in(backends: bytes, state: BackendState) -> Iterator[int]:
    """The numbers of the backends in a state."""
    states = backends[_STATE_OFFSET :: BACKEND.size]
    number = states.find(state, 1)  # 0 means "no backend"
    while number != -1:
        yield number
        number = states.find(state, number + 1)


def _backends_in(backends: bytes, state: BackendState) -> Iterator[tuple[int, LiveBackend]]:
    """The backends in a state, with their numbers."""
    for number in _numbers_in(backends, state):
        yield number, _unpack_backend(backends[number * BACKEND.size : (number + 1) * BACKEND.size])[0]


def write(maps: Maps, change: Change) -> None:
    """Writes a change, in the order that plan.Change gives. Raises KernelError where a map is full."""
    guards = change.guards
    _write_backends(maps, change.backends, BackendState.ACTIVE)
    _update(maps, "targets", [(at.family, pack_address(at), _U32.pack(count)) for at, count in change.targets.items()])
    maps["slots"].update_many(
        {
            _U32.pack(first + offset): _U32.pack(number)
            for first, run in change.slots.items()
            for offset, number in enumerate(run)
        }
    )
    _update(maps, "vips", [(Family.of(at), pack_ip(at), _U32.pack(kind)) for at, kind in guards.vips.items()])
    _update(maps, "ranges", [(Family.of(one.network), _pack_range(one), _U32.pack(1)) for one in guards.ranges])
    _update(maps, "services", [(at.family, pack_address(at), pack_called(one)) for at, one in change.services.items()])
    _delete(maps, "services", [(at.family, pack_address(at)) for at in change.removed_services])
    _write_backends(maps, change.draining_backends, BackendState.DRAINING)
    _write_backends(maps, change.gone_backends, BackendState.GONE)
    _delete(maps, "targets", [(at.family, pack_address(at)) for at in change.removed_targets])
    _delete(maps, "vips", [(Family.of(at), pack_ip(at)) for at in guards.removed_vips])
    _delete(maps, "ranges", [(Family.of(one.network), _pack_range(one)) for one in guards.removed_ranges])


def _update(maps: Maps, name: str, entries: _Entries) -> None:
    """Writes entries, each to its family's map of this kind."""
    parts: dict[Family, dict[bytes, bytes]] = {}
    for family, key, value in entries:
        parts.setdefault(family, {})[key] = value
    for family, part in parts.items():
        maps[name + family.suffix].update_many(part)


def _delete(maps: Maps, name: str, keys: Iterable[tuple[Family, bytes]]) -> None:
    for family, key in keys:
        maps[name + family.suffix].delete(key)


def _write_backends(maps: Maps, backends: Mapping[int, LiveBackend], state: BackendState) -> None:
    maps["backends"].update_many({_U32.pack(number): _pack_backend(one, state) for number, one in backends.items()})


def check_room(maps: Maps, change: Change) -> None:
    """Raises KernelError, before anything is written, where a change does not fit."""
    for name, new in (("services", change.services), ("targets", change.targets)):
        for family in loaded_families(maps):
            _check_map(maps[name + family.suffix], [at for at in new if at.family is family])


def _check_map(table: Map, new: list[Address]) -> None:
    have = {key for key, _ in table.items()} if new else set()
    needed = len(have) + sum(pack_address(at) not in have for at in new)
    if needed > table.info.max_entries:
        raise KernelError(
            f"the map {table.contract.name!r} is full: it holds {table.info.max_entries:,} entries,"
            f" {needed:,} are needed",
            hint="load with larger --max-services or --max-backends",
        )


def counters(maps: Maps) -> dict[str, int]:
    """All counters by their lower-case names, summed over the CPUs."""
    table = maps["counters"]
    return {counter.name.lower(): table.total(_U32.pack(counter)) for counter in Counter}


def count_backends(maps: Maps) -> int:
    """How many backends take new flows, of all services together."""
    return maps["backends"].values()[_STATE_OFFSET :: BACKEND.size].count(BackendState.ACTIVE)


def read_backends(maps: Maps, numbers: Iterable[int]) -> dict[int, LiveBackend]:
    """These backends as the map has them, whatever their state."""
    table = maps["backends"]
    found = {}
    for number in set(numbers):
        raw = table.lookup(_U32.pack(number))
        if raw is not None:
            found[number] = _unpack_backend(raw)[0]
    return found
