"""A change of the plan is written to the maps in its safe order, once it is known that it has room there."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import chain
from typing import TypeVar

from pydatapath.errors import KernelError
from pydatapath.guarding import GuardChange
from pydatapath.kernel.layout import BACKEND, BackendState, Family
from pydatapath.kernel.maps import Map, Maps, wait_for_programs
from pydatapath.kernel.packing import (
    STATE_OFFSET,
    U32,
    pack_address,
    pack_addresses,
    pack_backend,
    pack_called,
    pack_ip,
    pack_network,
    pack_numbers,
    pack_range,
)
from pydatapath.kernel.tables import loaded_families
from pydatapath.membership import MemberChange
from pydatapath.plan import Address, Called, Change, Live, LiveBackend

__all__ = ["check_members", "check_room", "write"]

# A write's keys and values, for each family's map of one kind
_Entries = Iterable[tuple[Family, bytes, bytes]]
_Value = TypeVar("_Value")


def write(maps: Maps, change: Change) -> None:
    """Writes a change, in the order that plan.Change gives. Raises KernelError where a map is full."""
    for move in change.moves:
        _write_slots(maps, move.slots)
        _write_services(maps, move.services)
        wait_for_programs()  # their old slots are written next
    guards = change.guards
    _write_members(maps, change.members)
    _write_backends(maps, change.backends, BackendState.ACTIVE)
    _write_called(maps, "targets", change.targets, pack_numbers)
    _write_slots(maps, change.slots)
    _update(maps, "vips", [(Family.of(at), pack_ip(at), U32.pack(kind)) for at, kind in guards.vips.items()])
    # Who stays allowed by another range never notices; but where old and new ones have no room side by side
    crowded = any(
        len(maps["ranges" + family.suffix]) + more > maps["ranges" + family.suffix].info.max_entries
        for family, (more, _) in _ranges_moved(guards).items()
        if more
    )
    if crowded:
        _delete_ranges(maps, guards)
    _update(maps, "ranges", [(Family.of(one.network), pack_range(one), U32.pack(1)) for one in guards.ranges])
    _write_services(maps, change.services)
    _delete(maps, "services", [(at.family, pack_address(at)) for at in change.removed_services])
    _write_backends(maps, change.draining_backends, BackendState.DRAINING)
    _write_backends(maps, change.gone_backends, BackendState.GONE)
    _delete(maps, "targets", [(at.family, pack_address(at)) for at in change.removed_targets])
    _delete(maps, "vips", [(Family.of(at), pack_ip(at)) for at in guards.removed_vips])
    if not crowded:
        _delete_ranges(maps, guards)


def _delete_ranges(maps: Maps, guards: GuardChange) -> None:
    _delete(maps, "ranges", [(Family.of(one.network), pack_range(one)) for one in guards.removed_ranges])


def _write_members(maps: Maps, change: MemberChange) -> None:
    loaded = loaded_families(maps)
    written = [(Family.of(one), pack_network(one), U32.pack(kind)) for one, kind in change.written.items()]
    removed = [(Family.of(one), pack_network(one)) for one in change.removed]
    _update(maps, "networks", [one for one in written if one[0] in loaded])
    _delete(maps, "networks", [one for one in removed if one[0] in loaded])


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
            maps[name + family.suffix].update_packed(pack_addresses(places, family), values)


def _write_slots(maps: Maps, runs: Mapping[int, tuple[int, ...]]) -> None:
    """Writes runs, each with its first slot."""
    places = [place for first, run in runs.items() for place in range(first, first + len(run))]
    maps["slots"].update_packed(pack_numbers(places), pack_numbers([*chain.from_iterable(runs.values())]))


def _write_backends(maps: Maps, backends: Mapping[int, LiveBackend], state: BackendState) -> None:
    values = b"".join([pack_backend(one, state) for one in backends.values()])
    maps["backends"].update_packed(pack_numbers(backends), values)


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
    states = maps["backends"].view()[STATE_OFFSET :: BACKEND.size] if change.targets else b""
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
