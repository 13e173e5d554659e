"""The plan meets the maps: reads what is live there, and writes a change in its safe order."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network

from pydatapath.errors import KernelError
from pydatapath.guarding import Guards, SourceRange
from pydatapath.kernel.layout import (
    BACKEND,
    PROTOCOLS,
    RUN,
    SERVICE,
    SOURCE_RANGE,
    TRANSPORT_ADDRESS,
    BackendState,
    Counter,
    ServiceFlag,
    VipKind,
)
from pydatapath.kernel.maps import Maps
from pydatapath.model import Protocol
from pydatapath.plan import Address, Called, Change, Live, LiveBackend, Run

__all__ = ["check_room", "count_backends", "counters", "read_backends", "read_live", "write"]

_U32 = struct.Struct("=I")
_STATE_OFFSET = 7  # of struct backend


def pack_address(at: Address) -> bytes:
    """struct transport_address."""
    return TRANSPORT_ADDRESS.pack(IPv4Address(at.address).packed, at.port.to_bytes(2, "big"), PROTOCOLS[at.protocol])


def unpack_address(raw: bytes) -> Address:
    """The Address of a struct transport_address."""
    address, port, protocol = TRANSPORT_ADDRESS.unpack(raw)
    return Address(str(IPv4Address(address)), int.from_bytes(port, "big"), _protocol(protocol))


def _protocol(number: int) -> Protocol:
    return "UDP" if number == PROTOCOLS["UDP"] else "TCP"


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
    return BACKEND.pack(
        IPv4Address(at.address).packed,
        at.port.to_bytes(2, "big"),
        PROTOCOLS[at.protocol],
        state,
        backend.generation,
        backend.service,
    )


def _unpack_backend(raw: bytes) -> tuple[LiveBackend, BackendState]:
    address, port, protocol, state, generation, service = BACKEND.unpack(raw)
    at = Address(str(IPv4Address(address)), int.from_bytes(port, "big"), _protocol(protocol))
    return LiveBackend(at, generation, service, draining=state == BackendState.DRAINING), BackendState(state)


def read_live(maps: Maps, numbers: Iterable[int] | None) -> Live:
    """What the maps hold for the service ports of these numbers (None: of all), and where there is room for more."""
    changing = set(numbers or ())
    live = Live(
        slot_limit=maps["slots"].info.max_entries,
        backend_limit=maps["backends"].info.max_entries,
        whole=numbers is None,
    )
    for key, value in maps["services"].items():
        live.services[unpack_address(key)] = unpack_called(value)
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
    live.targets = {unpack_address(key): _U32.unpack(value)[0] for key, value in maps["targets"].items()}
    live.free_backends = _free_backends(backends)
    live.guards = _read_guards(maps)
    return live


def _read_guards(maps: Maps) -> Guards:
    vips = {str(IPv4Address(key)): VipKind(_U32.unpack(value)[0]) for key, value in maps["vips"].items()}
    return Guards(vips, {_unpack_range(key) for key, _ in maps["ranges"].items()})


def _pack_range(one: SourceRange) -> bytes:
    network = IPv4Network(one.network)
    return SOURCE_RANGE.pack(32 + network.prefixlen, one.service, network.network_address.packed)


def _unpack_range(raw: bytes) -> SourceRange:
    length, service, address = SOURCE_RANGE.unpack(raw)
    return SourceRange(service, f"{IPv4Address(address)}/{length - 32}")


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
    _write_backends(maps, change.backends, BackendState.ACTIVE)
    maps["targets"].update_many({pack_address(at): _U32.pack(count) for at, count in change.targets.items()})
    maps["slots"].update_many(
        {
            _U32.pack(first + offset): _U32.pack(number)
            for first, run in change.slots.items()
            for offset, number in enumerate(run)
        }
    )
    guards = change.guards
    maps["vips"].update_many({IPv4Address(at).packed: _U32.pack(kind) for at, kind in guards.vips.items()})
    maps["ranges"].update_many({_pack_range(one): _U32.pack(1) for one in guards.ranges})
    maps["services"].update_many({pack_address(at): pack_called(called) for at, called in change.services.items()})
    maps["services"].delete_many(pack_address(at) for at in change.removed_services)
    _write_backends(maps, change.draining_backends, BackendState.DRAINING)
    _write_backends(maps, change.gone_backends, BackendState.GONE)
    maps["targets"].delete_many(pack_address(at) for at in change.removed_targets)
    maps["vips"].delete_many(IPv4Address(at).packed for at in guards.removed_vips)
    maps["ranges"].delete_many(_pack_range(one) for one in guards.removed_ranges)


def _write_backends(maps: Maps, backends: Mapping[int, LiveBackend], state: BackendState) -> None:
    maps["backends"].update_many({_U32.pack(number): _pack_backend(one, state) for number, one in backends.items()})


def check_room(maps: Maps, change: Change) -> None:
    """Raises KernelError, before anything is written, where a change does not fit."""
    for name, new in (("services", change.services), ("targets", change.targets)):
        table = maps[name]
        have = {key for key, _ in table.items()}
        adding = sum(pack_address(at) not in have for at in new)
        if len(have) + adding > table.info.max_entries:
            raise KernelError(
                f"the map {name!r} is full: it holds {table.info.max_entries:,} entries,"
                f" {len(have) + adding:,} are needed",
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
