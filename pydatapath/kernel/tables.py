"""The plan meets the maps: reads what is live there, and writes a change in its safe order.

Maps that hold addresses are there once for each family that is loaded; an address's family says which is meant.
"""

from __future__ import annotations

import struct
from collections import Counter as Tally
from collections.abc import Callable, Collection, ItemsView, Iterable, Iterator, Mapping
from enum import IntEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_network
from itertools import chain
from mmap import mmap
from socket import AF_INET, AF_INET6, inet_pton
from typing import Final, TypeVar, cast

from pydatapath.errors import KernelError
from pydatapath.guarding import GuardChange, Guards, SourceRange
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
    MemberKind,
    ServiceFlag,
    VipKind,
)
from pydatapath.kernel.maps import Map, Maps, wait_for_programs
from pydatapath.membership import MemberChange
from pydatapath.model import Protocol
from pydatapath.plan import Address, Called, Change, Live, LiveBackend, Run

__all__ = [
    "check_members",
    "check_room",
    "count_backends",
    "counters",
    "loaded_families",
    "pack_ip",
    "read_backends",
    "read_live",
    "read_members",
    "remove_strays",
    "strays",
    "unpack_ip",
    "write",
]

# After so many entries that were read one by one a map is read as a whole: that takes as long as 200 to 4,000 of them
MANY: Final = 1000

_U32 = struct.Struct("=I")
_OF_IPV6: Final = tuple(name for name, contract in MAPS.items() if contract.family is Family.IPV6)
_STATE_OFFSET: Final = next(offset for name, offset, _ in BACKEND_RECORD.shape if name == "state")
_CALLED_AT: Final = {family: layout.transport_address.struct for family, layout in LAYOUTS.items()}
_RANGES: Final = {family: layout.source_range.struct for family, layout in LAYOUTS.items()}
_NETWORKS: Final = {family: layout.network.struct for family, layout in LAYOUTS.items()}
_MAPPED: Final = IPv6Address("::ffff:0.0.0.0").packed[:12]  # RFC 4291 2.5.5.2
# A write's keys and values, for each family's map of one kind
_Entries = Iterable[tuple[Family, bytes, bytes]]


def loaded_families(maps: Maps) -> list[Family]:
    """The families whose maps are there. IPv4's always are, or asking for one says which is not."""
    there = any((maps.directory / name).exists() for name in _OF_IPV6)
    return [Family.IPV4, Family.IPV6] if there else [Family.IPV4]


def pack_ip(text: str) -> bytes:
    """An address as it stands in packets."""
    return inet_pton(AF_INET6 if ":" in text else AF_INET, text)


@lru_cache(maxsize=65_536)
def unpack_ip(raw: bytes) -> str:
    """The canonical text of 4 or 16 bytes."""
    return str(IPv4Address(raw) if len(raw) == Family.IPV4.address_size else IPv6Address(raw))


def pack_address(at: Address) -> bytes:
    """struct transport_address."""
    return _pack_addresses([at], at.family)


def _pack_addresses(places: Iterable[Address], family: Family) -> bytes:
    """struct transport_address of each, which are of one family: of fifty thousand as well as of one."""
    kind, pack = AF_INET6 if family is Family.IPV6 else AF_INET, _CALLED_AT[family].pack
    return b"".join(
        [pack(inet_pton(kind, text), port.to_bytes(2, "big"), PROTOCOLS[protocol]) for text, port, protocol in places]
    )


def _pack_numbers(numbers: Collection[int]) -> bytes:
    """Each as 4 bytes, in the host's order."""
    return struct.pack(f"={len(numbers)}I", *numbers)


def unpack_address(raw: bytes, family: Family) -> Address:
    """The Address of a struct transport_address."""
    address, port, protocol = _CALLED_AT[family].unpack(raw)
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


def _pack_backend(backend: LiveBackend, state: BackendState) -> bytes:
    (text, port, protocol), generation, service, _ = backend
    address = inet_pton(AF_INET6, text) if ":" in text else _MAPPED + inet_pton(AF_INET, text)
    return BACKEND.pack(address, port.to_bytes(2, "big"), PROTOCOLS[protocol], state, generation, service)


