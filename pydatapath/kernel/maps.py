"""The pinned maps of one instance, opened by their pins and checked against the contract before use."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache, cached_property
from mmap import MAP_SHARED, PROT_READ, mmap
from pathlib import Path
from typing import Final, Self

from pydatapath.errors import KernelError, LayoutError
from pydatapath.kernel import libbpf
from pydatapath.kernel.layout import BPF_F_MMAPABLE, MAPS, Change, MapContract, MapType

__all__ = ["Map", "Maps", "possible_cpus", "share", "wait_for_programs"]

BATCH: Final = 8192
# Batch calls for tries came later than the rest of what we need, for device maps never
_WITHOUT_BATCHES: Final = (MapType.LPM_TRIE, MapType.DEVMAP_HASH)


_U32: Final = struct.Struct("=I")
_U64: Final = struct.Struct("=Q")


class Map:
    """One map: single and batch operations on packed keys and values (bytes)."""

    def __init__(self, contract: MapContract, path: Path) -> None:
        self.contract = contract
        self.descriptor = libbpf.open_pin(str(path))
        self.info = libbpf.map_info(self.descriptor)

    @classmethod
    def as_found(cls, path: Path, contract: MapContract) -> Self:
        """A map of whatever sizes it has, such as another layout's of this name."""
        made = cls(contract, path)
        made.contract = replace(contract, key=made.info.key_size, value=made.info.value_size)
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the descriptor back; the pin keeps the map."""
        if "_memory" in vars(self) and self._memory is not None:
            self._memory.close()
        os.close(self.descriptor)

    def lookup(self, key: bytes) -> bytes | None:
        """The value at `key`, None where there is none."""
        return libbpf.lookup(self.descriptor, key, self._read_size)

    @property
    def _read_size(self) -> int:
        """Bytes that the kernel writes where a value is read: of a per-CPU map every CPU's, each filled up to words."""
        size = self.contract.value_size
        return self._stride * possible_cpus() if self.contract.type is MapType.PERCPU_ARRAY else size

    def update(self, key: bytes, value: bytes) -> None:
        """Writes one entry. Raises KernelError, naming the map and its size where it is full."""
        self._check(libbpf.update(self.descriptor, key, value))

    def insert(self, key: bytes, value: bytes) -> bool:
        """Writes an entry where there is none; False where there is one. Raises as `update`."""
        code = libbpf.update(self.descriptor, key, value, libbpf.BPF_NOEXIST)
        if code != errno.EEXIST:
            self._check(code)
        return code == 0

    def delete(self, key: bytes) -> bool:
        """Deletes one entry; False where there was none."""
        return libbpf.remove(self.descriptor, key)

    def update_many(self, entries: Mapping[bytes, bytes]) -> None:
        """Writes all entries by batch calls. Raises KernelError; then some may be written."""
        if self.contract.type in _WITHOUT_BATCHES:
            for key, value in entries.items():
                self.update(key, value)
            return
        self.update_packed(b"".join(entries), b"".join(entries.values()))

    def update_packed(self, keys: bytes, values: bytes) -> None:
        """`update_many` of a map that takes batches, with all keys and all values as `raw` gives them."""
        key_size, value_size = self.contract.key_size, self.contract.value_size
        count = len(keys) // key_size
        if count * value_size != len(values):
            raise ValueError(f"the map {self.contract.name!r} cannot be written: {count} keys have other values")
        for start in range(0, count, BATCH):
            end = min(start + BATCH, count)
            own, new = keys[start * key_size : end * key_size], values[start * value_size : end * value_size]
            self._check(libbpf.batch_write(self.descriptor, own, new, end - start))

    def delete_many(self, keys: Iterable[bytes]) -> None:
        """Deletes all these entries; those that are not there do not matter."""
        for key in keys:
            self.delete(key)

    def raw(self) -> tuple[bytes, bytes]:
        """All keys and all values, each as one run of bytes, in one order."""
        chunk = min(BATCH, self.info.max_entries)
        return libbpf.batch_read(self.descriptor, self.contract.key_size, self._read_size, chunk)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries, as they are while they are read: a map that changes meanwhile may show an entry or not."""
        key_size, value_size = self.contract.key_size, self._read_size
        if self.contract.type in _WITHOUT_BATCHES:
            for key in list(libbpf.keys(self.descriptor, key_size)):
                value = self.lookup(key)
                if value is not None:
                    yield key, value
            return
        keys, values = self.raw()
        for index in range(len(keys) // key_size):
            yield (
                keys[index * key_size : (index + 1) * key_size],
                values[index * value_size : (index + 1) * value_size],
            )

    def values(self) -> bytes:
        """All values as one run of bytes, in the order of the keys: the way to read an array.

        By memory, where the kernel gives it: a batch call takes some 0.3 us for each entry of an array.
        """
        return self.view()[:]

    def view(self) -> bytes | mmap:
        """As `values`, but by memory not a copy: what is written meanwhile is seen."""
        memory = self._memory
        return self.raw()[1] if memory is None or self.contract.value_size != self._stride else memory

    def words(self, first: int, count: int) -> tuple[int, ...]:
        """Some values of an array of numbers (4 bytes each, host order); fewer, where it ends before."""
        if (memory := self._memory) is not None:
            raw = memory[first * self._stride : (first + count) * self._stride]
            return tuple(memoryview(raw).cast("I")[::2])
        last = min(first + count, self.info.max_entries)
        values = (self.lookup(place.to_bytes(4, sys.byteorder)) for place in range(first, last))
        return tuple(int.from_bytes(value or b"", sys.byteorder) for value in values)

    @cached_property
    def _memory(self) -> mmap | None:
        """The values of an array where they lie in the kernel; None where an earlier version made it otherwise."""
        if not self.info.flags & BPF_F_MMAPABLE:
            return None
        return mmap(self.descriptor, self._stride * self.info.max_entries, MAP_SHARED, PROT_READ)

    @property
    def _stride(self) -> int:
        """Bytes from one value of an array to the next (array_map_alloc in kernel/bpf/arraymap.c)."""
        return self.contract.value_size + 7 & ~7

    def __len__(self) -> int:
        if self.contract.type in _WITHOUT_BATCHES:
            return sum(1 for _ in libbpf.keys(self.descriptor, self.contract.key_size))
        return len(self.raw()[0]) // self.contract.key_size

    def total(self, key: bytes) -> int:
        """The sum over all CPUs of a number in a per-CPU map."""
        value = libbpf.lookup(self.descriptor, key, 8 * possible_cpus())
        words = value or b""
        return sum(int.from_bytes(words[place : place + 8], "little") for place in range(0, len(words), 8))

    def _check(self, code: int) -> None:
        if code == 0:
            return
        name, size = self.contract.name, self.info.max_entries
        if code == errno.E2BIG:
            raise KernelError(f"the map {name!r} is full: it holds {size:,} entries", errno=code)
        raise KernelError(f"the map {name!r} cannot be written: {os.strerror(code)}", errno=code)


class _Endpoints(Map):
    """Who answers to an address. Programs keep what they have found until `changes` says that they must look again;
    also where nothing was written this time, for who wrote last may have been killed before he said so.
    """

    def __init__(self, contract: MapContract, path: Path, beside: Maps) -> None:
        super().__init__(contract, path)
        self._beside = beside

    def update(self, key: bytes, value: bytes) -> None:
        with self._told():
            super().update(key, value)

    def insert(self, key: bytes, value: bytes) -> bool:
        with self._told():
            return super().insert(key, value)

    def delete(self, key: bytes) -> bool:
        with self._told():
            return super().delete(key)

    def update_packed(self, keys: bytes, values: bytes) -> None:
        with self._told():
            super().update_packed(keys, values)

    def delete_many(self, keys: Iterable[bytes]) -> None:
        with self._told():
            for key in keys:
                super().delete(key)

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Raises the count that Python alone writes, one command at a time. No sum of both comes twice, not even where
        the counts begin again and what was kept does not: the clock outruns them.
        """
        assert self.contract.family
        changes, place = self._beside[f"changes{self.contract.family.suffix}"], _U32.pack(Change.TOLD)
        before = _U64.unpack(changes.lookup(place) or bytes(8))[0]
        try:
            yield
        finally:
            changes.update(place, _U64.pack(max(before + 1, time.monotonic_ns())))


