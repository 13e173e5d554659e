"""What this host must have, tried rather than deduced from a version: the checks of `pydatapath doctor`.

Each check gives yes or no, with what was found and what to do about it. The version named is the cross-check and the
documentation, never a branch.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydatapath.errors import DatapathError, KernelError
from pydatapath.kernel import bpffs, libbpf, netns
from pydatapath.kernel.layout import BPF_F_MMAPABLE, MapType

__all__ = ["Check", "Feature", "checks", "features", "lacking"]

CLONE_NEWNET: Final = 0x40000000
SCHED_CLS: Final = 3
LOOPBACK: Final = 1  # the index of `lo` in every new namespace

# include/uapi/linux/bpf.h, enum bpf_func_id
FIB_LOOKUP, JIFFIES64, REDIRECT_NEIGH, REDIRECT_PEER = 69, 118, 152, 155


@dataclass(frozen=True)
class Check:
    """One thing the host needs. `remedy` is what to do where it is not there."""

    name: str
    found: bool
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Feature:
    """One thing that the kernel can do since a version. `attempt` tries it and returns the errno, 0 where it works."""

    name: str
    since: str
    attempt: Callable[[], int]


def checks(check_folders: Callable[[], None]) -> Iterator[Check]:
    """All checks, in the order in which they build on each other. `check_folders` raises DatapathError where a folder
    of ours is not root's alone.
    """
    yield Check("kernel", True, platform.release())
    yield _privileges()
    yield _bpf_file_system()
    yield _libbpf()
    yield _bcc()
    yield _headers()
    yield _pyroute2()
    yield _jit()
    if os.geteuid() == 0:
        yield _folders(check_folders)
        yield from map(_feature, features())
        yield _clsact()


def _privileges() -> Check:
    root = os.geteuid() == 0
    return Check("root", root, "uid 0" if root else f"uid {os.geteuid()}", "run it with sudo")


def _bpf_file_system() -> Check:
    mounted = bpffs.is_mounted()
    detail = f"mounted at {bpffs.BPFFS}" if mounted else f"nothing at {bpffs.BPFFS}; load mounts it"
    return Check("bpf file system", mounted, detail, bpffs.MOUNT)


def _folders(check: Callable[[], None]) -> Check:
    try:
        check()
    except DatapathError as error:
        return Check("folders of root alone", False, str(error), error.hint)
    return Check("folders of root alone", True, "those of pins and records, where there are any")


def _libbpf() -> Check:
    try:
        libbpf.library()
    except KernelError as error:
        return Check("libbpf", False, str(error), error.hint)
    return Check("libbpf", True, "libbpf.so.1")


def _bcc() -> Check:
    from pydatapath.kernel.bcc_child import find_bcc

    found = find_bcc()
    if found is None:
        return Check("bcc", False, "not installed", "apt install python3-bpfcc (PyPI's `bcc` is another thing)")
    return Check("bcc", True, f"{found.__version__} in {Path(str(found.__file__)).parent}")


def _headers() -> Check:
    place = Path("/usr/include/linux/ip.h")
    return Check("UAPI headers", place.is_file(), str(place.parent), "apt install linux-libc-dev")


def _pyroute2() -> Check:
    from importlib import metadata

    try:
        return Check("pyroute2", True, metadata.version("pyroute2"))
    except metadata.PackageNotFoundError:
        return Check("pyroute2", False, "not installed", "pip install 'pyroute2>=0.9.1'")


def _jit() -> Check:
    try:
        value = Path("/proc/sys/net/core/bpf_jit_enable").read_text().strip()
    except OSError:
        return Check("BPF JIT", True, "built in")
    return Check("BPF JIT", value != "0", f"net.core.bpf_jit_enable = {value}", "sysctl net.core.bpf_jit_enable=1")


def _instruction(code: int, registers: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("=BBhi", code, registers, offset, immediate)


def lacking() -> list[Feature]:
    """What this kernel does not know. What fails for want of rights, memory or descriptors is not among it."""
    return [one for one in features() if one.attempt() == errno.EINVAL]


def features() -> Iterator[Feature]:
    """What of the kernel itself is needed, as far as it can be tried without touching anything."""
    hash_map, lru_hash, array = MapType.HASH, MapType.LRU_HASH, MapType.ARRAY
    yield Feature("LRU hash maps", "4.10", lambda: _with_map(lru_hash))
    yield Feature("arrays that can be mapped", "5.5", lambda: _with_map(array, BPF_F_MMAPABLE))
    yield Feature("batches of entries", "5.6", lambda: _with_map(hash_map, then=_write_batch))
    for name, since, instructions in _helpers():
        yield Feature(name, since, functools.partial(_load, instructions))


def _with_map(kind: MapType, flags: int = 0, then: Callable[[int], int] = lambda _: 0) -> int:
    """The errno of making a small map, or of what is done with it then."""
    try:
        with libbpf.opened(libbpf.create_map(kind, "probe", 4, 4, 2, flags)) as descriptor:
            return then(descriptor)
    except KernelError as error:
        if not error.errno:  # it was not the kernel that failed
            raise
        return error.errno


def _write_batch(descriptor: int) -> int:
    return libbpf.batch_write(descriptor, bytes(4), bytes(4), 1)


def _load(instructions: bytes) -> int:
    descriptor = libbpf.load_program(SCHED_CLS, instructions, "probe")
    if descriptor >= 0:
        os.close(descriptor)
    return max(0, -descriptor)


def _helpers() -> Iterator[tuple[str, str, bytes]]:
    """Helper name, the version that has it, a program that does no more than call it."""

    def zero(register: int) -> bytes:
        return _instruction(0xB7, register)

    def call(number: int) -> bytes:
        return _instruction(0x85, immediate=number) + _instruction(0xB7) + _instruction(0x95)

    zeroed_stack = b"".join(_instruction(0x7A, 10, -8 * word) for word in range(1, 9))
    frame = _instruction(0xBF, 0xA2) + _instruction(0x07, 2, immediate=-64)
    yield "bpf_jiffies64", "5.6", call(JIFFIES64)
    lookup = zeroed_stack + frame + _instruction(0xB7, 3, immediate=64) + zero(4) + call(FIB_LOOKUP)
    yield "bpf_fib_lookup", "4.18", lookup
    yield "bpf_redirect_neigh", "5.10", zero(1) + zero(2) + zero(3) + zero(4) + call(REDIRECT_NEIGH)
    yield "bpf_redirect_peer", "5.10", zero(1) + zero(2) + call(REDIRECT_PEER)


def _feature(one: Feature) -> Check:
    try:
        code = one.attempt()
    except KernelError as error:
        return Check(one.name, False, str(error), error.hint)
    if not code:
        return Check(one.name, True, "the kernel takes it")
    if code == errno.EPERM:
        return Check(one.name, False, os.strerror(code), "run with CAP_BPF and CAP_NET_ADMIN")
    return Check(one.name, False, os.strerror(code), f"use Linux {one.since} or later")


def _clsact() -> Check:
    """Tried at the `lo` of a namespace that nobody else sees."""
    remedy = "the kernel needs CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF: modprobe sch_ingress cls_bpf"
    try:
        _in_new_namespace(_try_clsact)
    except (DatapathError, ImportError) as error:
        return Check("tc clsact", False, str(error), remedy)
    return Check("tc clsact", True, "can be added")


def _try_clsact() -> None:
    from pydatapath.kernel.attach import Attacher

    with Attacher() as attacher:
        attacher.add_clsact(LOOPBACK, "lo")


def _in_new_namespace(what: Callable[[], None]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with netns.entered(netns.current_path()):
        if libc.unshare(CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise KernelError(f"cannot make a network namespace: {os.strerror(code)}", errno=code)
        what()
