"""What open connections rely on, carried from the maps that run to others: of other sizes, or of another layout.

The new maps are made beside those that run and get their entries before the programs are exchanged; what has happened
to these meanwhile is carried afterwards. A map that keeps its size is the same one on both sides.

    maps_vN             the maps of layout N, which commands open
    maps_vN_next_*      some that are being made
    maps_vN_before_*    what maps_vN was, while programs are exchanged. A load that was killed leaves it: before the
                        exchange it is what runs, and goes back to its place; after it the next load, or a repair,
                        carries what it holds
"""

from __future__ import annotations

import os
import re
import socket
import sys
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from pydatapath import applying
from pydatapath.errors import LayoutError
from pydatapath.instance import Instance
from pydatapath.kernel import bpffs, clock, flowtable, restoring
from pydatapath.kernel.layout import LAYOUT_VERSION, LAYOUTS, MAPS, Family, MapContract, MapType
from pydatapath.kernel.maps import Map, Maps, possible_cpus, share
from pydatapath.records import Records

__all__ = ["MIGRATIONS", "Convert", "Move", "changed", "is_aside", "is_elsewhere", "prepare", "restore"]

Entries: TypeAlias = dict[bytes, bytes]
# An entry of an earlier layout as this one has it; None: it is left behind
Convert: TypeAlias = Callable[[bytes, bytes], tuple[bytes, bytes] | None]

# How maps of other layouts become this one's: {their version: {map: how}}. A map that is not named is taken as it is,
# and must have the sizes that it has now. What is not here breaks flows.
MIGRATIONS: Final[dict[int, Mapping[str, Convert]]] = {}

# These refer to each other by numbers: of another size, or not, they are new together, so that the programs that run
# never see a plan that is not theirs
_PLAN: Final = ("services", "targets", "slots", "backends")
# What packets change while programs are exchanged
_WRITTEN: Final = ("flows", "half_open", "fragments", "affinities", "mappings", "endpoints")
_FLOWS: Final = ("flows", "half_open")
_STAMPS: Final = ("last_seen", "last_used", "first_seen")  # fields of entries
_CARRIED: Final = (MapType.HASH, MapType.LRU_HASH, MapType.LPM_TRIE, MapType.ARRAY)
# An LRU map gives entries to CPUs by so many at a time (LOCAL_FREE_TARGET in kernel/bpf/bpf_lru_list.h)
_AT_A_TIME: Final = 128
_FEW: Final = 2000  # entries that are asked for one by one sooner than all there are


@dataclass
class _Source:
    """A folder from which entries are carried: those of these maps. `taken`: what was, as it was written."""

    directory: Path
    names: tuple[str, ...]
    converts: Mapping[str, Convert] | None = None  # None: of this layout
    taken: dict[str, Entries] = field(default_factory=dict)

    def entries(self, name: str, into: Map) -> Entries:
        """What the map holds, as this layout has it, where there is room for it."""
        contract = MAPS[name]
        with Map.as_found(self.directory / name, contract) as table:
            found = dict(_array(table, into) if contract.type is MapType.ARRAY else table.items())
        convert = (self.converts or {}).get(name)
        if convert is None:
            return found
        return dict(one for key, value in found.items() if (one := convert(key, value)) is not None)


