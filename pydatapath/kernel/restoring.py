"""Pins that somebody took away are made anew, of the programs that still run and the maps that these use."""

from __future__ import annotations

import contextlib
import errno
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from pydatapath.errors import KernelError
from pydatapath.kernel import libbpf, tc
from pydatapath.kernel.layout import PROGRAM_ARRAY_SIZE, Hook, MapType

__all__ = ["hanging", "hanging_maps", "lost_maps", "lost_programs", "lost_tails", "map_id", "restore", "restore_maps"]

WALKS: Final = "walks"  # the array of tail calls, pinned beside the programs
_U32: Final = struct.Struct("=I")


def lost_programs(programs: Path, names: Iterable[str]) -> list[str]:
    """Those of these programs, and of their array, that are not pinned."""
    return [name for name in (*names, WALKS) if not (programs / name).exists()]


def lost_maps(maps: Path, programs: Path, names: Iterable[str]) -> dict[str, str]:
    """Those of these maps that are not pinned, or whose pin is another map than that of the pinned programs; each with
    what is wrong.
    """
    used = _maps_used(programs)
    found = {}
    for name in names:
        if not (maps / name).exists():
            found[name] = "is no longer pinned"
        elif name in used and map_id(maps / name) != used[name]:
            found[name] = "is pinned as another one than the programs use"
    return found


def lost_tails(programs: Path, places: Mapping[str, int]) -> list[str]:
    """The programs that the array of tail calls should lead to, by their places in it, and does not. All are pinned."""
    with libbpf.opened(libbpf.open_pin(str(programs / WALKS))) as walks:
        leads_to = _tails(walks)
    return [name for name, place in places.items() if leads_to.get(place) != _program_id(programs / name)]


def restore(
    maps: Path, programs: Path, wanted: Iterable[str], hooked: Mapping[str, int], places: Mapping[str, int]
) -> None:
    """Pins what is lost, as far as it can be found, and puts tail calls back; not the array of these.

    `wanted`: the names of all maps; `hooked`: the ids of the programs that hang somewhere, by name; `places`: the
    programs of the array of tail calls, each with its place there.
    """
    with contextlib.suppress(KernelError):  # what has ended meanwhile is not found
        _restore_programs(programs, hooked)
        used = _maps_used(programs)
        for name in lost_maps(maps, programs, wanted):
            if name in used:
                (maps / name).unlink(missing_ok=True)
                _pin(libbpf.open_map(used[name]), maps / name)
        # Without its pin the kernel empties it, in its own time, and again whenever somebody has opened and closed it:
        # then `load` makes another
        if (programs / WALKS).exists():
            _restore_tails(programs, places)


def restore_maps(maps: Path, programs: Path, lost: Iterable[str], hooked: Mapping[str, int]) -> None:
    """Pins these maps, whose pins are gone, as far as they can be found. `hooked`: as for `restore`."""
    with contextlib.suppress(KernelError):  # what has ended meanwhile is not found
        _restore_programs(programs, hooked)
        used = _maps_used(programs)
        for name in used.keys() & lost:
            _pin(libbpf.open_map(used[name]), maps / name)


def hanging(instance: str, interfaces: Iterable[int]) -> dict[str, int]:
    """The ids of an instance's programs that hang where `load` hangs them, at some interfaces (by index), by name."""
    return {hook.program: number for hook, number in _hooked(instance, interfaces)}


def _hooked(instance: str, interfaces: Iterable[int]) -> Iterator[tuple[Hook, int]]:
    for index in interfaces:
        for one in tc.filters(index):
            yield from ((hook, one.id) for hook in Hook if tc.is_at_its_place(one, instance, hook))


def hanging_maps(instance: str, interfaces: Iterable[int]) -> set[int]:
    """The ids of the maps that all programs which hang there use themselves, without their tail calls. Raises
    KernelError where that cannot be told.
    """
    found: set[int] = set()
    for number in {number for _, number in _hooked(instance, interfaces)}:
        try:
            descriptor = libbpf.open_program(number)
        except KernelError as error:
            if error.errno == errno.ENOENT:  # gone with its interface
                continue
            raise
        with libbpf.opened(descriptor) as program:
            found.update(libbpf.maps_of(program))
    return found


def _restore_programs(programs: Path, hooked: Mapping[str, int]) -> None:
    for name, number in hooked.items():
        if not (programs / name).exists():
            _pin(libbpf.open_program(number), programs / name)


def _pin(descriptor: int, path: Path) -> None:
    with libbpf.opened(descriptor):
        libbpf.pin(descriptor, str(path))


def map_id(path: Path) -> int:
    """The id of a pinned map. Raises KernelError where there is none."""
    with libbpf.opened(libbpf.open_pin(str(path))) as descriptor:
        return libbpf.map_info(descriptor).id


def _program_id(path: Path) -> int:
    with libbpf.opened(libbpf.open_pin(str(path))) as descriptor:
        return libbpf.program_info(descriptor).id


def _restore_tails(programs: Path, places: Mapping[str, int]) -> None:
    """Each way: a program that is in the array alone is pinned, one that is pinned alone is put there."""
    with libbpf.opened(libbpf.open_pin(str(programs / WALKS))) as walks:
        leads_to = _tails(walks)
        for name, place in places.items():
            path = programs / name
            if not path.exists() and place in leads_to:
                _pin(libbpf.open_program(leads_to[place]), path)
            elif path.exists() and leads_to.get(place) != _program_id(path):
                with libbpf.opened(libbpf.open_pin(str(path))) as program:
                    libbpf.update(walks, _U32.pack(place), _U32.pack(program))


def _maps_used(programs: Path) -> dict[str, int]:
    """The id of each map that the pinned programs use, by its name."""
    found = {}
    for path in sorted(programs.glob("*")):
        if path.name != WALKS:
            with libbpf.opened(libbpf.open_pin(str(path))) as program:
                for number in libbpf.maps_of(program):
                    with libbpf.opened(libbpf.open_map(number)) as descriptor:
                        found[libbpf.map_info(descriptor).name] = number
    return found


def _tails(walks: int) -> dict[int, int]:
    """The ids of the programs in an array of tail calls, by their places."""
    if libbpf.map_info(walks).type != MapType.PROG_ARRAY:
        raise KernelError("what is pinned as the array of tail calls is another map")
    entries = {place: libbpf.lookup(walks, _U32.pack(place), 4) for place in range(PROGRAM_ARRAY_SIZE)}
    return {place: _U32.unpack(value)[0] for place, value in entries.items() if value is not None}
