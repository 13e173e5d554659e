"""What of eBPF is in the kernel: ids, and which of them are a test's own.

Ids are asked for, and what has an id is opened once, when it is new. For who opens an array of tail calls by its id
while that goes may keep it for good. When its last descriptor or pin goes, the kernel takes a reference for the work
that empties it; opened and closed again before that work has begun, it takes another, which nobody gives back
(prog_array_map_clear in kernel/bpf/arraymap.c; seen on Linux 6.18, in 300 of 300 trials). `bpftool map` opens all
there are.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydatapath.errors import KernelError
from pydatapath.kernel import libbpf
from pydatapath.kernel.bpffs import BPFFS

__all__ = ["InKernel", "ids"]

KINDS = ("map", "prog")


@dataclass(frozen=True)
class _Seen:
    """`size`: a map's entries; `maps`: the ids of those that a program uses."""

    name: str
    size: int = 0
    maps: frozenset[int] = frozenset()


def ids(kind: str) -> set[int]:
    """The ids of all programs (`prog`) or maps (`map`), without opening any."""
    ask, found = getattr(libbpf.library(), f"bpf_{kind}_get_next_id"), set()
    number = ctypes.c_uint32(0)
    while ask(number, ctypes.byref(number)) == 0:
        found.add(number.value)
    return found


class InKernel:
    """Counts our maps and programs in the kernel, whoever holds them: a pin, a process, a filter, each other.

    Others may run beside us, with the same names. Ours is what has come since this was made and is pinned here, is open
    in this process or one that descends from it, or is a map of one of `sizes`; what uses these or is used by them; and
    what was ours before, since the kernel gives no id twice.
    """

    def __init__(self, sizes: Collection[int]) -> None:
        self._sizes = sizes
        self._before = {kind: ids(kind) for kind in KINDS}
        self._seen: dict[str, dict[int, _Seen]] = {kind: {} for kind in KINDS}
        self._known: dict[str, set[int]] = {kind: set() for kind in KINDS}
        self.names: list[str] = []  # of those that were there at the last look

    def __call__(self) -> dict[str, int]:
        """How many there are."""
        maps, programs = (self._look(kind) for kind in KINDS)
        sized = {number for number, one in maps.items() if one.size in self._sizes}
        held = _held()
        ours, using = self._known["map"] | held["map"] | sized, self._known["prog"] | held["prog"]
        while True:
            using |= {number for number, one in programs.items() if ours & one.maps}
            used = {each for number in using & programs.keys() for each in programs[number].maps}
            if used <= ours:
                break
            ours |= used
        # Others may have opened the array of tail calls just then, as above
        ours = {number for number in ours & maps.keys() if maps[number].name != "walks"}
        self._known = {"map": ours, "prog": using & programs.keys()}
        found = [(one, maps[one]) for one in self._known["map"]] + [(one, programs[one]) for one in self._known["prog"]]
        self.names = sorted(f"{one.name} {number}" for number, one in found)
        return {"maps": len(self._known["map"]), "programs": len(self._known["prog"])}

    def _look(self, kind: str) -> dict[int, _Seen]:
        """What has come since, by its ids."""
        there, seen = ids(kind) - self._before[kind], self._seen[kind]
        for number in there - seen.keys():
            with contextlib.suppress(KernelError):  # it has just gone
                seen[number] = _seen(kind, number)
        self._seen[kind] = {number: one for number, one in seen.items() if number in there}
        return self._seen[kind]


def _seen(kind: str, number: int) -> _Seen:
    if kind == "prog":
        with libbpf.opened(libbpf.open_program(number)) as descriptor:
            return _Seen(libbpf.program_info(descriptor).name, maps=frozenset(libbpf.maps_of(descriptor)))
    with libbpf.opened(libbpf.open_map(number)) as descriptor:
        info = libbpf.map_info(descriptor)
        return _Seen(info.name, info.max_entries)


def _held() -> dict[str, set[int]]:
    """The ids of maps and programs that are pinned here, or open in this process or one that descends from it."""
    found: dict[str, set[int]] = {"map": set(), "prog": set()}
    with contextlib.ExitStack() as stack:
        for path in (BPFFS / "pydatapath").rglob("*"):
            with contextlib.suppress(KernelError):  # a folder, or what has just gone
                stack.enter_context(libbpf.opened(libbpf.open_pin(str(path))))
        for process in _family(os.getpid()):
            for one in Path(f"/proc/{process}/fdinfo").glob("*"):
                with contextlib.suppress(OSError):
                    for kind, number in re.findall(r"^(map|prog)_id:\s*(\d+)", one.read_text(), re.MULTILINE):
                        found[kind].add(int(number))
    return found


def _family(process: int) -> Iterator[int]:
    """A process and all that descend from it."""
    yield process
    for task in Path(f"/proc/{process}/task").glob("*"):
        with contextlib.suppress(OSError):
            for child in (task / "children").read_text().split():
                yield from _family(int(child))
