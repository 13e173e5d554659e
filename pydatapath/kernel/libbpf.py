"""The few functions of libbpf.so.1 that we call, by ctypes: 7 ms to import, where bcc takes 60 ms and 70 MB.

Each takes and gives plain Python; a failed call becomes a KernelError that names the call and the object.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Final, NamedTuple, NoReturn

from pydatapath.errors import KernelError, Unsupported
from pydatapath.kernel.capabilities import what_is_missing

__all__ = [
    "BPF_ANY",
    "BPF_NOEXIST",
    "MapInfo",
    "ProgramInfo",
    "RunResult",
    "batch_read",
    "batch_write",
    "create_map",
    "keys",
    "library",
    "load_program",
    "lookup",
    "map_info",
    "map_memory",
    "open_pin",
    "pin",
    "program_info",
    "remove",
    "run",
    "update",
]

BPF_ANY = 0
BPF_NOEXIST = 1
ENOENT = 2
EINTR = 4
ENOSPC = 28
FIRST_CHUNK = 64  # entries that a map is first asked for


_CALLS: Final = (
    *("bpf_map_create", "bpf_map_delete_elem", "bpf_map_get_fd_by_id", "bpf_map_get_next_key", "bpf_map_lookup_batch"),
    *("bpf_map_lookup_elem", "bpf_map_update_batch", "bpf_map_update_elem", "bpf_obj_get", "bpf_obj_get_info_by_fd"),
    *("bpf_obj_pin", "bpf_prog_get_fd_by_id", "bpf_prog_load", "bpf_prog_test_run_opts"),
)


class _MapInfo(ctypes.Structure):
    """struct bpf_map_info, its first fields (include/uapi/linux/bpf.h)."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("name", ctypes.c_char * 16),
    )


class _ProgramInfo(ctypes.Structure):
    """struct bpf_prog_info, its first fields."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_uint8 * 8),
        ("jited_prog_len", ctypes.c_uint32),
        ("xlated_prog_len", ctypes.c_uint32),
        ("jited_prog_insns", ctypes.c_uint64),
        ("xlated_prog_insns", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * 16),
    )


class _RunOptions(ctypes.Structure):
    """struct bpf_test_run_opts (tools/lib/bpf/bpf.h)."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    )


class _MapCreateOptions(ctypes.Structure):
    """struct bpf_map_create_opts (tools/lib/bpf/bpf.h, libbpf 1.1)."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("btf_fd", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("map_extra", ctypes.c_uint64),
        ("numa_node", ctypes.c_uint32),
        ("map_ifindex", ctypes.c_uint32),
    )


class MapInfo(NamedTuple):
    """What the kernel says of a map. `type` is enum bpf_map_type, sizes in bytes."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


class ProgramInfo(NamedTuple):
    """What the kernel says of a program: its id, its tag (hash of its instructions, hex), its name."""

    id: int
    tag: str
    name: str


class RunResult(NamedTuple):
    """What BPF_PROG_TEST_RUN gives back: the program's return value, the packet, the context, ns for one run."""

    verdict: int
    packet: bytes
    context: bytes
    nanoseconds: int


@cache
def library() -> ctypes.CDLL:
    """libbpf.so.1. Raises Unsupported with the package to install where it is missing."""
    try:
        found = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError:
        raise Unsupported("libbpf.so.1 is not installed", hint="apt install libbpf1") from None
    found.libbpf_set_print(None)
    for name in _CALLS:
        getattr(found, name).errcheck = _repeating(found[name])
    return found


def _repeating(call: Callable[..., int]) -> Callable[[int, object, tuple[Any, ...]], int]:
    """Calls again what a signal has interrupted, as Python does with its own calls (PEP 475).

    bpf(2) is interrupted where a seccomp filter asks a supervisor (SECCOMP_RET_USER_NOTIF), as around some containers.
    A handler that raises ends this all the same: Python runs it before.
    """

    def again(code: int, _: object, arguments: tuple[Any, ...]) -> int:
        while code == -EINTR:
            code = call(*arguments)
        return code

    return again


def _fail(code: int, call: str, what: str) -> NoReturn:
    number = -code if code < -1 else ctypes.get_errno()
    hint = what_is_missing() if number == errno.EPERM else ""
    raise KernelError(f"{what}: {call} failed: {os.strerror(number)}", errno=number, hint=hint)


def open_pin(path: str) -> int:
    """A file descriptor of the object pinned at `path`, closed on exec. Raises KernelError."""
    descriptor: int = library().bpf_obj_get(path.encode())
    if descriptor < 0:
        _fail(descriptor, "BPF_OBJ_GET", path)
    os.set_inheritable(descriptor, False)
    return descriptor


