"""Programs that were compiled before: the same text and the same -D give the same instructions.

Compiling takes most of a load's time (0.6 of 0.9 s), and a reload, an upgrade or a crash's repair asks for what was
asked for before. What bcc made is kept, with its references to maps by name instead of by descriptor; the kernel's
verifier looks at it again at every load, as at any program. Without the cache, or with one that does not fit, the
compiler is asked: it can be deleted at any time.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydatapath.errors import DatapathError
from pydatapath.kernel import layout, libbpf
from pydatapath.kernel.bcc_child import SYSTEM_BCC
from pydatapath.version import __version__

__all__ = ["DIRECTORY", "Place", "create_maps", "key_of", "load", "save", "unpin", "usable"]

DIRECTORY: Final = Path("/var/cache/pydatapath")
KEPT: Final = 32  # entries; a host needs one, a laboratory some
WALKS: Final = "walks"
SCHED_CLS: Final = 3

_U32: Final = struct.Struct("=I")
_INSTRUCTION: Final = struct.Struct("=BBhi")
_LOAD_64_BITS: Final = 0x18  # BPF_LD | BPF_IMM | BPF_DW: two instructions long
_MAP_DESCRIPTOR: Final = 1  # BPF_PSEUDO_MAP_FD, in the source register's half byte


@dataclass(frozen=True)
class Place:
    """Where maps and programs are pinned, which maps these are, and their sizes by -D name."""

    map_directory: Path
    program_directory: Path
    maps: Mapping[str, layout.MapContract]
    sizes: Mapping[str, int]


def usable() -> bool:
    """Whether a look is worth it: something was kept, and PYDATAPATH_NO_CACHE (tests of the compiler) is not set."""
    return not os.environ.get("PYDATAPATH_NO_CACHE") and DIRECTORY.is_dir() and any(DIRECTORY.iterdir())


def key_of(parts: Sequence[Mapping[str, Any]]) -> str:
    """A name for what is asked of the compiler. Where pins lie is no part of it: no instruction knows it."""
    asked = [
        [part["text"], [flag for flag in part["cflags"] if "_DIRECTORY=" not in flag], part["programs"]]
        for part in parts
    ]
    shapes = [[one.name, _shape(one.key), _shape(one.value)] for one in layout.MAPS.values()]
    compiler = SYSTEM_BCC.stat().st_mtime_ns if SYSTEM_BCC.exists() else 0
    return hashlib.sha256(json.dumps([__version__, asked, shapes, compiler]).encode()).hexdigest()


def _shape(side: layout.Record | int) -> object:
    return side if isinstance(side, int) else side.shape


def save(key: str, programs: Mapping[str, Mapping[str, Any]]) -> None:
    """Keeps programs: {name: {"code": base64, "maps": {descriptor: map name}}}. A full disk does not matter."""
    with contextlib.suppress(OSError):
        DIRECTORY.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = DIRECTORY / f"{key}.{os.getpid()}"
        temporary.write_text(json.dumps(programs))
        temporary.rename(DIRECTORY / f"{key}.json")
        _forget_halves()
        # All but this one, whatever the others' times are: the clock may have been set back since
        others = [path for path in DIRECTORY.iterdir() if path.stem != key]
        for old in sorted(others, key=lambda path: path.stat().st_mtime)[: 1 - KEPT]:
            old.unlink()


def _forget_halves() -> None:
    """Of those that were killed while they kept something: their names end in their pids."""
    for half in DIRECTORY.glob("*.[0-9]*"):
        if not Path("/proc", half.suffix[1:]).exists():
            half.unlink()


def load(key: str, place: Place, places: Mapping[str, int]) -> bool:
    """Loads and pins what was kept under this key, making missing maps; `places`: the programs in the program array.

    False: the compiler must be asked.
    """
    try:
        _forget_halves()
        kept = _read(key)
        if kept is not None:
            _load(kept, place, places)
            return True
    except (DatapathError, OSError, ValueError, LookupError, TypeError):
        unpin(place.program_directory)
    return False


def _read(key: str) -> dict[str, dict[str, Any]] | None:
    """Only what root alone can have written is believed."""
    path = DIRECTORY / f"{key}.json"
    if not path.is_file():
        return None
    for place in (DIRECTORY, path):
        found = place.stat()
        if found.st_uid != 0 or found.st_mode & 0o022:
            return None
    programs: dict[str, dict[str, Any]] = json.loads(path.read_text())
    return programs


def create_maps(place: Place) -> None:
    """Makes and pins what is missing, so that of several compilers none does it while another looks."""
    with contextlib.ExitStack() as stack:
        _open_maps(stack, place)


def _open_maps(stack: contextlib.ExitStack, place: Place) -> dict[str, int]:
    """The descriptor of every map, the program array included, until the stack is closed; what is missing is made."""
    maps: dict[str, int] = {}
    for name, contract in place.maps.items():
        path = place.map_directory / name
        maps[name] = libbpf.open_pin(str(path)) if path.exists() else _create(contract, place.sizes, path)
        stack.callback(os.close, maps[name])
    maps[WALKS] = libbpf.create_map(layout.MapType.PROG_ARRAY, WALKS, 4, 4, layout.PROGRAM_ARRAY_SIZE)
    stack.callback(os.close, maps[WALKS])
    libbpf.pin(maps[WALKS], str(place.program_directory / WALKS))
    return maps


def _load(kept: Mapping[str, Mapping[str, Any]], place: Place, places: Mapping[str, int]) -> None:
    with contextlib.ExitStack() as stack:
        maps = _open_maps(stack, place)
        code = {
            name: _relocate(base64.b64decode(program["code"]), program["maps"], maps) for name, program in kept.items()
        }
        # Side by side: what the verifier looks at longest is IPv6's walk
        with ThreadPoolExecutor() as pool:
            asked = [pool.submit(libbpf.load_program, SCHED_CLS, code[name], name) for name in code]
        descriptors = dict(zip(code, (one.result() for one in asked), strict=True))
        for descriptor in descriptors.values():
            if descriptor >= 0:
                stack.callback(os.close, descriptor)
        for name, descriptor in descriptors.items():
            if descriptor < 0:
                raise ValueError(f"the kernel refuses the kept program {name}")
            libbpf.pin(descriptor, str(place.program_directory / name))
            index = places.get(name)
            if index is not None and libbpf.update(maps[WALKS], _U32.pack(index), _U32.pack(descriptor)) != 0:
                raise ValueError("the program array cannot be filled")


def _create(contract: layout.MapContract, sizes: Mapping[str, int], path: Path) -> int:
    descriptor = libbpf.create_map(
        contract.type, contract.name, contract.key_size, contract.value_size, sizes[contract.size], contract.flags
    )
    libbpf.pin(descriptor, str(path))
    return descriptor


def _relocate(code: bytes, names: Mapping[str, str], maps: Mapping[str, int]) -> bytes:
    """The instructions with the descriptors that maps have in this process."""
    result = bytearray(code)
    place = 0
    while place < len(result):
        operation, registers, offset, immediate = _INSTRUCTION.unpack_from(result, place)
        if operation == _LOAD_64_BITS:
            if registers >> 4 == _MAP_DESCRIPTOR:
                descriptor = maps[names[str(immediate)]]
                _INSTRUCTION.pack_into(result, place, operation, registers, offset, descriptor)
            place += _INSTRUCTION.size
        place += _INSTRUCTION.size
    return bytes(result)


def unpin(program_directory: Path) -> None:
    """Takes away all that is pinned there."""
    for path in program_directory.iterdir():
        path.unlink()