@dataclass
class Move:
    """Which maps a load makes anew, and from where their entries come. With no source nothing moves. `made`: their
    names; None for all.
    """

    instance: Instance
    directory: Path
    sources: list[_Source]
    made: tuple[str, ...] | None = None
    aside: Path | None = None  # where the maps that ran are, once the others are in their place
    switched: bool = False

    @property
    def families(self) -> tuple[Family, ...]:
        """Those whose flows move from a table that runs to another of this layout."""
        return tuple(family for family in Family if f"flows{family.suffix}" in (self.made or ()))

    def carry(self, maps: Maps) -> None:
        """Before the exchange: all entries. Raises KernelError where a map is full."""
        for source in self.sources:
            for name in source.names:
                source.taken[name] = _carry(source.entries(name, maps[name]), {}, maps[name])
        _drop_lost_slots(maps, self.sources)

    def switch(self) -> None:
        """The new maps are in the place where commands look for them. (Two steps: see `restore`.)"""
        running = self.instance.map_pins
        if self.directory == running:
            return
        if running.exists():
            self.aside = self.instance.pins / f"{running.name}_before_{time.monotonic_ns()}"
            self._rename(running, self.aside)
        self.directory.rename(running)
        self.switched = True

    def _rename(self, directory: Path, now: Path) -> None:
        directory.rename(now)
        for source in self.sources:
            if source.directory == directory:
                source.directory = now

    def catch_up(self, maps: Maps) -> None:
        """Just before the exchange and just after it: what packets have changed since."""
        for source in self.sources:
            for name in source.names:
                if MAPS[name].in_c in _WRITTEN:
                    found = source.entries(name, maps[name])
                    source.taken[name] = _carry(found, source.taken[name], maps[name], runs=True)

    def switch_back(self) -> None:
        """The exchange has failed: the maps that ran are where they were."""
        if self.switched:
            self.instance.map_pins.rename(self.directory)
        if self.aside and self.aside.exists():
            self._rename(self.aside, self.instance.map_pins)

    def take_back(self) -> None:
        """The programs that ran do so again: what the others have done meanwhile is not lost."""
        if self.directory == self.instance.map_pins:
            return
        for source in self.sources if self.switched else ():
            if source.directory == self.instance.map_pins:
                with Maps(self.directory) as made, Maps(source.directory) as running:
                    for name in source.names:
                        if MAPS[name].in_c in _WRITTEN:
                            _carry(dict(made[name].items()), source.taken[name], running[name], forget=False)
        bpffs.remove_tree(self.directory)


def prepare(
    instance: Instance, sizes: Mapping[str, int], timeouts: Mapping[str, int], *, break_flows: bool = False
) -> Move:
    """Looks at what is there and says what must move, where maps of these sizes (-D name to entries) are asked for.

    Raises LayoutError where connections would break, unless that is asked for; then nothing is changed.
    """
    restore(instance)
    running = instance.map_pins
    sources = [_Source(path, _left(path, running)) for path in _aside(instance)]
    fresh = _fresh(instance)
    if not running.exists() and (others := _other_layouts(instance)):
        return Move(instance, fresh, _from_other_layouts(others, break_flows=break_flows))
    with Maps(running) as maps:
        other = changed(maps, sizes)
        if not other:
            return Move(instance, running, sources)
        if not break_flows:
            _refuse_loss(maps, sizes, timeouts)
    bpffs.make_private(fresh)
    for pin in running.iterdir():
        if pin.name not in other:
            share(pin, fresh / pin.name)
    return Move(instance, fresh, [*sources, _Source(running, other)], other)


def is_elsewhere(instance: Instance) -> bool:
    """Whether what runs has its maps in other folders: of another layout, or put aside by a load that was killed."""
    return not instance.map_pins.exists() and bool(_aside(instance) or _other_layouts(instance))


def is_aside(instance: Instance) -> bool:
    """Whether a load that was killed has put maps aside that programs may still use."""
    return bool(_aside(instance))


def _aside(instance: Instance) -> list[Path]:
    """What loads that were killed have put aside, the oldest first."""
    found = instance.pins.glob(f"{instance.map_pins.name}_before_*")
    return sorted((path for path in found if path.name.rpartition("_")[2].isdecimal()), key=_put_aside)


def _put_aside(aside: Path) -> int:
    """When that was, in ns of CLOCK_MONOTONIC."""
    return int(aside.name.rpartition("_")[2])


def restore(instance: Instance) -> None:
    """After a load that was killed behind the first step of `switch` and before the exchange: the maps that run are in
    their place. Who calls is in the instance's namespace.
    """
    left, running = _aside(instance), instance.map_pins
    if not left or (running.exists() and not _still_runs(left[-1], instance)):
        return
    _note_behind(instance, left[-1])
    over = _fresh(instance)
    names: tuple[str, ...] = ()
    if running.exists():
        names = _left(running, left[-1])
        running.rename(over)
    left[-1].rename(running)
    _bring_back(over, running, names, (time.monotonic_ns() - _put_aside(left[-1])) / 1e9)
    bpffs.remove_tree(over)


