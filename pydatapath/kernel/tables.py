"""What is live in the maps, as the plan sees it.

Maps that hold addresses are there once for each family that is loaded; an address's family says which is meant.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, ItemsView, Iterable, Iterator, Mapping
from itertools import chain
from mmap import mmap
from typing import Final, TypeVar

from pydatapath.guarding import Guards
from pydatapath.kernel.layout import (
    BACKEND,
    MAPS,
    PROTOCOL_NAMES,
    SERVICE,
    BackendState,
    Counter,
    Family,
    MemberKind,
    VipKind,
)
from pydatapath.kernel.maps import Maps
from pydatapath.kernel.packing import (
    CALLED_AT,
    RANGES,
    STATE_OFFSET,
    U32,
    as_member,
    pack_address,
    pack_ip,
    unpack_address,
    unpack_backend,
    unpack_called,
    unpack_ip,
    unpack_network,
    unpack_range,
)
from pydatapath.plan import Address, Called, Live, LiveBackend

__all__ = [
    "count_backends",
    "counters",
    "loaded_families",
    "read_backends",
    "read_live",
    "read_members",
    "remove_strays",
    "strays",
]

# After so many entries that were read one by one a map is read as a whole: that takes as long as 200 to 4,000 of them
MANY: Final = 1000

_OF_IPV6: Final = tuple(name for name, contract in MAPS.items() if contract.family is Family.IPV6)
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def loaded_families(maps: Maps) -> list[Family]:
    """The families whose maps are there. IPv4's always are, or asking for one says which is not."""
    there = any((maps.directory / name).exists() for name in _OF_IPV6)
    return [Family.IPV4, Family.IPV6] if there else [Family.IPV4]


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
            backend, state = unpack_backend(backends[number * BACKEND.size : (number + 1) * BACKEND.size])
            if state is BackendState.ACTIVE and backend.service == owner:
                live.backends[number] = backend
    if changing is None:
        live.backends = dict(_backends_in(backends, BackendState.ACTIVE))
    for number, backend in _backends_in(backends, BackendState.DRAINING):
        if changing is None or backend.service in changing:
            live.backends[number] = backend
    live.free_backends = _free_backends(backends)
    live.targets = _Looked(maps, "targets", lambda at: at.family, pack_address, unpack_address, int)
    vips = _Looked(maps, "vips", Family.of, pack_ip, lambda key, _: unpack_ip(key), lambda one: as_member(VipKind, one))
    live.guards = Guards(vips, {unpack_range(key, family) for family, key, _ in _items(maps, "ranges")})
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
        self._size = CALLED_AT[family].size

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
        return self._value(*U32.unpack(found))

    def items(self) -> ItemsView[_Key, _Value]:
        """All at once, by batches."""
        entries = _items(self._maps, self._name)
        return {self._unpack(key, family): self._value(*U32.unpack(one)) for family, key, one in entries}.items()

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
        length, _, address = RANGES[family].unpack(key)
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


def read_members(maps: Maps) -> dict[str, MemberKind]:
    """The networks of all nodes, of the families that are loaded."""
    return {
        unpack_network(key, family): as_member(MemberKind, U32.unpack(value)[0])
        for family, key, value in _items(maps, "networks")
    }


def _free_backends(backends: bytes | mmap) -> Iterator[tuple[int, int]]:
    """Numbers that may be given, with their generation: never-used ones first, for flows may still name the others."""
    for state in (BackendState.UNUSED, BackendState.GONE):
        for number in _numbers_in(backends, state):
            yield number, BACKEND.unpack_from(backends, number * BACKEND.size)[4]


def _numbers_in(backends: bytes | mmap, state: BackendState) -> Iterator[int]:
    """The numbers of the backends in a state."""
    states = backends[STATE_OFFSET :: BACKEND.size]
    number = states.find(state, 1)  # 0 means "no backend"
    while number != -1:
        yield number
        number = states.find(state, number + 1)


def _backends_in(backends: bytes | mmap, state: BackendState) -> Iterator[tuple[int, LiveBackend]]:
    """The backends in a state, with their numbers."""
    for number in _numbers_in(backends, state):
        yield number, unpack_backend(backends[number * BACKEND.size : (number + 1) * BACKEND.size])[0]


def counters(maps: Maps) -> dict[str, int]:
    """All counters by their lower-case names, summed over the CPUs."""
    table = maps["counters"]
    return {counter.name.lower(): table.total(U32.pack(counter)) for counter in Counter}


def count_backends(maps: Maps) -> int:
    """How many backends take new flows, of all services together."""
    return maps["backends"].view()[STATE_OFFSET :: BACKEND.size].count(BackendState.ACTIVE)


def read_backends(maps: Maps, numbers: Iterable[int]) -> dict[int, LiveBackend]:
    """These backends as the map has them, whatever their state."""
    table = maps["backends"]
    found = {}
    for number in set(numbers):
        raw = table.lookup(U32.pack(number))
        if raw is not None:
            found[number] = unpack_backend(raw)[0]
    return found