@contextlib.contextmanager
def opened(descriptor: int) -> Iterator[int]:
    """Closes a descriptor at the end of the block."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def pin(descriptor: int, path: str) -> None:
    """Pins the object at `path`, readable and writable by root alone. Raises KernelError."""
    code = library().bpf_obj_pin(descriptor, path.encode())
    if code < 0:
        _fail(code, "BPF_OBJ_PIN", path)
    os.chmod(path, 0o600)


def _info(descriptor: int, info: ctypes.Structure) -> None:
    size = ctypes.c_uint32(ctypes.sizeof(info))
    code = library().bpf_obj_get_info_by_fd(descriptor, ctypes.byref(info), ctypes.byref(size))
    if code < 0:
        _fail(code, "BPF_OBJ_GET_INFO_BY_FD", f"descriptor {descriptor}")


def map_info(descriptor: int) -> MapInfo:
    """Type, sizes and flags of a map. A program's descriptor gives nonsense: know what you open."""
    raw = _MapInfo()
    _info(descriptor, raw)
    return MapInfo(
        raw.type,
        raw.id,
        raw.key_size,
        raw.value_size,
        raw.max_entries,
        raw.map_flags,
        raw.name.decode("ascii", "replace"),
    )


def map_memory(descriptor: int) -> int:
    """Bytes that the kernel has set aside for a map (Documentation/filesystems/proc.rst, fdinfo of bpf maps)."""
    with open(f"/proc/self/fdinfo/{descriptor}") as lines:
        return next((int(line.split()[1]) for line in lines if line.startswith("memlock:")), 0)


def program_info(descriptor: int) -> ProgramInfo:
    """Id, tag and name of a program."""
    raw = _ProgramInfo()
    _info(descriptor, raw)
    return ProgramInfo(raw.id, bytes(raw.tag).hex(), raw.name.decode("ascii", "replace"))


def open_program(number: int) -> int:
    """A descriptor of the program that has this id. Raises KernelError."""
    descriptor: int = library().bpf_prog_get_fd_by_id(number)
    if descriptor < 0:
        _fail(descriptor, "BPF_PROG_GET_FD_BY_ID", f"program {number}")
    return descriptor


def open_map(number: int) -> int:
    """A descriptor of the map that has this id. Raises KernelError."""
    descriptor: int = library().bpf_map_get_fd_by_id(number)
    if descriptor < 0:
        _fail(descriptor, "BPF_MAP_GET_FD_BY_ID", f"map {number}")
    return descriptor


def maps_of(descriptor: int) -> list[int]:
    """The ids of the maps that a program uses."""
    ids = (ctypes.c_uint32 * 64)()
    raw = _ProgramInfo(nr_map_ids=len(ids), map_ids=ctypes.addressof(ids))
    _info(descriptor, raw)
    return list(ids[: min(raw.nr_map_ids, len(ids))])


def lookup(descriptor: int, key: bytes, value_size: int) -> bytes | None:
    """The value at `key`, None where there is none. For per-CPU maps `value_size` is that of all CPUs together."""
    value = ctypes.create_string_buffer(value_size)
    code = library().bpf_map_lookup_elem(descriptor, key, value)
    if code == -ENOENT:
        return None
    if code < 0:
        _fail(code, "BPF_MAP_LOOKUP_ELEM", f"map descriptor {descriptor}")
    return value.raw


def update(descriptor: int, key: bytes, value: bytes, flags: int = BPF_ANY) -> int:
    """Writes one entry. Returns 0 or the errno, for the caller knows the map's name."""
    code: int = library().bpf_map_update_elem(descriptor, key, value, ctypes.c_uint64(flags))
    return -code


def remove(descriptor: int, key: bytes) -> bool:
    """Deletes one entry. False where there was none."""
    code = library().bpf_map_delete_elem(descriptor, key)
    if code == -ENOENT:
        return False
    if code < 0:
        _fail(code, "BPF_MAP_DELETE_ELEM", f"map descriptor {descriptor}")
    return True


def keys(descriptor: int, key_size: int) -> Iterator[bytes]:
    """Every key, one by one: for maps without batch calls."""
    key, following = None, ctypes.create_string_buffer(key_size)
    while True:
        code = library().bpf_map_get_next_key(descriptor, key, following)
        if code == -ENOENT:
            return
        if code < 0:
            _fail(code, "BPF_MAP_GET_NEXT_KEY", f"map descriptor {descriptor}")
        key = following.raw
        yield key