def _note_behind(instance: Instance, aside: Path) -> None:
    """It was the copy that got what the records say; of a family that was to come the maps that run know nothing."""
    if not instance.records.exists():
        return
    with Records(instance.records) as records:
        there = {
            fact: [one for one in records.get(fact, ()) if (aside / f"{table}{Family(one).suffix}").exists()]
            for fact, table in (("families", "services"), ("masqueraded", "mappings"))
        }
        records.put({**there, applying.UNFINISHED: True})


def _bring_back(over: Path, running: Path, names: Iterable[str], seconds: float) -> None:
    """What a load that failed, and was killed when its programs hung no more, had let open in the last seconds: all
    that is older in the copy is as it was, or has ended since.
    """
    now = clock.jiffies()
    for name in names:
        seen = _stamp(MAPS[name])
        with Map(MAPS[name], over / name) as made, Map(MAPS[name], running / name) as table:
            late = {key: one for key, one in made.items() if seen(one) and clock.age(seen(one), now) < seconds}
            _carry(late, {}, table, forget=False)


def _still_runs(aside: Path, instance: Instance) -> bool:
    """Whether the programs that hang use the maps that were put aside, and not those in their place."""
    used = restoring.hanging_maps(instance.name, (index for index, _ in socket.if_nameindex()))
    names = [one.name for one in aside.iterdir() if (instance.map_pins / one.name).exists()]
    before, now = ({restoring.map_id(path / one) for one in names} for path in (aside, instance.map_pins))
    return bool(used & (before - now)) and not used & (now - before)


def _fresh(instance: Instance) -> Path:
    """A name that no folder of maps has."""
    return instance.pins / f"{instance.map_pins.name}_next_{os.getpid()}_{time.monotonic_ns()}"


def _left(aside: Path, running: Path) -> tuple[str, ...]:
    """The maps of a killed load's other side that packets write, and that are not in use on this one."""
    names = [name for name, one in MAPS.items() if one.in_c in _WRITTEN and (aside / name).exists()]
    with Maps(aside) as before, Maps(running) as now:
        return tuple(
            name for name in names if not (running / name).exists() or now[name].info.id != before[name].info.id
        )