def _unpack_backend(raw: bytes) -> tuple[LiveBackend, BackendState]:
    address, port, protocol, state, generation, service = BACKEND.unpack(raw)
    text = unpack_ip(address.removeprefix(_MAPPED))
    at = Address(text, int.from_bytes(port, "big"), _protocol(protocol))
    return LiveBackend(at, generation, service, draining=state == BackendState.DRAINING), _known(BackendState, state)


def read_live(maps: Maps, numbers: Iterable[int] | None) -> Live:
    """What the maps hold for the service ports of these numbers (None: of all), and where there is room for more.

    Of thousands of other services little more is read than where their slots are.
    """
    changing = None if numbers is None else set(numbers)
    live = Live(
        slot_limit=maps["slots"].info.max_entries,
        backend_limit=maps["backends"].info.max_entries,
        whole=changing is None,
    )
    live.other_slots = lambda run: maps["slots"].words(run.first_slot, run.slot_count)
    _read_services(maps, live, changing)
    backends = maps["backends"].view()
    known = len(backends) // BACKEND.size  # greater numbers stand in slots that somebody wrote by hand
    for run, owner in {(run, one.number) for one in live.services.values() for run in one.runs}:
        live.slots[run.first_slot] = members = live.other_slots(run)
        for number in {one for one in members if one < known}:
            backend, state = _unpack_backend(backends[number * BACKEND.size : (number + 1) * BACKEND.size])
            if state is BackendState.ACTIVE and backend.service == owner:
                live.backends[number] = backend
    if changing is None:
        live.backends = dict(_backends_in(backends, BackendState.ACTIVE))
    for number, backend in _backends_in(backends, BackendState.DRAINING):
        if changing is None or backend.service in changing:
            live.backends[number] = backend
    live.free_backends = _free_backends(backends)
    live.targets = _Looked(maps, "targets", lambda at: at.family, pack_address, unpack_address, int)
    vips = _Looked(maps, "vips", Family.of, pack_ip, lambda key, _: unpack_ip(key), lambda one: _known(VipKind, one))
    live.guards = Guards(vips, {_unpack_range(key, family) for family, key, _ in _items(maps, "ranges")})
    if changing is None or len(changing) >= MANY:
        live.targets, live.guards.vips = dict(live.targets.items()), dict(vips.items())
    return live


def _read_services(maps: Maps, live: Live, changing: Collection[int] | None) -> None:
    """Those of these numbers (None: all), and ways to what is left in the bytes that were read."""
    parts = [_Services(family, *maps[f"services{family.suffix}"].raw()) for family in loaded_families(maps)]

    def called(*, own: bool) -> dict[Address, Called]:
        return dict(one for part in parts for one in part.called(changing, own=own))

    live.services = called(own=True)
    if changing is not None:
        live.other_services = lambda: called(own=False)
        live.other_runs = lambda: chain.from_iterable(part.runs() for part in parts)
        live.is_called = lambda address: any(part.is_called(address, changing) for part in parts)