class Maps:
    """The maps of an instance, each opened when first asked for. A context manager that closes them.

    Where a load has put another in a map's place meanwhile, it is that which is found; where it is gone, the one that
    was opened before.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._open: dict[str, Map] = {}
        self._pins: dict[str, tuple[int, int]] = {}  # which pin it was that each was opened by
        self._replaced: list[Map] = []  # somebody may still read in one of them

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes what was opened."""
        for one in (*self._open.values(), *self._replaced):
            one.close()
        self._open.clear()
        self._replaced.clear()

    def __getitem__(self, name: str) -> Map:
        """Raises LayoutError where the pin is not a map of our layout, KernelError where it is missing."""
        pin = _identity(self.directory / name)
        if name in self._open and pin not in (None, self._pins[name]):
            self._replaced.append(self._open.pop(name))
        if name not in self._open:
            if pin is None:
                raise KernelError(
                    f"the map {name!r} is no longer pinned at {self.directory / name}",
                    errno=errno.ENOENT,
                    hint="`pydatapath repair` mends it",
                )
            opened = self._opened(name)
            try:
                self._verify(opened)
            except LayoutError:
                opened.close()
                raise
            self._open[name], self._pins[name] = opened, pin
        return self._open[name]

    def _opened(self, name: str) -> Map:
        contract, path = MAPS[name], self.directory / name
        return _Endpoints(contract, path, self) if contract.in_c == "endpoints" else Map(contract, path)

    def _verify(self, opened: Map) -> None:
        contract, info = opened.contract, opened.info
        found = (info.type, info.key_size, info.value_size, info.flags)
        # That it can be mapped into memory is no matter of layout: an earlier version's arrays cannot
        flags = contract.shown_flags & (info.flags | ~BPF_F_MMAPABLE)
        wanted = (contract.type, contract.key_size, contract.value_size, flags)
        if found != wanted:
            words = "type {}, key {} bytes, value {} bytes, flags {}"
            raise LayoutError(
                f"{self.directory / contract.name} is not our map: {words.format(*found)} where "
                f"{words.format(*(int(number) for number in wanted))} is expected",
                hint="another version or program made it: `pydatapath unload` with that version, or remove the pin",
            )


def wait_for_programs() -> None:
    """Returns when no program runs any more that had found an entry before it was changed or deleted.

    Closing a packet socket waits for RCU's grace period (packet_release in net/packet/af_packet.c), and a tc program
    runs within one. Where there are no such sockets, the time that the writing took must do.
    """
    with contextlib.suppress(OSError), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0):
        pass


def _identity(pin: Path) -> tuple[int, int] | None:
    """What tells a pin from another that has its name later; None: there is none."""
    try:
        found = pin.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def share(pin: Path, other: Path) -> None:
    """Pins a map at another place, too. Raises KernelError."""
    descriptor = libbpf.open_pin(str(pin))
    try:
        libbpf.pin(descriptor, str(other))
    finally:
        os.close(descriptor)


@cache
def possible_cpus() -> int:
    """The kernel sizes per-CPU values by possible CPUs, a list such as 0-3,6 (see
    Documentation/admin-guide/cputopology.rst).
    """
    ranges = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")
    bounds = [(part.split("-") * 2)[:2] for part in ranges]
    return sum(int(last) - int(first) + 1 for first, last in bounds)