def changed(maps: Maps, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The maps that are there in another size, and those that must be new with them."""
    there = [one for one in MAPS.values() if (maps.directory / one.name).exists()]
    resized = {one.name for one in there if maps[one.name].info.max_entries != sizes[one.size]}
    plan = {one.name for one in there if one.in_c in _PLAN}
    return tuple(sorted(resized | plan if resized & plan else resized))


def _refuse_loss(maps: Maps, sizes: Mapping[str, int], timeouts: Mapping[str, int]) -> None:
    """Raises LayoutError where the new maps have no room for what is open."""
    open_flows, lost = Tally[int](), 0
    for flow, (backend, _), _ in flowtable.read_flows(maps, timeouts):
        open_flows[flow.family] += 1
        lost += backend >= sizes["MAX_BACKENDS"]
    entries = sizes["MAX_FLOW_ENTRIES"]
    room = (entries - min(_AT_A_TIME * possible_cpus(), entries // 4)) // 2
    most = max(open_flows.values(), default=0)
    if most > room:
        raise LayoutError(
            f"{most:,} connections are open, and --max-flows {entries // 2:,} has room for {room:,} of them:"
            f" the {most - room:,} that have been idle longest would be forgotten",
            hint="load with a larger --max-flows, or with --break-flows",
        )
    if lost:
        raise LayoutError(
            f"{lost:,} open connections go to backends whose numbers --max-backends {sizes['MAX_BACKENDS']:,} has no"
            " room for, and would be forgotten",
            hint="load with a larger --max-backends, or with --break-flows",
        )


def _other_layouts(instance: Instance) -> dict[int, Path]:
    """The folders of maps of other layouts."""
    found = ((re.fullmatch(r"maps_v(\d+)", path.name), path) for path in instance.pins.glob("maps_v*"))
    return {int(match[1]): path for match, path in found if match and any(path.iterdir())}


def _from_other_layouts(others: Mapping[int, Path], *, break_flows: bool) -> list[_Source]:
    sources = []
    for version, path in others.items():
        if version in MIGRATIONS:
            names = tuple(name for name, one in MAPS.items() if one.type in _CARRIED and (path / name).exists())
            sources.append(_Source(path, names, MIGRATIONS[version]))
        elif not break_flows:
            raise LayoutError(
                f"what is loaded keeps its connections in layout {version}, and this version's is {LAYOUT_VERSION}:"
                " all open connections would break",
                hint="load with --break-flows, or with the version that is loaded",
            )
    return sources


def _array(table: Map, into: Map) -> Iterable[tuple[bytes, bytes]]:
    """The entries of an array that are not all zeros, as far as another one has room; a new one is all zeros."""
    size, values = table.contract.value_size, table.values()
    for number in range(min(len(values) // size, into.info.max_entries)):
        value = values[number * size : (number + 1) * size]
        if any(value):
            yield number.to_bytes(4, "little"), value


def _carry(
    found: Entries, known: Mapping[bytes, bytes], into: Map, *, forget: bool = True, runs: bool = False
) -> Entries:
    """Writes what is new, or has changed since it was as `known`, and (`forget`) deletes what is gone since. Returns
    `found`. The longest idle come first: if somebody must leave a table that is too small, it is they. `runs`: packets
    may enter meanwhile what is new here (recalling.py), and that is newer.
    """
    changed = [(key, value) for key, value in found.items() if known.get(key) != value]
    over = [key for key in known if key not in found] if forget else []
    here = _standing(into, [*(key for key, _ in changed), *over])
    written: Entries = {}
    seen = _stamp(into.contract)
    for key, value in sorted(changed, key=lambda entry: seen(entry[1])):
        before, current = known.get(key), here.get(key)
        if (before is not None and current is None) or current == value:
            continue  # it has ended on the other side, or is there
        races = runs and current is None
        if races and into.insert(key, value):
            continue
        if current == before and not races:
            written[key] = value
        elif (latest := into.lookup(key)) is not None:
            # One by one: a packet may be counted between this reading and the writing, but hardly
            joined = _joined(into.contract, before, value, latest)
            if joined != latest:
                into.update(key, joined)
    into.update_many(written)
    into.delete_many(key for key in over if here.get(key) == known[key])
    return found


def _standing(table: Map, keys: Sequence[bytes]) -> Entries:
    """What a map holds at these keys, one by one where they are few; of an array nobody asks."""
    if table.contract.type is MapType.ARRAY:
        return {}
    if len(keys) > _FEW:
        return dict(table.items())
    return {key: value for key in keys if (value := table.lookup(key)) is not None}


def _stamp(contract: MapContract) -> Callable[[bytes], int]:
    """When an entry was used last, or seen first, where it says so; all others are as good as each other."""
    for name, place, size in () if isinstance(contract.value, int) else contract.value.shape:
        if name in _STAMPS:
            return lambda value: int.from_bytes(value[place : place + size], sys.byteorder)
    return lambda _: 0


def _joined(contract: MapContract, before: bytes | None, one: bytes, other: bytes) -> bytes:
    """An entry that two programs have written, each on its side, since it was as `before` on both: of a flow both have
    counted, and each may have seen an end. Of all else, and without a `before`, the newer one holds.
    """
    if before is None or contract.in_c not in _FLOWS:
        seen = _stamp(contract)
        return one if seen(one) > seen(other) > 0 else other  # 0: retired for who comes next (flow_retire)
    assert contract.family is not None
    flow = LAYOUTS[contract.family].flow.struct
    to, seen_last, packets, size, backend, generation, state, flags, *numbers = flow.unpack(one)
    here = flow.unpack(other)
    if to != here[0]:
        return other
    _, _, counted, counted_size, *_ = flow.unpack(before)
    return flow.pack(
        to,
        max(seen_last, here[1]),
        max(0, here[2] + packets - counted),
        max(0, here[3] + size - counted_size),
        backend,
        generation,
        max(state, here[6]),
        flags | here[7],
        *(here[8:] if here[6] >= state else numbers),
    )


def _drop_lost_slots(maps: Maps, sources: Iterable[_Source]) -> None:
    """Slots that lead to a backend's number for which there is no room lead nowhere, until all is planned anew."""
    limit = maps["backends"].info.max_entries if any("slots" in one.names for one in sources) else 0
    for source in sources:
        slots = source.taken.get("slots", {})
        lost = {key: bytes(4) for key, value in slots.items() if int.from_bytes(value, "little") >= limit}
        maps["slots"].update_many(lost)
