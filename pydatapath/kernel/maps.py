"""The pinned maps of one instance, opened by their pins and checked against the contract before use."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, Self

from pydatapath.errors import KernelError, LayoutError
from pydatapath.kernel import libbpf
from pydatapath.kernel.layout import MAPS, MapContract, MapType

__all__ = ["Map", "Maps", "possible_cpus"]

BATCH: Final = 8192
# Batch calls for tries came later than the rest of what we need, for device maps never
_WITHOUT_BATCHES: Final = (MapType.LPM_TRIE, MapType.DEVMAP_HASH)


class Map:
    """One map: single and batch operations on packed keys and values (bytes)."""

    def __init__(self, contract: MapContract, path: Path) -> None:
        self.contract = contract
        self.descriptor = libbpf.open_pin(str(path))
        self.info = libbpf.map_info(self.descriptor)

    def close(self) -> None:
        """Gives the descriptor back; the pin keeps the map."""
        os.close(self.descriptor)

    def lookup(self, key: bytes) -> bytes | None:
        """The value at `key`, None where there is none."""
        return libbpf.lookup(self.descriptor, key, self.contract.value_size)

    def update(self, key: bytes, value: bytes) -> None:
        """Writes one entry. Raises KernelError, naming the map and its size where it is full."""
        self._check(libbpf.update(self.descriptor, key, value))

    def delete(self, key: bytes) -> bool:
        """Deletes one entry; False where there was none."""
        return libbpf.remove(self.descriptor, key)

    def update_many(self, entries: Mapping[bytes, bytes]) -> None:
        """Writes all entries by batch calls. Raises KernelError; then some may be written."""
        if self.contract.type in _WITHOUT_BATCHES:
            for key, value in entries.items():
                self.update(key, value)
            return
        items = list(entries.items())
        for start in range(0, len(items), BATCH):
            part = items[start : start + BATCH]
            keys, values = b"".join(key for key, _ in part), b"".join(value for _, value in part)
            self._check(libbpf.batch_write(self.descriptor, keys, values, len(part)))

    def delete_many(self, keys: Iterable[bytes]) -> None:
        """Deletes all these entries; those that are not there do not matter."""
        for key in keys:
            self.delete(key)

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries, as they are while they are read: a map that changes meanwhile may show an entry or not."""
        key_size, value_size = self.contract.key_size, self.contract.value_size
        if self.contract.type in _WITHOUT_BATCHES:
            for key in list(libbpf.keys(self.descriptor, key_size)):
                value = self.lookup(key)
                if value is not None:
                    yield key, value
            return
        keys, values = libbpf.batch_read(self.descriptor, key_size, value_size, min(BATCH, self.info.max_entries))
        for index in range(len(keys) // key_size):
            yield (
                keys[index * key_size : (index + 1) * key_size],
                values[index * value_size : (index + 1) * value_size],
            )

    def values(self) -> bytes:
        """All values as one run of bytes, in the order of the keys: the way to read an array."""
        contract = self.contract
        chunk = min(BATCH, self.info.max_entries)
        return libbpf.batch_read(self.descriptor, contract.key_size, contract.value_size, chunk)[1]

    def __len__(self) -> int:
        if self.contract.type in _WITHOUT_BATCHES:
            return sum(1 for _ in libbpf.keys(self.descriptor, self.contract.key_size))
        key_size, value_size = self.contract.key_size, self.contract.value_size
        keys, _ = libbpf.batch_read(self.descriptor, key_size, value_size, min(BATCH, self.info.max_entries))
        return len(keys) // key_size

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


class Maps:
    """The maps of an instance, each opened when first asked for. A context manager that closes them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._open: dict[str, Map] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes what was opened."""
        for one in self._open.values():
            one.close()
        self._open.clear()

    def __getitem__(self, name: str) -> Map:
        """Raises LayoutError where the pin is not a map of our layout, KernelError where it is missing."""
        if name not in self._open:
            opened = Map(MAPS[name], self.directory / name)
            try:
                self._verify(opened)
            except LayoutError:
                opened.close()
                raise
            self._open[name] = opened
        return self._open[name]

    def verify(self, sizes: Mapping[str, int]) -> None:
        """Checks every map that is pinned against the contract and these sizes (-D name to entries).

        bcc takes whatever lies at a pin's path, of any type or size (0.26), so it is looked at first.
        """
        for name, contract in MAPS.items():
            if (self.directory / name).exists():
                found, wanted = self[name].info.max_entries, sizes[contract.size]
                if found != wanted:
                    raise LayoutError(
                        f"the pinned map {self.directory / name} holds {found:,} entries, {wanted:,} are asked for",
                        hint="`pydatapath unload` first, or load with the sizes that it has",
                    )

    def _verify(self, opened: Map) -> None:
        contract, info = opened.contract, opened.info
        found = (info.type, info.key_size, info.value_size, info.flags)
        wanted = (contract.type, contract.key_size, contract.value_size, contract.shown_flags)
        if found != wanted:
            words = "type {}, key {} bytes, value {} bytes, flags {}"
            raise LayoutError(
                f"{self.directory / contract.name} is not our map: {words.format(*found)} where "
                f"{words.format(*(int(number) for number in wanted))} is expected",
                hint="another version or program made it: `pydatapath unload` with that version, or remove the pin",
            )


def possible_cpus() -> int:
    """The kernel sizes per-CPU values by possible CPUs, a list such as 0-3,6 (see
    Documentation/admin-guide/cputopology.rst).
    """
    ranges = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")
    bounds = [(part.split("-") * 2)[:2] for part in ranges]
    return sum(int(last) - int(first) + 1 for first, last in bounds)
