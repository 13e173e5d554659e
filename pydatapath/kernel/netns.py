"""Network namespaces: name them, tell them apart, enter and leave them."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pydatapath.errors import KernelError, NotFound
from pydatapath.kernel.capabilities import what_is_missing

__all__ = ["RUN_NETNS", "cookie", "current_path", "entered", "living", "path_of"]

RUN_NETNS = Path("/run/netns")
CLONE_NEWNET = 0x40000000
SO_NETNS_COOKIE = 71  # include/uapi/asm-generic/socket.h, since Linux 5.14

_libc = ctypes.CDLL(None, use_errno=True)


def current_path() -> str:
    """The path of the calling thread's own network namespace."""
    return f"/proc/{os.getpid()}/task/{_libc.gettid()}/ns/net"


def path_of(name: str) -> str:
    """Where a namespace lies: `name` is one of `ip netns list`, a path, or a process id.

    Raises NotFound where nothing is there.
    """
    if "/" in name:
        path = name
    elif (RUN_NETNS / name).exists() or not name.isdigit():
        path = str(RUN_NETNS / name)
    else:
        path = f"/proc/{name}/ns/net"
    if not os.path.exists(path):
        raise NotFound(f"network namespace {name!r} does not exist", hint="`ip netns list` shows those that do")
    return path


@contextlib.contextmanager
def entered(path: str | None) -> Iterator[None]:
    """Be in the namespace at `path` for the length of the block (this thread only); None stays here.

    Unlike `ip netns exec` this leaves the mounts alone, so that bpffs stays in sight.
    """
    if path is None:
        yield
        return
    home = os.open(current_path(), os.O_RDONLY | os.O_CLOEXEC)
    try:
        # In one block with the way back: a Ctrl-C may come right after we went
        with _opened(path) as there:
            _setns(there.fileno(), path)
        yield
    finally:
        stranded = _libc.setns(home, CLONE_NEWNET) != 0
        os.close(home)
        # An error that is on its way, such as being refused at the door, says more
        if stranded and sys.exception() is None:
            raise KernelError("cannot go back to the network namespace that we came from")


def _opened(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise NotFound(f"{path} is no network namespace: {error.strerror}") from None


def cookie(path: str | None = None) -> int:
    """A number that no other namespace has had since boot (before Linux 5.14: the inode, which is reused)."""
    with entered(path):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as any_socket:
            return int.from_bytes(any_socket.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), "little")
        return os.stat(current_path()).st_ino


def living() -> dict[int, str]:
    """Every namespace that has a name or a process, as cookie and the shortest way to say it ("": the current one)."""
    found: dict[int, str] = {}
    names = sorted(RUN_NETNS.iterdir()) if RUN_NETNS.is_dir() else []
    seen: set[int] = set()
    for place, said in [*((path, path.name) for path in names), *((path, str(path)) for path in _of_processes())]:
        with contextlib.suppress(OSError, KernelError):
            inode = place.stat().st_ino
            if inode not in seen:
                seen.add(inode)
                found.setdefault(cookie(str(place)), said)
    return found | {cookie(): ""}


def _of_processes() -> Iterator[Path]:
    return (path / "ns/net" for path in Path("/proc").iterdir() if path.name.isdigit())


def _setns(descriptor: int, what: str) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        hint = what_is_missing() if code == errno.EPERM else ""
        raise KernelError(f"cannot enter network namespace {what}: {os.strerror(code)}", errno=code, hint=hint)