def batch_read(descriptor: int, key_size: int, value_size: int, most: int) -> tuple[bytes, bytes]:
    """All keys and all values, each as one run of bytes. `most` entries a call, which fit one hash bucket at least.

    The first call asks for fewer: most maps hold few entries, and clearing room for many takes longer than reading.
    """
    keys, values = bytearray(), bytearray()
    # The kernel's cursor: a key for arrays, a bucket number (4 bytes) for hashes
    cursor = ctypes.create_string_buffer(max(key_size, 4))
    started, done, chunk = None, False, min(FIRST_CHUNK, most)
    while not done:
        key_buffer = ctypes.create_string_buffer(key_size * chunk)
        value_buffer = ctypes.create_string_buffer(value_size * chunk)
        count = ctypes.c_uint32(chunk)
        code = library().bpf_map_lookup_batch(
            descriptor, started, cursor, key_buffer, value_buffer, ctypes.byref(count), None
        )
        fits = code != -ENOSPC or chunk == most  # else not even one bucket did, and nothing was read
        if code < 0 and code != -ENOENT and fits:
            _fail(code, "BPF_MAP_LOOKUP_BATCH", f"map descriptor {descriptor}")
        if fits:
            keys += memoryview(key_buffer)[: count.value * key_size]
            values += memoryview(value_buffer)[: count.value * value_size]
            started, done = cursor, code == -ENOENT
        chunk = min(chunk * 8, most)
    return bytes(keys), bytes(values)


def batch_write(descriptor: int, keys: bytes, values: bytes, count: int) -> int:
    """Writes `count` entries in one call. Returns 0 or the errno; entries before the failing one are written."""
    number = ctypes.c_uint32(count)
    code: int = library().bpf_map_update_batch(descriptor, keys, values, ctypes.byref(number), None)
    return -code


def run(descriptor: int, packet: bytes, context: bytes = b"", repeat: int = 1) -> RunResult:
    """Runs a program on a packet, by BPF_PROG_TEST_RUN (Documentation/bpf/bpf_prog_run.rst).

    `context` is a struct __sk_buff. A redirect is only reported as the verdict, no packet is sent.
    """
    room = len(packet) + 512
    packet_in, packet_out = ctypes.create_string_buffer(packet, len(packet)), ctypes.create_string_buffer(room)
    context_out = ctypes.create_string_buffer(max(len(context), 192))
    options = _RunOptions(
        sz=ctypes.sizeof(_RunOptions),
        data_in=ctypes.cast(packet_in, ctypes.c_void_p),
        data_out=ctypes.cast(packet_out, ctypes.c_void_p),
        data_size_in=len(packet),
        data_size_out=room,
        ctx_out=ctypes.cast(context_out, ctypes.c_void_p),
        ctx_size_out=len(context_out),
        repeat=repeat,
    )
    if context:
        context_in = ctypes.create_string_buffer(context, len(context))
        options.ctx_in = ctypes.cast(context_in, ctypes.c_void_p)
        options.ctx_size_in = len(context)
    code = library().bpf_prog_test_run_opts(descriptor, ctypes.byref(options))
    if code < 0:
        _fail(code, "BPF_PROG_TEST_RUN", f"program descriptor {descriptor}")
    return RunResult(
        options.retval,
        packet_out.raw[: options.data_size_out],
        context_out.raw[: options.ctx_size_out],
        options.duration,
    )


def create_map(map_type: int, name: str, key_size: int, value_size: int, max_entries: int, flags: int = 0) -> int:
    """Makes a map and returns its descriptor. Sizes in bytes, `flags` of BPF_MAP_CREATE. Raises KernelError."""
    options = _MapCreateOptions(sz=ctypes.sizeof(_MapCreateOptions), map_flags=flags)
    descriptor: int = library().bpf_map_create(
        map_type, name.encode(), key_size, value_size, max_entries, ctypes.byref(options)
    )
    if descriptor < 0:
        _fail(descriptor, "BPF_MAP_CREATE", f"map {name!r}")
    return descriptor


def load_program(program_type: int, instructions: bytes, name: str) -> int:
    """Loads instructions (8 bytes each) and returns a descriptor, or a negative errno without the verifier's log."""
    text: Any = ctypes.create_string_buffer(instructions, len(instructions))
    return int(
        library().bpf_prog_load(
            program_type, name.encode(), b"GPL", text, ctypes.c_size_t(len(instructions) // 8), None
        )
    )