class _Services:
    """The map of one family as it was read: of thousands of entries only those that are asked for become objects."""

    def __init__(self, family: Family, keys: bytes, values: bytes) -> None:
        self._family, self._keys, self._values = family, keys, values
        self._words = memoryview(values).cast("I")  # struct service: two runs, and in the fifth word the number
        self._size = _CALLED_AT[family].size

    def called(self, changing: Collection[int] | None, *, own: bool) -> Iterator[tuple[Address, Called]]:
        """The services of these numbers, or the others."""
        numbers = self._words[4 :: SERVICE.size // 4].tolist()
        chosen = {*numbers} if changing is None else {*changing}
        places = [place for place, number in enumerate(numbers) if (number in chosen) is own]
        for place in places:
            key = self._keys[place * self._size : (place + 1) * self._size]
            if _is_key("services", key, self._family):
                value = self._values[place * SERVICE.size : (place + 1) * SERVICE.size]
                yield unpack_address(key, self._family), unpack_called(value)

    def runs(self) -> Iterator[tuple[int, int]]:
        """Those of all services, each its first slot and their count; some more than once."""
        columns = [self._words[place :: SERVICE.size // 4].tolist() for place in range(4)]
        inside, outside = columns[:2], columns[2:]  # the same, where no service has a policy of its own
        return chain(zip(*inside, strict=True), () if outside == inside else zip(*outside, strict=True))

    def is_called(self, address: str, changing: Collection[int]) -> bool:
        """Whether a service of none of these numbers is called there, at any port."""
        packed = pack_ip(address)
        place = self._keys.find(packed) if len(packed) == self._family.address_size else -1
        while place != -1:
            entry, inside = divmod(place, self._size)
            if not inside and self._words[entry * SERVICE.size // 4 + 4] not in changing:
                return True
            place = self._keys.find(packed, place + 1)
        return False


_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class _Looked(Mapping[_Key, _Value]):
    """Each family's map of one kind, whose values are numbers: read where it is asked for, as it was then."""

    def __init__(
        self,
        maps: Maps,
        name: str,
        family_of: Callable[[_Key], Family],
        pack: Callable[[_Key], bytes],
        unpack: Callable[[bytes, Family], _Key],
        value: Callable[[int], _Value],
    ) -> None:
        self._maps, self._name, self._value = maps, name, value
        self._family_of, self._pack, self._unpack = family_of, pack, unpack
        self._families = loaded_families(maps)
        self._asked = 0
        self._all: Mapping[_Key, _Value] = {}

    def __getitem__(self, key: _Key) -> _Value:
        self._asked += 1
        if self._asked == MANY:
            self._all = dict(self.items())
        if self._asked >= MANY:
            return self._all[key]
        family = self._family_of(key)
        found = self._maps[self._name + family.suffix].lookup(self._pack(key)) if family in self._families else None
        if found is None:
            raise KeyError(key)
        return self._value(*_U32.unpack(found))

    def items(self) -> ItemsView[_Key, _Value]:
        """All at once, by batches."""
        entries = _items(self._maps, self._name)
        return {self._unpack(key, family): self._value(*_U32.unpack(one)) for family, key, one in entries}.items()

    def __iter__(self) -> Iterator[_Key]:
        return iter(dict(self.items()))

    def __len__(self) -> int:
        return len(self.items())


def _items(maps: Maps, name: str) -> Iterator[tuple[Family, bytes, bytes]]:
    """The entries of each family's map of this kind, but for strays."""
    for family in loaded_families(maps):
        for key, value in maps[name + family.suffix].items():
            if _is_key(name, key, family):
                yield family, key, value


def _is_key(name: str, key: bytes, family: Family) -> bool:
    """Whether a key is one that is ever written: what packs to another one could be neither found nor deleted."""
    if name in ("services", "targets"):
        return not key[-1] and key[-2] in PROTOCOL_NAMES
    if name == "ranges":
        length, _, address = _RANGES[family].unpack(key)
        bits = 8 * len(address)
        return 0 <= length - 32 <= bits and not int.from_bytes(address, "big") & ((1 << (32 + bits - length)) - 1)
    return True


def strays(maps: Maps) -> list[tuple[str, bytes]]:
    """The entries of maps, each by the map's name and its key, that no version writes: somebody did by hand."""
    return [
        (name + family.suffix, key)
        for name in ("services", "targets", "ranges")
        for family in loaded_families(maps)
        for key, _ in maps[name + family.suffix].items()
        if not _is_key(name, key, family)
    ]


def remove_strays(maps: Maps) -> None:
    """Deletes them."""
    for name, key in strays(maps):
        maps[name].delete(key)


_Kind = TypeVar("_Kind", bound=IntEnum)


def _known(kind: type[_Kind], number: int) -> _Kind:
    """The member of this number; what somebody wrote by hand stays a number, and equals none."""
    try:
        return kind(number)
    except ValueError:
        return cast("_Kind", number)


def _pack_range(one: SourceRange) -> bytes:
    network = ip_network(one.network)
    address = network.network_address.packed
    return _RANGES[Family.of(one.network)].pack(32 + network.prefixlen, one.service, address)


def _unpack_range(raw: bytes, family: Family) -> SourceRange:
    length, service, address = _RANGES[family].unpack(raw)
    return SourceRange(service, f"{unpack_ip(address)}/{length - 32}")


def read_members(maps: Maps) -> dict[str, MemberKind]:
    """The networks of all nodes, of the families that are loaded."""
    return {
        _unpack_network(key, family): _known(MemberKind, _U32.unpack(value)[0])
        for family, key, value in _items(maps, "networks")
    }


def _write_members(maps: Maps, change: MemberChange) -> None:
    loaded = loaded_families(maps)
    written = [(Family.of(one), _pack_network(one), _U32.pack(kind)) for one, kind in change.written.items()]
    removed = [(Family.of(one), _pack_network(one)) for one in change.removed]
    _update(maps, "networks", [one for one in written if one[0] in loaded])
    _delete(maps, "networks", [one for one in removed if one[0] in loaded])


def _pack_network(text: str) -> bytes:
    address, _, length = text.partition("/")
    return _NETWORKS[Family.of(address)].pack(int(length), pack_ip(address))


def _unpack_network(raw: bytes, family: Family) -> str:
    length, address = _NETWORKS[family].unpack(raw)
    return f"{unpack_ip(address)}/{length}"


def _free_backends(backends: bytes | mmap) -> Iterator[tuple[int, int]]:
    """Numbers that may be given, with their generation: never-used ones first, for flows may still name the others."""
    for state in (BackendState.UNUSED, BackendState.GONE):
        for number in _numbers_in(backends, state):
            yield number, BACKEND.unpack_from(backends, number * BACKEND.size)[4]


def _numbers_in(backends: bytes | mmap, state: BackendState) -> Iterator[int]:
    """The numbers of the backends in a state."""
    states = backends[_STATE_OFFSET :: BACKEND.size]
    number = states.find(state, 1)  # 0 means "no backend"
    while number != -1:
        yield number
        number = states.find(state, number + 1)


def _backends_in(backends: bytes | mmap, state: BackendState) -> Iterator[tuple[int, LiveBackend]]:
    """The backends in a state, with their numbers."""
    for number in _numbers_in(backends, state):
        yield number, _unpack_backend(backends[number * BACKEND.size : (number + 1) * BACKEND.size])[0]


def write(maps: Maps, change: Change) -> None:
    """Writes a change, in the order that plan.Change gives. Raises KernelError where a map is full."""
    for move in change.moves:
        _write_slots(maps, move.slots)
        _write_services(maps, move.services)
        wait_for_programs()  # their old slots are written next
    guards = change.guards
    _write_members(maps, change.members)
    _write_backends(maps, change.backends, BackendState.ACTIVE)
    _write_called(maps, "targets", change.targets, _pack_numbers)
    _write_slots(maps, change.slots)
    _update(maps, "vips", [(Family.of(at), pack_ip(at), _U32.pack(kind)) for at, kind in guards.vips.items()])
    # Who stays allowed by another range never notices; but where old and new ones have no room side by side
    crowded = any(
        len(maps["ranges" + family.suffix]) + more > maps["ranges" + family.suffix].info.max_entries
        for family, (more, _) in _ranges_moved(guards).items()
        if more
    )
    if crowded:
        _delete_ranges(maps, guards)
    _update(maps, "ranges", [(Family.of(one.network), _pack_range(one), _U32.pack(1)) for one in guards.ranges])
    _write_services(maps, change.services)
    _delete(maps, "services", [(at.family, pack_address(at)) for at in change.removed_services])
    _write_backends(maps, change.draining_backends, BackendState.DRAINING)
    _write_backends(maps, change.gone_backends, BackendState.GONE)
    _delete(maps, "targets", [(at.family, pack_address(at)) for at in change.removed_targets])
    _delete(maps, "vips", [(Family.of(at), pack_ip(at)) for at in guards.removed_vips])
    if not crowded:
        _delete_ranges(maps, guards)


def _delete_ranges(maps: Maps, guards: GuardChange) -> None:
    _delete(maps, "ranges", [(Family.of(one.network), _pack_range(one)) for one in guards.removed_ranges])


def _write_services(maps: Maps, services: Mapping[Address, Called]) -> None:
    _write_called(maps, "services", services, lambda each: b"".join(map(pack_called, each)))


def _write_called(
    maps: Maps, name: str, entries: Mapping[Address, _Value], pack: Callable[[Collection[_Value]], bytes]
) -> None:
    """Writes what stands at addresses and ports, each to its family's map of this kind."""
    six = [at for at in entries if ":" in at.address]
    four = [at for at in entries if ":" not in at.address] if six else [*entries]
    for family, places in ((Family.IPV4, four), (Family.IPV6, six)):
        if places:
            values = pack([entries[at] for at in places])
            maps[name + family.suffix].update_packed(_pack_addresses(places, family), values)


def _write_slots(maps: Maps, runs: Mapping[int, tuple[int, ...]]) -> None:
    """Writes runs, each with its first slot."""
    places = [place for first, run in runs.items() for place in range(first, first + len(run))]
    maps["slots"].update_packed(_pack_numbers(places), _pack_numbers([*chain.from_iterable(runs.values())]))


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
    values = b"".join([_pack_backend(one, state) for one in backends.values()])
    maps["backends"].update_packed(_pack_numbers(backends), values)


def check_members(maps: Maps, bound: int, count: Callable[[], Mapping[Family, int]]) -> None:
    """Raises KernelError where all nodes have more networks than a map has room for. They are counted, which takes its
    time, only where `bound`, which they are not more than, is too many, too.
    """
    for family in loaded_families(maps):
        table = maps["networks" + family.suffix]
        size = table.info.max_entries
        if bound > size and (needed := count().get(family, 0)) > size:
            raise KernelError(
                f"the map {table.contract.name!r} is full: it holds {size:,} entries, and all Nodes together have"
                f" {needed:,} podCIDRs and addresses",
                hint="apply fewer Nodes",
            )


def check_room(maps: Maps, change: Change, live: Live) -> None:
    """Raises KernelError, before anything is written, where a change to what is live does not fit."""
    _check_ranges(maps, change.guards)
    states = maps["backends"].view()[_STATE_OFFSET :: BACKEND.size] if change.targets else b""
    listening = states.count(BackendState.ACTIVE) + states.count(BackendState.DRAINING)  # there are no more targets
    called = [at for at in change.services if at not in live.services]
    for name, new in (("services", called), ("targets", [*change.targets])):
        for family in loaded_families(maps) if new else ():
            table = maps[name + family.suffix]
            if name == "services" or listening + len(new) > table.info.max_entries:
                _check_map(table, [at for at in new if at.family is family])


def _check_map(table: Map, new: list[Address]) -> None:
    keys = table.raw()[0] if new else b""
    size, needed = table.contract.key_size, len(keys) // table.contract.key_size + len(new)
    if needed > table.info.max_entries:  # it may be that some are there
        have = {keys[place : place + size] for place in range(0, len(keys), size)}
        needed -= sum(pack_address(at) in have for at in new)
    if needed > table.info.max_entries:
        raise KernelError(
            f"the map {table.contract.name!r} is full: it holds {table.info.max_entries:,} entries,"
            f" {needed:,} are needed",
            hint=f"load with a larger --max-{'backends' if table.contract.in_c == 'targets' else 'services'}",
        )


def _check_ranges(maps: Maps, guards: GuardChange) -> None:
    for family, (more, less) in _ranges_moved(guards).items():
        table = maps["ranges" + family.suffix]
        needed = len(table) + more - less if more > less else 0
        if needed > table.info.max_entries:
            raise KernelError(
                f"the map {table.contract.name!r} is full: it holds {table.info.max_entries:,} entries, and"
                f" {needed:,} loadBalancerSourceRanges of all services are needed",
                hint="load with a larger --max-services, of which it has a quarter",
            )


def _ranges_moved(guards: GuardChange) -> dict[Family, tuple[int, int]]:
    """How many source ranges of each family come, and go."""
    more, less = (Tally(Family.of(one.network) for one in those) for those in (guards.ranges, guards.removed_ranges))
    return {family: (more[family], less[family]) for family in {*more, *less}}


def counters(maps: Maps) -> dict[str, int]:
    """All counters by their lower-case names, summed over the CPUs."""
    table = maps["counters"]
    return {counter.name.lower(): table.total(_U32.pack(counter)) for counter in Counter}


def count_backends(maps: Maps) -> int:
    """How many backends take new flows, of all services together."""
    return maps["backends"].view()[_STATE_OFFSET :: BACKEND.size].count(BackendState.ACTIVE)


def read_backends(maps: Maps, numbers: Iterable[int]) -> dict[int, LiveBackend]:
    """These backends as the map has them, whatever their state."""
    table = maps["backends"]
    found = {}
    for number in set(numbers):
        raw = table.lookup(_U32.pack(number))
        if raw is not None:
            found[number] = _unpack_backend(raw)[0]
    return found
